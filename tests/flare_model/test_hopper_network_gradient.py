"""The gradient's kernel for Hopper GPUs, whose language has no interpreter: compiled here, and run on a GPU alone.

On a GPU test_network_kernel.py compares it with float64, as that is the kernel that is taken there; compared here
is this kernel with the one for all GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

from flare_model.kernels import network_launches, support
from flare_model.kernels.network_launches import Parameters, differentiate
from tests.flare_model.kernel_support import DEVICE

COMPILE = """
import re, subprocess, sys
from pathlib import Path
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from flare_model.kernels.hopper_network_gradient import hopper_network_gradient_kernel as kernel
from flare_model.kernels.tuning import HOPPER_GRADIENT

layers, norm, add, dtype = int(sys.argv[1]), *(x == "True" for x in sys.argv[2:4]), sys.argv[4]
folder = Path(sys.argv[5])
pointers = {name: "*fp32" for name in kernel.arg_names[:9]} | {"gradient": "*fp32" if add else "*" + dtype}
constants = {"LAYERS": layers, "NORM": norm, "ADD": add, "TYPE": {"bf16": tl.bfloat16, "fp16": tl.float16}[dtype]}
types = pointers | {"count": "i32", "epsilon": "fp32"} | dict.fromkeys(constants, "constexpr")
types = {name: types[name] for name in kernel.arg_names}
places = list(types)
source = GluonASTSource(
    kernel, types, {(places.index(name),): value for name, value in constants.items()},
    {(place,): [["tt.divisibility", 16]] for place, name in enumerate(places) if types[name].startswith("*")},
)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": HOPPER_GRADIENT.warps})
(folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
said = subprocess.run([tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True)
print(compiled.metadata.shared, re.search(r"STACK:(\\d+)", said.stdout + said.stderr)[1])
"""


@pytest.mark.parametrize(("layers", "norm", "add", "dtype"), [(5, True, True, "bf16"), (3, False, False, "fp16")])
def test_it_compiles_within_the_memory_that_is_asked_of_a_gpu(
    tmp_path: object, layers: int, norm: bool, add: bool, dtype: str
) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": f"{tmp_path}/cache"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(layers), str(norm), str(add), dtype, str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shared, stack = map(int, done.stdout.split())
    assert shared <= support._HOPPER_SHARED_MEMORY
    assert stack <= 100, "bytes of a thread that don't fit into its registers"


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("norm", "add"), [*product([True, False], repeat=2)])
@pytest.mark.parametrize(
    ("points", "layers"), [(1, 5), (127, 5), (5000, 5), (70_001, 5), (70_001, 4), (300, 3), (300, 2)]
)
def test_it_gives_what_the_kernel_for_all_gpus_gives(
    monkeypatch: pytest.MonkeyPatch, points: int, layers: int, norm: bool, add: bool, dtype: torch.dtype
) -> None:
    """With most points each program takes several tiles."""
    if not support.takes_hopper_gradient(torch.device("cuda", 0), 64, layers):
        pytest.skip("no GPU of compute capability 9.0")
    torch.manual_seed(0)
    weights = torch.randn(layers, 64, 64, device=DEVICE) / 8
    vectors = torch.randn(layers + 2 * norm, 64, device=DEVICE)
    x, added = torch.randn(2, points, 64, device=DEVICE)
    gradient = torch.randn(points, 64, device=DEVICE, dtype=torch.float32 if add else dtype)
    parameters, found = Parameters(weights, vectors, 1e-5, dtype), []
    for taken in (True, True, False):
        if not taken:
            monkeypatch.setattr(network_launches, "takes_hopper_gradient", lambda *_: False)
        grad_x = torch.empty_like(x)
        more = differentiate(gradient, added if add else None, x, parameters, grad_x)
        found.append((grad_x, *more))
    hopper, again, other = found
    assert all(torch.equal(a, b) for a, b in zip(hopper, again, strict=True)), "the same input gives the same bits"
    for mine, theirs in zip(hopper, other, strict=True):
        assert (mine - theirs).norm() <= 4 * torch.finfo(dtype).eps * theirs.norm()
