"""How fast are cases served, beside a memory copy, the published loader and plain `datasets`?

    python -m tests.benchmarks.serving
    python -m tests.benchmarks.serving --data lpbf/

All read the same cases from files that the operating system has cached: generated ones (hexahedral parts with smooth
fields), or with `--data` those of a data set in turn, both up to the sizes of the published ones. Measured are

- reading a case: from Parquet, Zarr, the cache and memory, beside the published loader (which always reads all arrays
  of its file, edges included) and beside a copy of the case's bytes from memory to memory;
- a shuffled epoch as a stream, beside plain `datasets` with its default shuffle, as Python objects and as NumPy arrays;
- requests and seconds to the first batch from a hub on the loopback interface;
- seconds to resume, memory over epochs, the share of a step that training waits, bytes on disk, quality of the shuffle.

In every round each of the compared readers reads all cases once, in a random order, so that other work on the machine
slows all alike; a ratio is the median over the rounds of the ratio within a round. Reads and streams are timed by the
processor time of this one process, which other work changes less than it changes the elapsed time.

Needs no GPU; the committed results are of simulated parts. The result goes to results/serving.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lpbf_data import CaseStream, Loader, load_dataset, make_loader
from lpbf_data.case.case import Case
from lpbf_data.case.schema import DEFAULT_FIELDS, resolve_fields
from lpbf_data.serving.datasets import CaseDataset
from lpbf_data.serving.epoch_order import epoch_order
from lpbf_data.stores.parquet import ParquetShard
from tests.benchmarks.machine import describe_machine, save_result
from tests.data_hub_server import serve_hub
from tests.data_support import make_case, write_dataset, write_published

PUBLISHED = {"fields": ["displacement", "temperature", "von_mises_stress"], "cells": True}
"""Selection of all fields that are published."""

TRAINING: dict[str, Any] = {"fields": [], "cells": False}
"""Selection of points and target alone, as training reads them."""

STEPS = {"64 ms": 0.064, "20 ms": 0.020, "4.5 ms": 0.0045}
"""Seconds of a training step on 20,000 points on an H100: by attention calls, about a third of that, and by our kernels
with steps recorded as CUDA graphs."""
MOST_POINTS = 50_000  # points of the largest published case
LAUNCHING = 0.3  # share of a step in which Python launches kernels, holding its global lock; then it waits for the GPU

warnings.filterwarnings("ignore", message="`torch.jit.script`")


def simulated_cases(data: Path, count: int) -> list[Case]:
    """Cases of a data set, repeated under new names until there are `count`."""
    shards = [ParquetShard(path) for path in sorted((data / "data").glob("*.parquet"))]
    rows = [(shard, row) for shard in shards for row in range(len(shard))]
    found = [shard.read_case(row, resolve_fields(DEFAULT_FIELDS)) for shard, row in rows]
    found = [case for case in found if case.num_points <= MOST_POINTS]
    made = (replace(found[i % len(found)], case_id=f"{i:05d}_{i:08x}_0", attributes={}) for i in range(count))
    return list(made)


def make_corpus(folder: Path, count: int, data: Path | None) -> dict[str, Path]:
    """Write the cases as Parquet, as Zarr and in the published layout; and 60 cases of about 20,000 points, as Parquet.

    Returns:
        The folders of the four data sets, by name.
    """
    sizes = np.random.default_rng(1).integers(5_000, 31_000, count)
    if data is None:
        cases = [make_case(seed, int(size)) for seed, size in enumerate(sizes)]
    else:
        cases = simulated_cases(data, count)
    places = {name: folder / name for name in ("parquet", "zarr", "published", "hub20k")}
    for name in ("parquet", "zarr"):
        places[name].mkdir()
        write_dataset(places[name], {"train": cases}, shards=max(count // 30, 1), formats=[name])
    write_published(places["published"], {"train": cases})
    places["hub20k"].mkdir()
    alike: list[Case] = [make_case(1000 + seed, 14_500) for seed in range(min(count, 60))]
    write_dataset(places["hub20k"], {"train": alike}, shards=2, formats=["parquet"])
    return places


def published_reader(folder: Path) -> Callable[[int], Any]:
    """A function that reads a case as the published loader does: every array of its file, as tensors."""
    files = sorted((folder / "train").glob("*.npz"))

    def read(index: int) -> Any:
        tensors = {}
        with np.load(files[index], allow_pickle=True) as data:
            for name in data.files:
                value = data[name]
                if name == "_metadata":
                    tensors[name] = json.loads(value[0])
                elif value.dtype.kind == "f":
                    tensors[name] = torch.from_numpy(value.astype(np.float32))
                else:
                    tensors[name] = torch.from_numpy(value.astype(np.int64))
        return tensors

    return read


def memory_copier(dataset: CaseDataset) -> Callable[[int], Any]:
    """A function that copies the bytes of a case into allocated memory: the least time that serving could take."""
    sources, most = [], 0
    for index in range(len(dataset)):
        values = [v.numpy().reshape(-1).view(np.uint8) for v in dataset[index].values() if isinstance(v, torch.Tensor)]
        sources.append(np.concatenate(values))
        most = max(most, sources[-1].nbytes)
    target = np.empty(most, np.uint8)

    def copy(index: int) -> None:
        np.copyto(target[: sources[index].nbytes], sources[index])

    return copy


def seconds_a_case(read: Callable[[int], Any], order: Iterable[int]) -> float:
    """Mean processor time of a read, seconds."""
    numbers = list(order)
    started = time.process_time()
    for index in numbers:
        read(index)
    return (time.process_time() - started) / len(numbers)


def compare(readers: Mapping[str, Callable[[int], Any]], count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a case of every reader in every round; within a round the readers' order is random."""
    for read in readers.values():
        seconds_a_case(read, range(count))
    times: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        names = sorted(readers, key=lambda name: (hash((name, number)), name))
        for name in names:
            order = random.Random(number).sample(range(count), count)
            times[name].append(seconds_a_case(readers[name], order))
    return times


def summarise(times: Mapping[str, list[float]], base: str) -> dict[str, Any]:
    """Milliseconds a case, and their ratio to those of the reader `base`."""
    return {
        name: {
            "ms": round(statistics.median(values) * 1e3, 4),
            f"times_{base}": round(statistics.median(v / b for v, b in zip(values, times[base], strict=True)), 3),
        }
        for name, values in times.items()
    }


def reading(places: Mapping[str, Path], cache: Path, rounds: int) -> dict[str, Any]:
    """Time of random reads, of the published fields and of what training reads."""
    results = {}
    for label, selection in (("published_fields", PUBLISHED), ("points_and_target", TRAINING)):
        options = {"format": "torch"} | selection

        def opened(name: str, options: dict[str, Any] = options, **more: Any) -> CaseDataset:
            return load_dataset(places[name], **(options | more))  # type: ignore[return-value]

        decoded = {name: opened(name, cache=False) for name in ("parquet", "zarr")}
        kept = {
            "cache": opened("parquet", cache=cache),
            "cache_pyg": opened("parquet", cache=cache, format="pyg"),
            "memory": opened("parquet", in_memory=True),
        }
        count = len(kept["cache"])
        slow: dict[str, Callable[[int], Any]] = {name: source.__getitem__ for name, source in decoded.items()}
        slow["published_npz"] = published_reader(places["published"])
        fast: dict[str, Callable[[int], Any]] = {name: source.__getitem__ for name, source in kept.items()}
        fast["memcpy"] = memory_copier(kept["cache"])
        results[label] = {
            **summarise(compare(slow, count, rounds), "published_npz"),
            **summarise(
                compare(fast, count, 5 * rounds), "memcpy"
            ),  # more rounds: these reads are short, and so disturbed more
        }
    return results


def streaming(places: Mapping[str, Path], cache: Path, rounds: int) -> dict[str, Any]:
    """Time of a shuffled epoch, by plain `datasets` with its default shuffle and by this package.

    `lpbf_first_epoch` decodes without a cache; `lpbf_opened_anew` has a full cache, but maps and checks every file;
    `lpbf_warm` is each epoch after that. `datasets` decodes in each epoch, `datasets_default` into Python objects.
    """
    import datasets

    datasets.disable_progress_bars()
    files = sorted(map(str, places["parquet"].glob("data/*.parquet")))
    columns = ["case_id", "x", "y", "z", "displacement_x", "displacement_y", "displacement_z", "temperature"]
    columns += ["von_mises_stress", "cells"]

    def plain(form: str | None) -> Iterable[Any]:
        stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, columns=columns)
        return stream.shuffle(seed=0) if form is None else stream.shuffle(seed=0).with_format(form)

    def ours(where: Any) -> Iterable[Any]:
        options: dict[str, Any] = {"streaming": True, "shuffle": True, "format": "torch"} | PUBLISHED
        return load_dataset(places["parquet"], cache=where, **options)

    warm = ours(cache)
    epochs = {
        "datasets_default": lambda: plain(None),
        "datasets_numpy": lambda: plain("numpy"),
        "lpbf_first_epoch": lambda: ours(False),
        "lpbf_opened_anew": lambda: ours(cache),
        "lpbf_warm": lambda: warm,
    }
    for _ in range(2):
        for _ in warm:
            pass
    times: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(rounds):
        for name, make in epochs.items():
            stream = make()
            started = time.process_time()
            count = sum(1 for _ in stream)
            times[name].append((time.process_time() - started) / count)
    rates = {
        name: round(statistics.median(d / v for d, v in zip(times["datasets_default"], values, strict=True)), 1)
        for name, values in times.items()
    }
    return {
        name: {"ms": round(statistics.median(values) * 1e3, 3), "times_faster_than_datasets": rates[name]}
        for name, values in times.items()
    }


def hub(places: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Requests and seconds to the first batch from a hub on the loopback interface, and requests of an epoch."""
    results = {}
    repositories = {"user/lpbf": {"main": places["parquet"]}, "user/published": {"main": places["published"]}}
    with serve_hub(repositories) as server, environment(HF_ENDPOINT=server.url):
        for name in repositories:
            options: dict[str, Any] = {"shuffle": True, "cache": folder / name, "cache_dir": folder / f"{name}-hub"}
            server.log.clear()
            started = time.perf_counter()
            loader = make_loader(name, read_ahead=1, **options, **TRAINING)
            for _ in loader:
                break
            seconds, requests = time.perf_counter() - started, len(server.log)
            for _ in loader:
                pass
            results[name.partition("/")[2]] = {
                "requests_for_first_batch": requests,
                "seconds_to_first_batch": round(seconds, 3),
                "requests_for_epoch": len(server.log),
                "cases": len(loader),
            }
    return results


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables until the block ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def resuming(places: Mapping[str, Path], cache: Path) -> dict[str, Any]:
    """Time from a saved state to the next batch, the least of five tries, over all positions of an epoch."""
    results = {}
    for label, options in (("one case", {}), ("budget of points", {"batch_size": None, "max_points": 100_000})):
        loader = make_loader(places["parquet"], shuffle=True, cache=cache, **TRAINING, **options)
        saved = [loader.state_dict() for _ in loader][:-1]
        best = [min(seconds_to_resume(loader, state) for _ in range(5)) for state in saved]
        results[label] = times_of(best)
    stream: Any = load_dataset(places["parquet"], streaming=True, shuffle=True, cache=cache, **TRAINING)
    saved = [stream.state_dict() for _ in stream][:-1]
    return results | {"stream": times_of([min(seconds_to_resume(stream, s) for _ in range(5)) for s in saved])}


def times_of(seconds: list[float]) -> dict[str, float]:
    """Median and maximum in milliseconds."""
    return {"median_ms": round(statistics.median(seconds) * 1e3, 3), "max_ms": round(max(seconds) * 1e3, 3)}


def seconds_to_resume(loader: Loader | CaseStream, state: dict[str, Any]) -> float:
    """Seconds from a saved state to the next batch."""
    started = time.perf_counter()
    loader.load_state_dict(state)
    next(iter(loader))
    return time.perf_counter() - started


def memory_over_epochs(places: Mapping[str, Path], cache: Path, epochs: int = 12) -> dict[str, Any]:
    """Resident megabytes after each epoch; `anonymous` leaves out pages of mapped files, which the system can drop.

    The first epoch fills the cache and the second maps it; from then on memory should stay constant. Up to 64 MB are
    kept for the next batches.
    """
    found: dict[str, Any] = {"resident": [], "anonymous": []}
    loader = make_loader(places["parquet"], shuffle=True, batch_size=2, cache=cache, **PUBLISHED)
    for _ in range(epochs):
        for _ in loader:
            pass
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        found["resident"].append(round(int(status["VmRSS"].split()[0]) / 1e3, 1))
        found["anonymous"].append(round(int(status["RssAnon"].split()[0]) / 1e3, 1))
    resident = found["resident"]
    return found | {"growth_of_last_ten_epochs_percent": round(100 * (resident[-1] / resident[-11] - 1), 2)}


def shuffle_quality(folder: Path, count: int = 10_000, shards: int = 20) -> dict[str, Any]:
    """How well a shuffled epoch separates cases that are stored together; rows hold their number alone.

    `neighbours_apart` is the mean distance in the epoch of two cases that are stored side by side, as a share of the
    epoch, 1/3 for a random permutation. `order_kept` is the rank correlation of stored and served order, 0 for one.
    """
    import datasets

    folder.mkdir()
    files = []
    for number, rows in enumerate(np.array_split(np.arange(count), shards)):
        files.append(str(folder / f"{number:05d}.parquet"))
        pq.write_table(pa.table({"number": rows}), files[-1])
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True).shuffle(seed=0)
    served = {
        "datasets_default": np.array([row["number"] for row in stream]),
        "lpbf": epoch_order(count, shuffle=True, seed=0, epoch=0),
    }
    results: dict[str, Any] = {"cases": count, "shards": shards}
    for name, order in served.items():
        places = np.argsort(order)
        results[name] = {
            "neighbours_apart": round(float(np.abs(np.diff(places)).mean() / count), 4),
            "order_kept": round(float(np.corrcoef(places, np.arange(count))[0, 1]), 4),
        }
    return results


def waiting(places: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Share of a step that training waits for data, with cases of 20,000 points, for steps of given lengths.

    Steps are imitated: Python computes for 30 % of one, holding its global lock, as when it launches kernels, and
    sleeps for the rest, as when it waits for the GPU. The loader reads in a thread of this process, on the same cores.
    """
    results: dict[str, Any] = {}
    for label, seconds in STEPS.items():
        cache = folder / label
        loader = make_loader(places["hub20k"], shuffle=True, cache=cache, **TRAINING)
        shares = []
        for _ in range(3):
            before, started = loader.seconds_waiting, time.perf_counter()
            points = 0
            for batch in loader:
                points += len(batch.pos)
                work_until = time.perf_counter() + LAUNCHING * seconds
                while time.perf_counter() < work_until:
                    pass
                time.sleep((1 - LAUNCHING) * seconds)
            shares.append((loader.seconds_waiting - before) / (time.perf_counter() - started))
        results[label] = {
            "points_a_case": round(points / len(loader)),
            "first_epoch_percent": round(100 * shares[0], 3),
            "cached_percent": round(100 * max(shares[1:]), 3),
        }
    return results


def sizes(places: Mapping[str, Path]) -> dict[str, float]:
    """Megabytes of 20,000 points in each format, by the mean over all points."""
    points = int(load_dataset(places["parquet"], cache=False).sizes.sum())  # type: ignore[union-attr]

    def total(folder: Path) -> float:
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / points * 20_000 / 1e6

    stored = {"parquet": "data", "zarr": "lpbf.zarr", "published": "train"}
    return {name: round(total(places[name] / part), 4) for name, part in stored.items()}


def main() -> None:
    """Measure everything and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="number of cases")
    parser.add_argument("--rounds", type=int, default=7, help="rounds over which the median is taken")
    parser.add_argument("--data", type=Path, help="data set whose cases are taken; by default they are made up")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="lpbf-serving-"))
    try:
        places = make_corpus(folder, arguments.cases, arguments.data)
        cache = folder / "cache"
        result = {
            "machine": describe_machine(("numpy", "pyarrow", "zarr", "torch", "torch-geometric", "datasets")),
            "cases": arguments.cases,
            "cases_from": "simulated" if arguments.data else "made up",
            "points_a_case": float(load_dataset(places["parquet"], cache=False).sizes.mean()),  # type: ignore[union-attr]
            "mb_of_20000_points": sizes(places),
            "load_before": os.getloadavg()[0],
            "memory_over_ten_epochs_mb": memory_over_epochs(places, cache),
            "read_a_case": reading(places, cache, arguments.rounds),
            "stream_an_epoch": streaming(places, cache, min(arguments.rounds, 3)),
            "hub": hub(places, folder / "hub"),
            "resume": resuming(places, cache),
            "waiting_share": waiting(places, folder / "waiting"),
            "shuffle_quality": shuffle_quality(folder / "numbers"),
            "load_after": os.getloadavg()[0],
        }
        print(json.dumps(result, indent=2))
        print(save_result("serving", result))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
