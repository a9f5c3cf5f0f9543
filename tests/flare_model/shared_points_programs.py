"""What tests run in each of several processes that share the points of meshes."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from flare_model.data.metrics import mse_loss, relative_l2_loss
from flare_model.data.point_ranks import PointRanks
from flare_model.kernels.tuning import INTERPRETED
from flare_model.layers.layout import Layout
from flare_model.layers.mixer import mix_meshes
from flare_model.models.divided import divided
from flare_model.models.flare import Flare
from flare_model.sizes import FlareConfig
from flare_model.training.divided_meshes import waiting_briefly
from flare_model.training.step_errors import OtherProcessError, is_of_another_process, step_error
from tests.flare_model.kernel_support import explicit_mixing
from tests.lpbf_data.rank_programs import report

SIZES: Final = (7, 1, 40, 2)
"""Numbers of points of joined meshes; some meshes have fewer points than there are processes."""

KERNEL_SIZES: Final = (1, 18, 4)
"""Smaller ones for the kernels, since their interpreter is slow."""

SMALL: Final = {"channels": 16, "num_heads": 2, "num_latents": 5, "num_blocks": 2, "in_dim": 3, "out_dim": 2}
Loss = Callable[[Tensor, Tensor, Tensor, PointRanks | None], Tensor]


def _relative(prediction: Tensor, truth: Tensor, offsets: Tensor, ranks: PointRanks | None) -> Tensor:
    return relative_l2_loss(prediction, truth, offsets, floor=1e-3, ranks=ranks)


def _square(prediction: Tensor, truth: Tensor, offsets: Tensor, ranks: PointRanks | None) -> Tensor:
    return mse_loss(prediction - truth, offsets, 3, ranks)


def _batch(sizes: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(sum(sizes), 3, generator=generator, dtype=torch.float64)
    truth = torch.randn(sum(sizes), 2, generator=generator, dtype=torch.float64)
    return points.to(dtype), truth.to(dtype), torch.tensor([0, *itertools.accumulate(sizes)])


def _model(dtype: torch.dtype, mixer: str = "sdpa", **config: Any) -> Flare:
    torch.manual_seed(0)
    model = Flare(FlareConfig(**SMALL | config), mixer=mixer)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that the weights of softmaxes differ widely
    return model.to(dtype)


def _gradients(model: nn.Module) -> Tensor:
    flat = torch.cat([p.grad.reshape(-1).double() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return flat


def _by_one_process(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], loss: Loss) -> tuple[float, Tensor]:
    """Loss and gradients of whole meshes, by this process."""
    points, truth, offsets = batch
    found = loss(model(points, None, offsets), truth, offsets, None)
    found.backward()
    return float(found.detach()), _gradients(model)


def _by_all_processes(
    model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], loss: Loss, ranks: PointRanks
) -> tuple[float, Tensor]:
    """Loss and gradients with the points divided over the processes."""
    points, truth, offsets = batch
    mine = ranks.share(offsets)
    with divided(model, ranks):
        prediction = model(mine.of(points), None, mine.offsets)
    found = loss(prediction, mine.of(truth), mine.offsets, ranks)
    found.backward()
    ranks.sum_gradients(model)
    return float(found.detach()), _gradients(model)


def _computed_by_first(ranks: PointRanks, compute: Callable[[], float]) -> float:
    """A number that the first process computes and sends to the others, since the interpreter is slow."""
    found = [compute() if ranks.rank == 0 else math.nan]
    torch.distributed.broadcast_object_list(found, 0)
    return found[0]


def _difference(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> float:
    """Largest relative difference of loss and gradients."""
    gradient = float((found[1] - wanted[1]).norm() / wanted[1].norm())
    return max(abs(found[0] - wanted[0]) / abs(wanted[0]), gradient)


def _one_square(prediction: Tensor, truth: Tensor, offsets: Tensor, ranks: PointRanks | None) -> Tensor:
    return mse_loss(prediction - truth, offsets, 1, ranks)


CASES: Final[dict[str, tuple[tuple[int, ...], Loss, dict[str, Any]]]] = {
    "meshes": (SIZES, _relative, {}),
    "alike": ((9, 10, 11), _relative, {}),
    "one": ((50,), _one_square, {"mixer": "reference"}),
    "a point": ((1,), _relative, {}),
    "square": (SIZES, _square, {"scaled_scores": True}),
    "apart": (SIZES, _relative, {"separate_decoding": True, "latent_layers": 1}),
    "checkpoints": (SIZES, _relative, {}),
}


def same_numbers() -> None:
    """Report how far loss and gradients are from those of one process, for each mixing and each layout of meshes."""
    torch.distributed.init_process_group("gloo")
    ranks, off, found = PointRanks.of_world(), {}, (math.nan, torch.zeros(0))
    for name, (sizes, loss, config) in CASES.items():
        batch, model = _batch(sizes, torch.float64), _model(torch.float64, **config)
        wanted = _by_one_process(model, batch, loss)
        assert float(wanted[1].norm()) > 1e-3, name
        model.activation_checkpointing = name == "checkpoints"
        off[name] = _difference(_by_all_processes(model, batch, loss, ranks), wanted)
    off["padded"] = _padded_errors(ranks, torch.float64, "sdpa")[0]
    single, half = {}, {}
    if ranks.size == 3 and INTERPRETED:  # these processes compute on CPUs, where the kernels need their interpreter
        single["padded"] = _padded_errors(ranks, torch.float32, "triton")
    # The interpreter is slow: which meshes the kernels are tried with depends on the number of processes.
    by_kernels: tuple[tuple[int, ...], ...] = {1: (), 2: (KERNEL_SIZES,), 3: ((1,), (2, 20))}[ranks.size]
    if not INTERPRETED:
        by_kernels = ()
    for mixer, sizes in [("sdpa", SIZES), *(("triton", sizes) for sizes in by_kernels)]:
        exact = _by_one_process(_model(torch.float64, num_blocks=1), _batch(sizes, torch.float64), _relative)
        batch, model = _batch(sizes, torch.float32), _model(torch.float32, mixer=mixer, num_blocks=1)
        alone = _computed_by_first(
            ranks,
            lambda model=model, batch=batch, exact=exact: _difference(_by_one_process(model, batch, _relative), exact),
        )
        found = _by_all_processes(model, batch, _relative, ranks)
        single[f"{mixer} {sizes}"] = _difference(found, exact), alone
    for sizes in by_kernels[-1:]:
        half[str(sizes)] = _gradient_errors_in_float16(sizes, ranks)
    report({"off": off, "single": single, "half": half, "last": [found[0], found[1].tolist()]})
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _gradient_errors_in_float16(sizes: tuple[int, ...], ranks: PointRanks) -> tuple[float, float]:
    """Errors of the kernels' gradients in float16, the fast path included: by all processes together, and by one."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 16, 8), *[(sum(sizes), 2, 8)] * 3]
    *inputs, gradient = (torch.randn(shape, generator=generator).half() for shape in shapes)
    offsets = torch.tensor([0, *itertools.accumulate(sizes)])
    mine, points = ranks.share(offsets), inputs[1].flatten(1)
    whole = Layout.of(points, offsets, None)
    own = Layout.of(mine.of(points), mine.offsets, None, ranks=ranks)

    def written(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        meshes = zip(keys.split(sizes), values.split(sizes), strict=True)
        return torch.cat([explicit_mixing(queries, k[None], v[None])[0] for k, v in meshes])

    def together(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return mix_meshes(queries, mine.of(keys), mine.of(values), own, "triton")

    def slopes(function: Callable[..., Tensor], dtype: torch.dtype, gradient: Tensor) -> Tensor:
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        found = torch.autograd.grad(function(*leaves), leaves, gradient.to(dtype))
        return torch.cat([t.double().reshape(-1) for t in found])

    exact = slopes(written, torch.float64, gradient)

    def off_alone() -> float:
        alone = slopes(lambda q, k, v: mix_meshes(q, k, v, whole, "triton"), torch.half, gradient)
        return float((alone - exact).norm() / exact.norm())

    shared = ranks.total(slopes(together, torch.half, mine.of(gradient)))
    return float((shared - exact).norm() / exact.norm()), _computed_by_first(ranks, off_alone)


def _padded_errors(ranks: PointRanks, dtype: torch.dtype, mixer: str) -> tuple[float, float]:
    """Errors for padded meshes that are divided along their points: by all processes together, and by one.

    Some processes have no point of some meshes. Exact values are those of one process in float64, by attention calls.
    """
    points, truth, _ = _batch((3 * 12,), torch.float64)
    points, truth = points.view(3, 12, 3), truth.view(3, 12, 2)
    exists = torch.arange(12) < torch.tensor([12, 5, 1])[:, None]

    def numbers(model: nn.Module, mine: slice, ranks: PointRanks | None) -> tuple[float, Tensor]:
        where = exists[:, mine]
        with divided(model, ranks) if ranks else nullcontext():
            prediction = model(points[:, mine].to(dtype_of(model)), mask=where)
        found = ((prediction - truth[:, mine].to(prediction.dtype)) * where[..., None]).square().sum()
        found = ranks.sum(found) if ranks else found
        found.backward()
        if ranks:
            ranks.sum_gradients(model)
        return float(found.detach()), _gradients(model)

    def dtype_of(model: nn.Module) -> torch.dtype:
        return next(model.parameters()).dtype

    exact = numbers(_model(torch.float64, num_blocks=1), slice(12), None)
    model, mine = (
        _model(dtype, mixer, num_blocks=1),
        slice(12 * ranks.rank // ranks.size, 12 * (ranks.rank + 1) // ranks.size),
    )
    together = _difference(numbers(model, mine, ranks), exact)
    return together, _computed_by_first(ranks, lambda: _difference(numbers(model, slice(12), None), exact))


def beside_data_parallelism() -> None:
    """Report how far gradients are from the mean over two batches, each of which two of four processes share.

    Once with `DistributedDataParallel` over all processes, and once over those that have the same share of a batch.
    """
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "points"))
    batches = [_batch(SIZES, torch.float64, seed) for seed in (0, 1)]
    alone = [_by_one_process(_model(torch.float64), batch, _relative) for batch in batches]
    wanted = (alone[0][1] + alone[1][1]) / 2
    points, truth, offsets = batches[rank // 2]
    off = []
    for group, ranks, scale in (
        (None, PointRanks.of_world(2), 2.0),
        (grid["data"].get_group(), PointRanks(grid["points"].get_group()), 1.0),
    ):
        mine = ranks.share(offsets)
        model = nn.parallel.DistributedDataParallel(_model(torch.float64), process_group=group)
        with divided(model, ranks):
            prediction = model(mine.of(points), None, mine.offsets)
        loss = _relative(prediction, mine.of(truth), mine.offsets, ranks)
        (scale * loss).backward()
        if group is not None:
            ranks.sum_gradients(model)
        off.append(_difference((float(loss.detach()), _gradients(model)), (alone[rank // 2][0], wanted)))
        del model
    report(off)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def last_process_stops(how: str) -> None:
    """The last process stops in the second step; the others report which error they got, and after how many seconds.

    Then they communicate with all processes, as training steps do, under `waiting_briefly`, and report that error too.
    """
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ranks = PointRanks.of_world(seconds=50.0 if how == "SIGKILL" else 3.0)
    batch, model = _batch(SIZES, torch.float64), _model(torch.float64)
    _by_all_processes(model, batch, _relative, ranks)
    if rank == world - 1:
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(600)
    began = time.monotonic()
    try:
        _by_all_processes(model, batch, _relative, ranks)
    except RuntimeError as error:
        failed = step_error(error, "step 2", ["a"], 50, "Flare")
        try:
            with waiting_briefly(3.0):
                torch.distributed.all_reduce(torch.zeros(1))
        except RuntimeError as again:
            told = isinstance(failed, OtherProcessError) and is_of_another_process(again)
            report([time.monotonic() - began, f"{failed}; {again}", told])
    os._exit(3)  # The process group can't be destroyed properly any more.
