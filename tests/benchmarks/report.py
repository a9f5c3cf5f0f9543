"""How long does the report of a data set take, how large is it, and how soon can it be used in a browser?

    python -m tests.benchmarks.report
    python -m tests.benchmarks.report --cases 1000 --points 15400 --gallery 300

A data set of made-up parts (bodies of voxels with smooth fields, about 21,000 points as in the published one) is
written first. Then `pipelines.report` makes its report in a process of its own, on two cores, with its memory
measured, and the page is opened in Chromium from disk. The run with the least time of three counts. Compared with that
are: a data set of a tenth of the cases (memory), reading the same cases alone (time), and the same surfaces as JSON of
rounded numbers, deflated and in base64, as is often done (size). Where other work runs on the machine, compare the
processors' seconds rather than the elapsed ones.

Needs Chromium (`LPBF_CHROMIUM` names one), no GPU and no data. The result goes to results/report.json.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import psutil

from lpbf_data.case.case import Case
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.geometry.outer_surface import extract_surface
from lpbf_data.stores.manifest import MANIFEST_NAME
from lpbf_data.viewer.shown_fields import column_of, fields_of, shown_fields
from lpbf_data.viewer.surface_codec import encode_surface
from pipelines.reporting.documents import BUILD_NAME
from pipelines.reporting.gallery_parts import KeptCases
from tests.benchmarks.machine import describe_machine, save_result
from tests.browser import FLAGS, find_chromium
from tests.data_support import make_case, write_dataset

IN_A_SHARD = 20
RUNS = 3
COMPARED = 30  # parts of which the size as JSON is computed too


class MadeCases(Sequence[Case]):
    """Parts that are made when they are indexed: a thousand don't fit into memory."""

    def __init__(self, count: int, points: int) -> None:
        self._count = count
        self._make = functools.lru_cache(maxsize=2 * IN_A_SHARD)(lambda seed: make_case(seed, points))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | Sequence[Case]:
        return self._make(index) if isinstance(index, int) else [self._make(i) for i in range(self._count)[index]]


def make_dataset(folder: Path, count: int, points: int) -> Path:
    """Write a data set in Parquet alone: the report reads one format."""
    folder.mkdir()
    write_dataset(folder, {"train": MadeCases(count, points)}, shards=-(-count // IN_A_SHARD), formats=["parquet"])
    described = {
        "configuration": {"filters": {"max_points": 50_000}, "splits": "train=1"},
        "manifest_sha256": hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest(),
    }
    (folder / BUILD_NAME).write_text(json.dumps(described), encoding="utf-8")
    return folder


def measure_command(dataset: Path, page: Path, gallery: int) -> dict[str, float]:
    """Seconds and peak memory of the command with all processes that it starts, on two cores, if there are more."""
    words = [sys.executable, "-m", "pipelines.report", str(dataset), "--out", str(page), "--gallery", str(gallery)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
        family = psutil.Process(command.pid)
        family.cpu_affinity(family.cpu_affinity()[:2])
        peak = 0
        while command.poll() is None:
            peak = max(peak, _resident_bytes(family))
            time.sleep(0.1)
    assert command.returncode == 0, command.returncode
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak / 1e6}


def _resident_bytes(family: psutil.Process) -> int:
    """Resident memory of a process and all that it started; shared pages are counted for each."""
    found = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (family, *family.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += process.memory_info().rss
    return found


def measure_reading(dataset: Path, gallery: int) -> float:
    """Seconds of reading the cases of the gallery alone."""
    cases = KeptCases(DatasetFolder(dataset))
    names = fields_of(field.column for field in shown_fields(cases.field_specs))
    started = time.perf_counter()
    for record in cases.manifest.records[:gallery]:
        cases.read(record.case_id, names)
    return time.perf_counter() - started


def compare_bytes(dataset: Path) -> dict[str, float]:
    """Bytes of a part in the page, as it is stored there and as JSON would be."""
    cases = KeptCases(DatasetFolder(dataset))
    fields = shown_fields(cases.field_specs)
    packed = plain = points = 0
    for record in cases.manifest.records[:COMPARED]:
        case = cases.read(record.case_id, fields_of(field.column for field in fields))
        surface = extract_surface(case.points, case.cells)
        numbers = surface.point_numbers
        columns = {field.column: column_of(case, field.column)[numbers] for field in fields}
        packed += len(base64.b64encode(encode_surface(case.points[numbers], surface.faces, columns)))
        content = {
            "points": np.round(case.points[numbers].astype(float), 3).tolist(),
            "faces": surface.faces.tolist(),
            "columns": {name: [float(f"{v:.4g}") for v in values] for name, values in columns.items()},
        }
        text = json.dumps(content, separators=(",", ":")).encode()
        plain += len(base64.b64encode(zlib.compress(text, 9)))
        points += len(numbers)
    return {
        "surface_points_a_part": points / COMPARED,
        "bytes_a_part": packed / COMPARED,
        "json_bytes_a_part": plain / COMPARED,
        "ratio": plain / packed,
    }


def measure_browser(page: Path, times: int = 5) -> dict[str, Any]:
    """Median milliseconds from opening the page until it can be used and is read, and from a click to a part in 3D."""
    from playwright.sync_api import sync_playwright

    ready, opened, whole = [], [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=find_chromium(), headless=True, args=FLAGS)
        for _ in range(times):
            tab = browser.new_page(viewport={"width": 1400, "height": 900})
            tab.goto(page.resolve().as_uri(), wait_until="commit")
            tab.wait_for_selector("html[data-ready]")
            ready.append(float(tab.evaluate("document.documentElement.dataset.readyAfter")))
            tab.wait_for_load_state("load")
            whole.append(float(tab.evaluate("performance.getEntriesByType('navigation')[0].domComplete")))
            before = time.perf_counter()
            tab.locator(".part:visible").first.click()
            tab.wait_for_selector("#viewer-canvas[data-shown]")
            opened.append(1000 * (time.perf_counter() - before))
            tab.close()
        version = browser.version
        browser.close()
    middle = {
        name: float(np.median(v)) for name, v in (("usable", ready), ("read_whole", whole), ("part_opens", opened))
    }
    return {"chromium": version, "milliseconds": middle}


def measure(count: int, points: int, gallery: int) -> dict[str, Any]:
    """Measure everything, on one data set and on one of a tenth of its cases."""
    with tempfile.TemporaryDirectory() as name:
        dataset, page = make_dataset(Path(name) / "lpbf", count, points), Path(name) / "report.html"
        tenth = measure_command(make_dataset(Path(name) / "tenth", count // 10, points), page, gallery // 10)
        command = min((measure_command(dataset, page, gallery) for _ in range(RUNS)), key=lambda run: run["seconds"])
        load = os.getloadavg()[0]
        reading = measure_reading(dataset, gallery)
        result = {
            "cases": count,
            "points_a_case": KeptCases(DatasetFolder(dataset)).manifest.table["num_points"].to_numpy().mean(),
            "parts_in_3d": page.read_text(encoding="utf-8").count('id="surface-'),
            **{f"report_{key}": value for key, value in command.items()},
            "load_average": load,
            "peak_mb_of_a_tenth": tenth["peak_mb"],
            "peak_against_a_tenth": command["peak_mb"] / tenth["peak_mb"],
            "reading_the_same_cases_seconds": reading,
            "report_against_reading": command["seconds"] / reading,
            "page_mb": page.stat().st_size / 1e6,
            **compare_bytes(dataset),
            "browser": measure_browser(page),
        }
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}


def main() -> None:
    """Measure and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="cases of the data set")
    parser.add_argument("--points", type=int, default=15_400, help="size of the parts: about 21,000 points each")
    parser.add_argument("--gallery", type=int, default=300, help="parts in 3D in the report")
    asked = parser.parse_args()
    result = measure(asked.cases, asked.points, asked.gallery)
    packages = ("numpy", "pyarrow", "pyvista", "vtk", "playwright")
    print(json.dumps(result, indent=2))
    print(save_result("report", {"machine": describe_machine(packages), "report": result}))


if __name__ == "__main__":
    main()
