"""Which acceptances do the draws `balanced` and `published` need, so that their corpora have the shares they promise?

    python -m tests.benchmarks.calibrate_draws --candidates 400 --points 2000

The first candidate of many streams of each draw is simulated, and none is passed over. From the shares among them
follow the acceptances: `balanced` is to have as many hit as clear parts; of `published` each class of heights and each
class of largest Z displacements is to have a quarter of the parts. Run it for each version of the simulator, and put
what it prints into pipelines/simulation/parts/draws.py.

Needs no GPU and no data; uses all cores. The result goes to results/calibrate_draws.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.building.engine import Resources
from pipelines.simulate import run_simulation
from pipelines.simulation.choices import CalibrationName
from pipelines.simulation.materials.material import Material
from pipelines.simulation.parts.draws import (
    BALANCED,
    DISPLACEMENT_CLASSES,
    HEIGHT_CLASSES,
    PUBLISHED,
    Draw,
    plan_streams,
)
from pipelines.simulation.parts.families import FAMILIES
from pipelines.simulation.parts.outcomes import CaseOutcome
from pipelines.simulation.request import SimulationOptions, SimulationRequest, check_request
from pipelines.simulation.results.identity import VERSION
from tests.benchmarks.compare_table6 import describe
from tests.benchmarks.machine import describe_machine, save_result

SEED: Final = 1_000_003  # used for no corpus
ROUNDS: Final = 200
CALIBRATIONS: Final[dict[str, CalibrationName]] = {"balanced": "measured", "published": "netfabb"}
"""The calibration that each draw is meant to be simulated with; the published parts were simulated with NetFabb."""


def simulate_candidates(draw: Draw, count: int, points: int, workers: int | None) -> tuple[CaseOutcome, ...]:
    """Simulate the first candidate of each of `count` streams, without passing any over."""
    streams = plan_streams(draw.name, SEED, count, points, tuple(FAMILIES))
    parts = tuple((stream.case_id, stream.candidate(0)[0]) for stream in streams)
    with tempfile.TemporaryDirectory() as folder:
        options = SimulationOptions(points=points, calibration=CALIBRATIONS[draw.name])
        known: Material = check_request(folder, options).material
        request = SimulationRequest(Path(folder) / "out", options, known, parts, {})
        return run_simulation(request, Resources(workers=workers))


def fit_acceptances(
    heights: NDArray[np.float64], moved: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors by class of height and of displacement that give each class a quarter of the accepted parts.

    By iterative proportional fitting; the largest factor of each kind is 1.

    Args:
        heights: Height of each candidate, mm.
        moved: Largest Z displacement of each candidate, mm.
    """
    rows, columns = np.searchsorted(HEIGHT_CLASSES, heights), np.searchsorted(DISPLACEMENT_CLASSES, moved)
    by_height, by_displacement = np.ones(4), np.ones(4)
    for _ in range(ROUNDS):
        by_height = _level(by_height, rows, by_displacement[columns])
        by_displacement = _level(by_displacement, columns, by_height[rows])
    return by_height, by_displacement


def _level(factors: NDArray[np.float64], classes: NDArray[np.intp], others: NDArray[np.float64]) -> NDArray[np.float64]:
    accepted = np.bincount(classes, factors[classes] * others, minlength=4)
    levelled: NDArray[np.float64] = factors / np.maximum(accepted, 1e-12)
    levelled /= levelled.max()
    return levelled


def describe_draw(draw: Draw, outcomes: tuple[CaseOutcome, ...]) -> dict[str, Any]:
    """Shares among the candidates of a draw, and the acceptances that follow from them."""
    completed = [one for one in outcomes if one.status == "completed"]
    kept = [one for one in completed if not one.rejected_by]
    clear = float(np.mean([not one.recoater_interference for one in kept]))
    heights, moved = (np.array([getattr(one, name) for one in kept]) for name in ("height", "displacement_z_max"))
    content: dict[str, Any] = {
        "calibration": CALIBRATIONS[draw.name],
        "candidates": len(outcomes),
        "no_build_would_survive": sum(not one.survived for one in outcomes),
        "otherwise_failed": sum(one.survived and one.status == "failed" for one in outcomes),
        "within_the_published_limits": len(kept),
        "clear_share": round(clear, 4),
        "height_mm": describe(heights.tolist()),
        "largest_z_displacement_mm": describe(moved.tolist()),
        "points": describe([float(one.num_points) for one in kept]),
    }
    if draw is BALANCED:
        hit = min(1.0, clear / max(1 - clear, 1e-9))
        content |= {"hit": round(hit, 2), "clear": round(min(1.0, (1 - clear) / max(clear, 1e-9)), 2)}
        return content
    by_height, by_displacement = fit_acceptances(heights, moved)
    content["by_height"] = by_height.round(2).tolist()
    content["by_displacement"] = by_displacement.round(2).tolist()
    rows, columns = np.searchsorted(HEIGHT_CLASSES, heights), np.searchsorted(DISPLACEMENT_CLASSES, moved)
    content["accepted_share"] = round(float((by_height[rows] * by_displacement[columns]).mean()), 3)
    return content


def main() -> None:
    """Simulate, fit, save, and print the acceptances for draws.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=400, help="candidates of each draw")
    parser.add_argument("--points", type=int, default=2000, help="median number of points")
    parser.add_argument("--workers", type=int, help="processes; one a core by default")
    options = parser.parse_args()
    draws = {
        draw.name: describe_draw(draw, simulate_candidates(draw, options.candidates, options.points, options.workers))
        for draw in (BALANCED, PUBLISHED)
    }
    content = {
        "machine": describe_machine(("numpy", "scipy", "pyamg", "numba", "manifold3d")),
        "simulator": VERSION,
        "points": options.points,
        "draws": draws,
    }
    print(save_result("calibrate_draws", content))
    for name, told in draws.items():
        wanted = {key: told[key] for key in ("clear", "hit", "by_height", "by_displacement") if key in told}
        print(name, ", ".join(f"{key}={value}" for key, value in wanted.items()))


if __name__ == "__main__":
    main()
