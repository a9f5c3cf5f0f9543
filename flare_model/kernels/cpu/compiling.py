"""Compiles kernels for this processor, within the process: nothing is kept on disk."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir
from torch import Tensor

from flare_model.kernels.cpu.expressions import Code

_LEVEL: Final = 3

Kernel = Callable[..., None]
"""Called with pointers of arrays and whole numbers; Python runs other threads meanwhile."""


def compile_kernel(name: str, arrays: int, integers: int, describe: Callable[[Code], None]) -> Kernel:
    """Compile one kernel.

    Args:
        name: Of the kernel.
        arrays: Number of its arrays, which come first among its arguments.
        integers: Number of its whole numbers.
        describe: Writes its code.
    """
    module = ir.Module(name)
    module.triple = llvm.get_default_triple()
    code = Code(module, name, arrays, integers)
    describe(code)
    code.finish()
    machine = _machine()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    passes = llvm.create_pass_builder(machine, llvm.PipelineTuningOptions(speed_level=_LEVEL))
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, _machine())
    engine.finalize_object()
    kinds = [ctypes.c_void_p] * arrays + [ctypes.c_int64] * integers
    call: Any = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(name))
    call.engine = engine  # which owns the code
    kernel: Kernel = call
    return kernel


def check_executable_memory() -> None:
    """Ask the system for memory that can be executed, as compiled code needs.

    LLVM doesn't notice where that is refused (by systemd's MemoryDenyWriteExecute or SELinux), and the first call of a
    kernel would end the process.

    Raises:
        OSError: If it is refused.
    """
    if os.name != "posix":
        return
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    change = ctypes.CDLL(None, use_errno=True).mprotect
    change.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if change(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
        raise OSError(ctypes.get_errno(), "this system allows no memory that can be executed")


def pointers(*tensors: Tensor) -> Sequence[int]:
    """Where the numbers of float32 tensors lie, for a call while the tensors are alive."""
    return [tensor.data_ptr() for tensor in tensors]


@functools.cache
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _machine() -> llvm.TargetMachine:
    """This processor, with all of its instructions."""
    _initialise()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=_LEVEL, jit=True)
