"""Where does a build's time go, how much faster are two workers, and does its memory stay constant?

    python -m tests.benchmarks.build_throughput --src CORPUS --scaling MANY   # zips of simulated parts
    python -m tests.benchmarks.build_throughput --memory 27000                # many small cases through one worker

- `--src`: seconds a case of a whole build on one core, beside the sum of its stages (inflate, decode, measure, encode,
  flush, read back, hash), each timed alone on the same cases in the same process.
- `--scaling`, only together with `--src`: a build on a Dask cluster of one worker beside one of two.
- `--memory`: resident memory of one worker over a build of so many small cases.

CORPUS is made with `python -m pipelines.simulate --out CORPUS --cases 40 --points 20000 --archive`; its parts of more
points than the published data set has (50,000) are left out. MANY has cases enough for two workers to end at about the
same time: `--cases 1000 --points 2000`.

Needs no GPU, but Linux. Results go to results/build_throughput.json and results/build_memory.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import threading
import time
import unittest.mock
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from distributed import Client, LocalCluster

from lpbf_data.case.record import attributes_of
from lpbf_data.case.schema import DEFAULT_FIELDS, resolve_fields
from lpbf_data.durable import flush_file, flush_tree, sha256_of_file, sha256_of_tree
from lpbf_data.stores.parquet import ParquetShard, write_shard
from lpbf_data.stores.zarr_parts import ZarrPart
from lpbf_data.stores.zarr_parts import write_part as write_zarr_part
from pipelines.build import run_build
from pipelines.building import shards
from pipelines.building.engine import SERIAL, Resources
from pipelines.building.request import BuildRequest, check_request
from pipelines.measuring.convert import measure_location
from pipelines.measuring.fingerprint import geometry_digests
from pipelines.measuring.measure import field_statistics, measure_case, measured_specs
from pipelines.netfabb.run import NetfabbRun
from pipelines.selection.filters import Filters
from pipelines.sources.case_files import CaseFiles, open_case
from pipelines.sources.finding import find_cases
from tests.benchmarks.machine import describe_machine, save_result
from tests.netfabb_cases import Part, write_part

SPECS = resolve_fields(DEFAULT_FIELDS)
MOST_POINTS = 50_000
"""Points of the largest case of the published data set; larger ones are left out."""


def request(src: Path, out: Path) -> BuildRequest:
    return check_request(
        [str(src)], str(out), Filters(preset="all"), "train=1", 0, "auto",
        list(DEFAULT_FIELDS), ["parquet", "zarr"], time_limit=600,
    )  # fmt: skip


class InMemory:
    """Files of a case, of which each is inflated once and then kept in memory.

    Attributes:
        contents: Name to bytes of the files that were read.
    """

    def __init__(self, files: CaseFiles) -> None:
        self._files = files
        self.contents: dict[str, bytes] = {}

    @property
    def sizes(self) -> Mapping[str, int]:
        return self._files.sizes

    def read(self, name: str) -> bytes:
        if name not in self.contents:
            self.contents[name] = self._files.read(name)
        return self.contents[name]

    def crc32(self, name: str, data: bytes) -> int:
        return self._files.crc32(name, data)

    def signature(self) -> str:
        return self._files.signature()

    def content_digest(self) -> str:
        return self._files.content_digest()


def timed_parts(src: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds a case of each stage of the work alone, and bytes of 20,000 points in each format."""
    seconds = dict.fromkeys(
        ("inflate", "decode", "measure", "encode parquet", "encode zarr", "flush", "read back", "hash"), 0.0
    )
    locations = find_cases([src]).locations
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for location in locations:
            files = InMemory(open_case(location))
            _decode(location.case_id, files)  # untimed: finds out which files are read, and fills caches
            started = time.perf_counter()
            for read in files.contents:
                open_case(location).read(read)
            seconds["inflate"] += time.perf_counter() - started
            started = time.perf_counter()
            case, build, tolerance = _decode(location.case_id, files)
            _decode_last(location.case_id, files)  # writing reads the last frame once more
            seconds["decode"] += time.perf_counter() - started
            started = time.perf_counter()
            measure_case(case, build, tolerance)
            field_statistics(case, measured_specs())
            geometry_digests(case)
            seconds["measure"] += time.perf_counter() - started
            record = measure_location(location).record
            cases.append(shards.Case(case.case_id, case.points, case.cells, case.fields, attributes_of(record)))
        parquet, zarr = folder / "x.parquet", folder / "x.zarr"
        for label, action in (
            ("encode parquet", lambda: write_shard(parquet, cases, SPECS)),
            ("encode zarr", lambda: write_zarr_part(zarr, cases, SPECS)),
            ("flush", lambda: (flush_file(parquet), flush_tree(zarr))),
            ("read back", lambda: [shard.read_case(i, SPECS) for shard in (ParquetShard(parquet), ZarrPart(zarr))
                                   for i in range(len(cases))]),
            ("hash", lambda: (sha256_of_file(parquet), sha256_of_tree(zarr))),
        ):  # fmt: skip
            started = time.perf_counter()
            action()
            seconds[label] = time.perf_counter() - started
        sizes = {"parquet": parquet.stat().st_size, "zarr": sha256_of_tree(zarr)[1]}
    count = len(locations)
    points = sum(case.num_points for case in cases)
    per_20k = {name: size / points * 20_000 for name, size in sizes.items()}
    return {name: value / count for name, value in seconds.items()}, per_20k


def _decode(case_id: str, files: InMemory) -> tuple[Any, Any, float | None]:
    run = NetfabbRun(case_id, files)
    case = run.read_case(DEFAULT_FIELDS)
    build = run.reduce_build(case.points)
    info = run.info()
    from pipelines.measuring.convert import _with_reductions

    return _with_reductions(case, (build.clearance_min, build.displacement_z_max)), build, info.recoater_tolerance


def _decode_last(case_id: str, files: InMemory) -> None:
    NetfabbRun(case_id, files).read_case(DEFAULT_FIELDS)


def whole_build(src: Path, resources: Resources = SERIAL, *, one_shard: bool = True) -> float:
    """Seconds of a build into a new folder."""
    out = Path(tempfile.mkdtemp()) / "lpbf"
    least = unittest.mock.patch.object(shards, "MIN_SHARDS", 1 if one_shard else 4)
    try:
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()), least:
            run_build(request(src, out), resources)
        return time.perf_counter() - started
    finally:
        shutil.rmtree(out.parent)


def local_cluster(count: int) -> LocalCluster:
    return LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0)


def with_workers(src: Path, count: int) -> float:
    """Least seconds of three builds on a cluster that has already done one."""
    with local_cluster(count) as cluster, Client(cluster) as client:
        client.run(lambda: __import__("pipelines.building.stages") and None)
        whole_build(src, Resources(scheduler=cluster.scheduler_address), one_shard=False)
        return min(whole_build(src, Resources(scheduler=cluster.scheduler_address), one_shard=False) for _ in range(3))


def of_published_sizes(src: Path, archive: Path) -> list[int]:
    """Archive the cases that are no larger than published ones; returns their numbers of points, ascending."""
    points = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for location in find_cases([src]).locations:
            measures = measure_location(location).record.measures
            if measures and measures.num_points <= MOST_POINTS:
                points.append(measures.num_points)
                files = open_case(location)
                for name in files.sizes:
                    target.writestr(f"SandBox/{location.case_id}/{name}", files.read(name))
    return sorted(points)


def throughput(everything: Path) -> dict[str, Any]:
    """Time of a whole build on one core beside the sum of its stages, for cases of published sizes."""
    with tempfile.TemporaryDirectory() as name:
        src = Path(name) / "data_0-1000.zip"
        points = of_published_sizes(everything, src)
        return {"points_median": points[len(points) // 2], "points_mean": sum(points) / len(points), **timings(src)}


def timings(src: Path) -> dict[str, Any]:
    """Time of a whole build on one core (the least of three) beside the sum of its stages."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    locations = find_cases([src]).locations
    whole_build(src)
    seconds = min(whole_build(src) for _ in range(3)) / len(locations)
    parts, sizes = timed_parts(src)
    os.sched_setaffinity(0, cores)
    return {
        "cases": len(locations),
        "seconds_per_case": seconds,
        "parts_seconds_per_case": parts,
        "ratio_to_sum_of_parts": seconds / sum(parts.values()),
        "bytes_per_20000_points": sizes,
    }


def scaling(src: Path) -> dict[str, Any]:
    """Time of a build on one worker beside two; starting the cluster isn't timed."""
    seconds = {count: with_workers(src, count) for count in (1, 2)}
    return {
        "cases": len(find_cases([src]).locations),
        "seconds_by_workers": seconds,
        "speedup_of_two_workers": seconds[1] / seconds[2],
    }


def many_small_cases(archive: Path, count: int) -> None:
    """A zip of `count` small cases that differ in name only."""
    with tempfile.TemporaryDirectory() as name:
        root = write_part(Path(name), Part("x", shape=(2, 2, 1)))
        keep = (".out", ".in", ".case", ".geo", ".dis.ens", ".rct.ens", ".svm.ens", ".tmp.ens", ".typ.ens")
        files = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.name.endswith(keep)
        }
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for number in range(count):
            for path, data in files.items():
                target.writestr(f"SandBox/{number:06d}_11b839a3_1/{path}", data)


def memory(count: int) -> dict[str, Any]:
    """Resident memory of one worker over a build of many small cases, read once a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many_small_cases(folder / "data.zip", count)
        samples: list[tuple[float, int]] = []
        stop = threading.Event()
        with LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster:
            worker = psutil.Process(next(iter(cluster.workers.values())).pid)
            started = time.monotonic()

            def watch() -> None:
                while not stop.wait(1.0):
                    samples.append((time.monotonic() - started, worker.memory_info().rss))

            watcher = threading.Thread(target=watch)
            watcher.start()
            out = folder / "lpbf"
            with contextlib.redirect_stderr(io.StringIO()):
                records = run_build(request(folder / "data.zip", out), Resources(scheduler=cluster.scheduler_address))
            seconds = time.monotonic() - started
            stop.set()
            watcher.join()
    tenths = [samples[len(samples) * i // 10][1] / 1e6 for i in range(1, 10)] + [samples[-1][1] / 1e6]
    return {
        "cases": len(records),
        "kept": sum(record.status == "kept" for record in records),
        "seconds": seconds,
        "resident_mb_by_tenth_of_the_build": tenths,
        "growth_of_the_last_half_mb": tenths[-1] - tenths[4],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, help="zips of cases whose build is timed on one core")
    parser.add_argument("--scaling", type=Path, help="zips of cases for one worker and two")
    parser.add_argument("--memory", type=int, help="number of small cases for the memory of one worker")
    options = parser.parse_args()
    if options.src:
        result = throughput(options.src)
        if options.scaling:
            result |= {"scaling": scaling(options.scaling)}
        path = save_result("build_throughput", {"machine": describe_machine(), **result})
        for label, seconds in result["parts_seconds_per_case"].items():
            print(f"{label:16s} {1000 * seconds:7.1f} ms")
        print(f"{'sum':16s} {1000 * sum(result['parts_seconds_per_case'].values()):7.1f} ms")
        whole, ratio = 1000 * result["seconds_per_case"], result["ratio_to_sum_of_parts"]
        print(f"{'whole build':16s} {whole:7.1f} ms, {ratio:.2f} × the sum")
        if options.scaling:
            print(f"two workers: {result['scaling']['speedup_of_two_workers']:.2f} × one")
        print(path)
    if options.memory:
        result = memory(options.memory)
        path = save_result("build_memory", {"machine": describe_machine(), **result})
        print(f"{result}; {path}")


if __name__ == "__main__":
    main()
