"""Fifty simulated parts beside Table 6 of the paper, after the published filter on both sides.

python -m tests.benchmarks.compare_table6
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from lpbf_data.case.record import Measures
from pipelines.building.engine import SERIAL
from pipelines.measuring.measure import measure_case
from pipelines.netfabb.run import NetfabbRun
from pipelines.simulate import run_simulation
from pipelines.simulation.request import SimulationOptions, check_request
from pipelines.sources.case_files import FolderFiles
from tests.benchmarks.machine import describe_machine, save_result

CASES: Final = 50
STATISTICS: Final = ("mean", "standard deviation", "least", "25 %", "50 %", "75 %", "largest")
TABLE_6: Final = {
    "aspect_ratio": (1.6421, 0.43794, 1.0667, 1.28, 1.4733, 1.9072, 2.9933),
    "height_mm": (29.429, 23.246, 0.6, 7.8, 21.6, 60.0, 60.0),
    "largest_z_displacement_mm": (0.29526, 0.21064, 0.000485, 0.13827, 0.27075, 0.41962, 0.99777),
}
"""Figures of the paper's Table 6, in the order of STATISTICS."""


def describe(values: list[float]) -> dict[str, float]:
    """The statistics of Table 6."""
    array = np.array(values)
    numbers = [array.mean(), array.std(), *np.percentile(array, [0, 25, 50, 75, 100])]
    return dict(zip(STATISTICS, (round(float(n), 4) for n in numbers), strict=True))


def measure_kept(folder: Path) -> list[Measures]:
    """Simulate, and measure the cases that the published filter keeps."""
    outcomes = run_simulation(check_request(str(folder), SimulationOptions(cases=CASES)), SERIAL)
    measures = []
    for outcome in outcomes:
        if outcome.status == "completed" and not outcome.rejected_by:
            run = NetfabbRun(outcome.case_id, FolderFiles(folder / outcome.case_id))
            case = run.read_case(("displacement", "von_mises_stress"))
            measures.append(measure_case(case, run.reduce_build(case.points), run.input.recoater_tolerance))
    return measures


def main() -> None:
    """Simulate, measure, save the figures."""
    with tempfile.TemporaryDirectory() as folder:
        measures = measure_kept(Path(folder))
    ours = {
        "aspect_ratio": describe([one.aspect_ratio_mean for one in measures]),
        "height_mm": describe([one.height for one in measures]),
        "largest_z_displacement_mm": describe([one.displacement_z_max for one in measures]),
        "points": describe([float(one.num_points) for one in measures]),
    }
    content = {
        "machine": describe_machine(("numpy", "scipy", "pyamg", "manifold3d")),
        "cases": CASES,
        "kept_by_the_published_filter": len(measures),
        "with_recoater_interference": sum(one.recoater_interference for one in measures),
        "ours": ours,
        "table_6": {name: dict(zip(STATISTICS, row, strict=True)) for name, row in TABLE_6.items()},
    }
    print(save_result("compare_table6", content))


if __name__ == "__main__":
    main()
