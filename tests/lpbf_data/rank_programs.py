"""What the processes of a launcher do in tests: `python -m tests.lpbf_data.rank_programs <name> <arguments as JSON>`.

Each process writes down what it was served, in a file of its own: nobody waits for a process that is gone. One that
takes too long says where it stands, and ends.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from lpbf_data import NodeBudgetSampler, load_dataset, make_loader
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.serving.batch_source import SharedMemoryWarning
from lpbf_data.serving.collating import collate_ragged
from tests.lpbf_data.loader_support import first, ids


def report(found: Any, rank: int | None = None) -> None:
    """Write down what this process found."""
    number = torch.distributed.get_rank() if rank is None else rank
    Path(os.environ["RANKS_REPORT"], f"{number}.json").write_text(json.dumps(found), encoding="utf-8")


def train(folder: str, uneven: Any) -> None:
    """Train in step: a backward pass hangs unless all ranks take part."""
    # Before the group, which its functions would keep: a thread that still runs when Python ends can abort the process.
    importlib.import_module("torch.distributed.nn")
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
    torch.distributed.barrier()  # Who is done at once and goes breaks the connections that others are still making.
    torch.distributed.destroy_process_group()


def sample() -> None:
    """Batches within a budget of points."""
    sampler = NodeBudgetSampler([3, 4, 5, 3, 4, 5], 5, shuffle=True)
    torch.distributed.init_process_group("gloo")
    report({"length": len(sampler), "batches": list(sampler)})
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def number_of(sample: dict[str, Any]) -> dict[str, Any]:
    """What accelerate can slice and send: the number that is in a case's name."""
    return {"number": torch.tensor([int(sample["case_id"].split("_")[0])])}


def accelerate(folder: str, cases: list[Any]) -> None:
    """What `accelerator.prepare` hands out over three epochs in several ways, and how long it says that an epoch is."""
    report([prepared_epochs(folder, *case) for case in cases])
    torch.distributed.destroy_process_group()


def prepared_epochs(
    folder: str, kind: str, workers: int, method: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Three epochs of one loader."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    choices: dict[str, Any] = {"fields": [], "cells": False, "format": "torch", "transform": number_of, "seed": 5}
    more: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": method}
    if kind == "map":
        opened = load_dataset(folder, **choices)
        loader: Any = DataLoader(opened, batch_size=2, shuffle=True, **more)
    elif kind == "budget":
        opened = load_dataset(folder, **choices)
        sampler = NodeBudgetSampler(opened.sizes, int(opened.sizes.max()), batch_size=1, shuffle=True, seed=5)
        loader = DataLoader(opened, batch_sampler=sampler, **more)
    else:
        opened = load_dataset(folder, streaming=True, shuffle=True, batch_size=2, **choices)
        loader = DataLoader(opened, batch_size=2, **more)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
    prepared = accelerator.prepare(loader)
    found: dict[str, Any] = {"length": len(prepared), "epochs": []}
    for _ in range(3):
        found["epochs"].append([batch["number"].flatten().tolist() for batch in prepared])
    return found


def accelerate_made(folder: str) -> None:
    """Accelerate leaves a loader of this package as it is; a stream with ranks of its own is refused."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(make_loader(folder, shuffle=True, seed=5, fields=[], num_workers=1))
    served = [batch.case_ids[0] for batch in loader]
    rank, ranks = accelerator.process_index, accelerator.num_processes
    stream = load_dataset(folder, streaming=True, rank=rank, world_size=ranks, transform=number_of, format="torch")
    said = ""
    try:
        list(accelerator.prepare(DataLoader(stream, batch_size=2)))
    except UsageError as error:
        said = str(error)
    report({"served": served, "said": said})
    os._exit(0)  # the other process may still wait for what this one refused to give


def accelerate_resumes(folder: str) -> None:
    """A stream that tells where it stands is left after four steps, and taken up."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    choices: dict[str, Any] = {"fields": [], "cells": False, "format": "torch", "transform": number_of, "seed": 5}

    def prepared(workers: int) -> tuple[Any, Any]:
        stream = load_dataset(folder, streaming=True, shuffle=True, **choices)
        return stream, accelerator.prepare(DataLoader(stream, batch_size=1, num_workers=workers))

    found = []
    for workers in (0, 2):
        served: list[int] = []
        states: list[Any] = []
        for steps in (4, 99):
            stream, loader = prepared(workers)
            if states:
                stream.load_state_dict(states[-1])
            for _, batch in zip(range(steps), loader, strict=False):
                served.append(int(batch["number"]))
                stream.advance(len(batch["number"]))
                states.append(stream.state_dict())
        found.append({"served": served, "states": [[state["epoch"], state["consumed"]] for state in states]})
    report(found)
    torch.distributed.destroy_process_group()


def enlarged(sample: Any) -> Any:
    """36 MB of points."""
    sample["pos"] = torch.ones(3_000_000, 3)
    return sample


def little_memory(folder: str, collate: Any) -> None:
    """Four batches of 72 MB from workers."""
    loader = make_loader(
        folder, batch_size=2, shuffle=True, seed=5, fields=[], num_workers=2, transform=enlarged, collate=collate
    )
    served: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in loader:
            assert len(batch.pos) == 6_000_000
            served += batch.case_ids if collate == "ragged" else batch.case_id
            if len(served) == 8:
                break
    told = [str(one.message) for one in caught if issubclass(one.category, SharedMemoryWarning)]
    report({"served": served, "said": told[0], "warnings": len(told)}, rank=0)


def little_memory_of_others(folder: str) -> None:
    """The same from a plain DataLoader, which can't do without shared memory."""
    stream = load_dataset(
        folder, streaming=True, batch_size=2, format="torch", fields=[], cells=False, transform=enlarged
    )
    try:
        list(DataLoader(stream, batch_size=2, num_workers=2, collate_fn=collate_ragged))
    except StoreError as error:
        report(f"{type(error).__name__} {error}", rank=0)


def no_memory(folder: str) -> None:
    """Two epochs where workers can't be started."""
    choices: dict[str, Any] = {"shuffle": True, "seed": 5, "fields": []}
    loader = make_loader(folder, num_workers=2, **choices)
    choices |= {"streaming": True, "format": "torch", "cells": False}
    stream, other = load_dataset(folder, **choices), load_dataset(folder, **choices)
    plain = DataLoader(other, batch_size=1, collate_fn=first)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found: dict[str, Any] = {"loader": [[batch.case_ids[0] for batch in loader] for _ in range(2)]}
    found["said"] = " ".join(str(one.message) for one in caught)
    found["stream"] = [ids(stream) for _ in range(2)]
    found["plain"] = [ids(plain) for _ in range(2)]
    report(found, rank=0)


def few_files(folder: str) -> None:
    """Every field from eight workers, in three ways."""
    loader = make_loader(folder, batch_size=2, num_workers=8, cells=True, edges=True)
    served = [sorted(name for batch in loader for name in batch.case_ids)]
    stream = load_dataset(folder, streaming=True, batch_size=2, format="torch", edges=True)
    for loader_class in (DataLoader, StatefulDataLoader):
        batches = loader_class(stream, batch_size=2, num_workers=8, collate_fn=collate_ragged)
        served.append(sorted(name for batch in batches for name in batch.case_ids))
    report(served, rank=0)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(float(os.environ["RANKS_SECONDS"]), exit=True)
    globals()[sys.argv[1]](*json.loads(sys.argv[2]))
