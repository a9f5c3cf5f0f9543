"""What the processes of a launcher do in tests: `python -m tests.lpbf_data.rank_programs <name> <arguments as JSON>`.

Each process writes down what it was served, in a file of its own: nobody waits for a process that is gone. One that
takes too long says where it stands, and ends.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from lpbf_data import make_loader


def report(found: Any, rank: int | None = None) -> None:
    """Write down what this process found."""
    number = torch.distributed.get_rank() if rank is None else rank
    Path(os.environ["RANKS_REPORT"], f"{number}.json").write_text(json.dumps(found), encoding="utf-8")


def train(folder: str, uneven: Any) -> None:
    """Train in step: a backward pass hangs unless all ranks take part."""
    torch.distributed.init_process_group("gloo")
    loader = make_loader(folder, batch_size=2, shuffle=True, fields=[], uneven=uneven)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
    for _ in range(2):
        for batch in loader:
            (model(batch.pos) - batch.y).square().mean().backward()
    gradient = float(model.module.weight.grad.sum())
    report({"epoch": loader.epoch, "rank": loader.rank, "world_size": loader.world_size, "gradient": gradient})
    # Before the group: where the model is the last to hold it, its end waits for gloo's threads with Python's lock
    # held, and now and then one of them waits for that lock (PyTorch 2.13).
    del model
    torch.distributed.destroy_process_group()


def serve(folder: str, uneven: Any) -> None:
    """Serve an epoch with a loader that was made before the process group."""
    loader = make_loader(folder, shuffle=True, seed=5, fields=[], batch_size=1, uneven=uneven)
    assert (loader.rank, loader.world_size) == (0, 1)
    torch.distributed.init_process_group("gloo")
    report({"rank": loader.rank, "length": len(loader), "served": [batch.case_ids[0] for batch in loader]})
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(float(os.environ["RANKS_SECONDS"]), exit=True)
    globals()[sys.argv[1]](*json.loads(sys.argv[2]))
