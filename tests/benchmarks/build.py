"""How much faster is `pipelines.build` than a straightforward script, on one core?

    python -m tests.benchmarks.build

Both turn the same zip of generated cases (20,181 points, five layers, 676 entries of the zip a case, as in NetFabb's
batches) into a data set: they read the finished part, take for each of its points the least clearance and the largest
upward displacement over the build, count edges, compute aspect ratios, and write. The script opens the zip anew for
every file that it reads and loops over cells and points in Python, as public extraction scripts do, and writes one
compressed npz a case. The build writes Parquet and Zarr, and reads both back to check them.

Needs no GPU and no data; pins itself to one core. The result goes to results/build.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
import unittest.mock
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.build import run_build
from pipelines.building import shards
from pipelines.building.request import check_request
from pipelines.selection.filters import Filters
from tests.benchmarks.machine import describe_machine, save_result
from tests.netfabb_cases import Part, write_part

EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
FRAMES, BUILD_FRAMES = 12, 10
ENTRIES = 676  # files of a case in the batches that the public data set was made from
FILES = FRAMES * 14 + 6 + 2 + 3  # files of a generated case: variables, geometries, case files, texts


def generate(folder: Path, count: int) -> Path:
    """A zip of cases of 31 × 31 × 21 points in five layers."""
    archive = folder / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as target:
        for number in range(count):
            part = Part(
                f"{1000 + number}_11b839a3_1", (30, 30, 20), 4, (0.8, 0.8, 0.6), amplitude=0.01 + 0.001 * number
            )
            root = write_part(folder / "cases", part)
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    target.write(path, f"SandBox/{part.case_id}/{path.relative_to(root).as_posix()}")
                    path.unlink()
            for extra in range(ENTRIES - FILES):
                target.writestr(f"SandBox/{part.case_id}/results/thermal00_{extra}.tmp.ens", bytes(2000))
    return archive


def plain_case(archive: Path, case_id: str, out: Path) -> None:
    """Convert one case as a straightforward script does."""

    def read(name: str) -> bytes:
        with zipfile.ZipFile(archive) as opened:
            return opened.read(f"SandBox/{case_id}/results/{name}")

    def geometry(number: int) -> tuple[np.ndarray, list[list[int]]]:
        stream = io.BytesIO(read(f"mechanical_{number}.geo"))
        stream.seek(80 * 6 + 4 + 80 * 2)
        count = int.from_bytes(stream.read(4), "little")
        points = np.frombuffer(stream.read(12 * count), "<f4").reshape(3, count).T
        stream.seek(80, io.SEEK_CUR)
        number_of_cells = int.from_bytes(stream.read(4), "little")
        return points, [[n - 1 for n in np.frombuffer(stream.read(32), "<i4").tolist()] for _ in range(number_of_cells)]

    def variable(frame: int, short: str, width: int) -> np.ndarray:
        return np.frombuffer(read(f"mechanical00_{frame}.{short}.ens")[244:], "<f4").reshape(width, -1).T

    points, cells = geometry(6)
    edges = set()
    ratios = []
    for cell in cells:
        lengths = []
        for a, b in EDGES:
            edges.add((cell[a], cell[b]))
            edges.add((cell[b], cell[a]))
            lengths.append(np.linalg.norm(points[cell[a]] - points[cell[b]]))
        ratios.append(max(lengths) / min(lengths))
    place = {tuple(point): number for number, point in enumerate(points.tolist())}
    clearance, upward = [np.inf] * len(points), [-np.inf] * len(points)
    for frame in range(1, BUILD_FRAMES + 1):
        frame_points, _ = geometry((frame + 1) // 2)
        frame_clearance, frame_dis = variable(frame, "rct", 1), variable(frame, "dis", 3)
        for number, point in enumerate(frame_points.tolist()):
            here = place.get(tuple(point))
            if here is not None:
                clearance[here] = min(clearance[here], frame_clearance[number, 0])
                upward[here] = max(upward[here], frame_dis[number, 2])
    np.savez_compressed(
        out / f"{case_id}.npz",
        pos=points,
        elems=np.array(cells),
        edge_index=np.array(sorted(edges)).T,
        disp=variable(FRAMES, "dis", 3),
        temp=variable(FRAMES, "tmp", 1),
        vmstr=variable(FRAMES, "svm", 1),
        clearance=np.array(clearance, np.float32),
        upward=np.array(upward, np.float32),
        aspect_ratio=np.array([np.mean(ratios), np.max(ratios)]),
    )


def our_build(archive: Path, out: Path) -> tuple[float, int]:
    """Seconds of a build in this process, with Parquet and Zarr written and read back, and bytes of the data set."""
    request = check_request(
        [str(archive)], str(out), Filters(), "train=1", 0, "auto",
        ["displacement", "temperature", "von_mises_stress"], ["parquet", "zarr"], time_limit=600, replace=False,
    )  # fmt: skip
    started = time.perf_counter()
    # All cases in one shard, as a full shard of a large data set; a build of so few cases would make four shards.
    with contextlib.redirect_stderr(io.StringIO()), unittest.mock.patch.object(shards, "MIN_SHARDS", 1):
        records = run_build(request)
    seconds = time.perf_counter() - started
    assert all(record.status == "kept" for record in records), "a generated case was not kept"
    return seconds, sum(p.stat().st_size for p in out.rglob("*") if p.is_file() and ".build" not in p.parts)


def measure(cases: int, plain_cases: int) -> dict[str, Any]:
    """Time the build and the script on the same archive, after one build that isn't timed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = generate(folder, cases)
        our_build(archive, folder / "warm-up")
        seconds, size = our_build(archive, folder / "lpbf")
        (folder / "npz").mkdir()
        started = time.perf_counter()
        for number in range(plain_cases):
            plain_case(archive, f"{1000 + number}_11b839a3_1", folder / "npz")
        plain = (time.perf_counter() - started) / plain_cases
        plain_size = sum(p.stat().st_size for p in (folder / "npz").iterdir()) / plain_cases
    return {
        "cases": cases,
        "points_per_case": 31 * 31 * 21,
        "frames_per_case": FRAMES,
        "seconds_per_case": seconds / cases,
        "plain_seconds_per_case": plain,
        "ratio": plain / (seconds / cases),
        "bytes_per_case_both_formats": size / cases,
        "plain_bytes_per_case": plain_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20, help="cases that the build converts")
    parser.add_argument("--plain_cases", type=int, default=4, help="those of them that the script converts")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    result = measure(options.cases, options.plain_cases)
    path = save_result("build", {"machine": describe_machine(), **result})
    print(f"{result['seconds_per_case']:.3f} s a case, straightforward {result['plain_seconds_per_case']:.2f} s: ")
    print(f"{result['ratio']:.1f} times faster; {path}")


if __name__ == "__main__":
    main()
