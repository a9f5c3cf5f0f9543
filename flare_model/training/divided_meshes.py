"""Training on meshes divided over processes (`--points_over`): which process takes which batch and which points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import nn
from torch.distributed.constants import default_pg_timeout

from flare_model.data.point_ranks import SECONDS, PointRanks
from flare_model.models.divided import check_divisible
from flare_model.training.devices import Fabric
from flare_model.training.settings import Settings
from lpbf_data.errors import UsageError


def batch_ranks(settings: Settings, fabric: Fabric) -> tuple[int, int] | None:
    """Number of the batch that this process takes part in, and number of batches at a time.

    None where processes don't share points, so that each takes batches of its own.

    Args:
        settings: `points_over` says how many processes share the points of each case.
        fabric: The processes, of which consecutive ones share points.

    Raises:
        UsageError: If the number of processes isn't a multiple of `points_over`.
    """
    over, world = settings.points_over, fabric.world_size
    if over == 1:
        return None
    if world % over:
        raise UsageError(
            f"--points_over {over} takes {over} processes or a multiple of them, and this run has {world}: start it "
            f"with torchrun --nproc-per-node {over} -m flare_model.train …"
        )
    return fabric.global_rank // over, world // over


def open_ranks(settings: Settings, model: nn.Module) -> PointRanks | None:
    """The processes that share points with this one; None where each has whole cases.

    Args:
        settings: `points_over` says how many processes share points.
        model: The model, not compiled.

    Raises:
        UsageError: If the model can't be divided.
    """
    if settings.points_over == 1:
        return None
    try:
        check_divisible(model)
    except UsageError as error:
        raise UsageError(f"--points_over {settings.points_over}: {error}; leave it out") from error
    return PointRanks.of_world(settings.points_over)


@contextmanager
def waiting_briefly(seconds: float = SECONDS) -> Iterator[None]:
    """Limit, within this context, how long exchanges between all processes may wait.

    It is for training steps, which all processes do at the same time. Outside, a validation or a checkpoint may keep
    some of them busy for longer.

    Args:
        seconds: Time limit of an exchange that begins within the context.
    """
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))
    try:
        yield
    finally:
        torch.distributed.distributed_c10d._set_pg_timeout(default_pg_timeout)
