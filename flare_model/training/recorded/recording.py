"""Recording what is launched on a GPU as CUDA graphs, which are launched again at once."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from flare_model.data.batches import Batch
from lpbf_data.errors import LpbfError, UsageError


@dataclass(frozen=True)
class Recording:
    """A function of a batch as a CUDA graph.

    Attributes:
        graph: The graph.
        batch: The tensors that it reads.
        result: The tensor that it writes.
    """

    graph: torch.cuda.CUDAGraph
    batch: Batch
    result: Tensor

    @property
    def pool(self) -> Any:
        """The memory pool that the graph was recorded in."""
        return self.graph.pool()

    def replay(self, batch: Batch) -> Tensor:
        """Copy a batch of the same size in, launch, and copy the result."""
        for static, new in zip(self.batch.tensors(), batch.tensors(), strict=True):
            static.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.result.clone()


@functools.cache
def recording_stream(device: int) -> torch.cuda.Stream:
    """The stream of a GPU that everything is recorded on, and done on once before.

    cuBLAS keeps memory for each stream and thread that multiplied matrices, for ever. Products ask for it here,
    where nothing else has been computed yet: later it would be cut out of a block that large tensors left, maybe of a
    recording's memory, and that block could never be given back. It is one stream, so that this memory is there once.

    Args:
        device: Number of the GPU.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(16, 16, device=f"cuda:{device}", dtype=dtype, requires_grad=True)
            (F.linear(x, x, x[0]) @ x).sum().backward()  # type: ignore[no-untyped-call]
    stream.synchronize()
    return stream


@contextlib.contextmanager
def recording(pool: Any, what: str = "a training step") -> Iterator[torch.cuda.CUDAGraph]:
    """Record what is done within as a graph.

    Args:
        pool: Memory of earlier recordings to share; None for memory of its own.
        what: What is recorded, for the error.

    Raises:
        UsageError: If something can't be recorded.
    """
    graph, stream = torch.cuda.CUDAGraph(), recording_stream(torch.cuda.current_device())
    try:
        # Other threads, such as the one that reads ahead and pins memory, may call CUDA meanwhile.
        with no_collection(), torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            yield graph
    except BaseException as error:
        _leave_recording()
        if not isinstance(error, RuntimeError) or isinstance(error, LpbfError | torch.OutOfMemoryError):
            raise
        raise UsageError(
            f"{what} of this model can't be recorded as a CUDA graph, which must not read anything back to the host: "
            f"{str(error).partition(chr(10))[0]}. Train it with --recipe.step_graphs false"
        ) from error


def _leave_recording() -> None:
    """Let random numbers be drawn again on this GPU after a recording that failed.

    PyTorch's generator would still count as recorded, and raise "Offset increment outside graph capture" when anything
    in this process draws; a copy of its state doesn't.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Switch off Python's garbage collector: graphs of an earlier run that it frees would break the recording."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
