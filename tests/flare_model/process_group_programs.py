"""What processes of a run do in tests of their process group."""

from __future__ import annotations

import atexit
import json
import sys
import weakref

import torch

from flare_model.training.devices import open_fabric
from flare_model.training.recipe import Recipe
from tests.lpbf_data.rank_programs import report


def train_and_exit() -> None:
    """Make one step with a wrapped model that nothing deletes, and report at exit what is left of the process group."""
    rank, groups = [], []
    atexit.register(lambda: report([group() is None for group in groups], rank[0]))  # runs after those registered later
    fabric, _ = open_fabric(Recipe(), "cpu")
    rank.append(fabric.global_rank)
    groups.append(weakref.ref(torch.distributed.group.WORLD))
    model = fabric.setup(torch.nn.Linear(3, 1))
    cycle = [model]
    cycle.append(cycle)
    fabric.backward(model(torch.ones(2, 3)).sum())


if __name__ == "__main__":
    globals()[sys.argv[1]](*json.loads(sys.argv[2]))
