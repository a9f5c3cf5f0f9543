"""Candidates of both draws as they are planned, and the acceptances that make of them what each draw promises.

    python -m tests.benchmarks.calibrate_draws --candidates 400 --points 2000

Run it for each version of the simulator, on as many cores as there are, and put what it prints into
pipelines/simulation/parts/draws.py.
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

SEED: Final = 1_000_003  # of no corpus
ROUNDS: Final = 200
CALIBRATIONS: Final[dict[str, CalibrationName]] = {"balanced": "measured", "published": "netfabb"}
"""What each draw is meant to be simulated with: the published parts are NetFabb's."""


def simulate_candidates(draw: Draw, count: int, points: int, workers: int | None) -> tuple[CaseOutcome, ...]:
    """The first candidates of many streams, none of them passed over."""
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
    """Factors by class of height and of displacement that give each class a quarter of what is accepted.

    Iterative proportional fitting; the largest factor of each kind is 1.
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
    """Shares of candidates, and what a draw should accept."""
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
    """Simulate, fit, save, print what draws.py should say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=400, help="candidates of each draw")
    parser.add_argument("--points", type=int, default=2000, help="median number of points")
    parser.add_argument("--workers", type=int, help="processes; one a core by default")
    options = parser.parse_args()
    draws = {
        draw.name: describe_draw(draw, simulate_candidates(draw, options.candidates, options.points, options.workers))
        for draw in (BALANCED, PUBLISHED)
    }
    content = {
        "machine": describe_machine(("numpy", "scipy", "pyamg", "manifold3d")),
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
