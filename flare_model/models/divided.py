"""One mesh over several processes: each computes its own points, and the numbers are those of one process.

    ranks = PointRanks.of_world()
    mine = ranks.share(offsets)
    with divided(model, ranks):
        prediction = model(mine.of(points), None, mine.offsets)
    loss = relative_l2_loss(prediction, mine.of(targets), mine.offsets, ranks=ranks)
    loss.backward()
    ranks.sum_gradients(model)

Every process has the same loss then, and the same gradients: those of the whole meshes, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from flare_model.data.point_ranks import PointRanks
from flare_model.models.mesh_model import MeshModel
from lpbf_data.errors import UsageError


def check_divisible(model: nn.Module) -> list[MeshModel]:
    """The models within a module that can be divided.

    Raises:
        UsageError: If there is none, or one that mixes points in a way that can't be divided.
    """
    found = [module for module in model.modules() if isinstance(module, MeshModel)]
    other = model if not found else next((module for module in found if not module.divisible), None)
    if other is not None:
        name = type(other).__name__
        raise UsageError(f"only FLARE's points can be divided over processes, and {name} isn't FLARE")
    if any(module._compiled_call_impl or hasattr(module, "_orig_mod") for module in model.modules()):
        raise UsageError("a compiled model can't be divided over processes; leave it as it is")
    return found


@contextmanager
def divided(model: nn.Module, ranks: PointRanks) -> Iterator[None]:
    """Let processes share the points of every mesh that a model is called with.

    Each process calls the model with its own points; it may have no point of some mesh, or none at all. Only forward
    passes need to be within the context: what is computed again in the backward pass uses the same processes.

    Args:
        model: FLARE, alone or within a surrogate or `DistributedDataParallel`.
        ranks: The processes.

    Raises:
        UsageError: If it is another model, or compiled.
    """
    models = check_divisible(model)
    before = [module.ranks for module in models]
    for module in models:
        module.ranks = ranks
    try:
        yield
    finally:
        for module, earlier in zip(models, before, strict=True):
            module.ranks = earlier
