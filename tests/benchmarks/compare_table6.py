"""Do parts of the draw `published` have the statistics of the published data set, Table 6 of the FLARE paper?

    python -m tests.benchmarks.compare_table6 --out folder [--cases 240] [--points 2000] [--seconds 600]

Aspect ratios, heights and largest Z displacements of simulated parts stand beside those of Table 6, with 95 %
confidence intervals. Every case of the draw lies within the published limits, as every row of Table 6 does. Cases are
simulated in batches until there are as many as were asked for or the seconds are over; the same command continues in
the same folder.

Needs no GPU and no data. The result goes to results/compare_table6.json; the share of hits in the corpus of the draw
`balanced`, which stands beside it, is read from results/corpus.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from lpbf_data.case.record import Measures
from pipelines.building.engine import SERIAL
from pipelines.measuring.measure import measure_case
from pipelines.netfabb.run import NetfabbRun
from pipelines.simulate import run_simulation
from pipelines.simulation.parts.outcomes import CaseOutcome
from pipelines.simulation.parts.trial import FAILED, NOT_SURVIVED
from pipelines.simulation.request import SimulationOptions, check_request
from pipelines.simulation.results.identity import VERSION
from pipelines.sources.case_files import FolderFiles
from tests.benchmarks.machine import RESULTS, describe_machine, save_result

SEED: Final = 1_000_005  # used for no corpus
BATCH: Final = 20  # cases that are simulated before the time is checked again
STATISTICS: Final = ("mean", "standard deviation", "least", "25 %", "50 %", "75 %", "largest")
TABLE_6: Final = {
    "aspect_ratio": (1.6421, 0.43794, 1.0667, 1.28, 1.4733, 1.9072, 2.9933),
    "height_mm": (29.429, 23.246, 0.6, 7.8, 21.6, 60.0, 60.0),
    "largest_z_displacement_mm": (0.29526, 0.21064, 0.000485, 0.13827, 0.27075, 0.41962, 0.99777),
}
"""Figures of the paper's Table 6, in the order of STATISTICS."""

_WITH_INTERVAL: Final = ("mean", "standard deviation", "25 %", "50 %", "75 %")  # a bootstrap has none for extremes
_BEFORE_IT_BEGAN: Final = ("of a height", "of walls too thin for its points")  # passed over before any simulation
_RESAMPLED: Final = 2000
_NORMAL: Final = 1.96


@dataclass
class Drawn:
    """Cases of a draw.

    Attributes:
        measures: Measures of each accepted part.
        passed_over: Number of candidates that weren't accepted, by reason.
        failed: Number of cases of which no candidate was accepted.
    """

    measures: list[Measures] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    failed: int = 0


def describe(values: list[float]) -> dict[str, float]:
    """The statistics of Table 6, of some values."""
    array = np.array(values)
    numbers = [array.mean(), array.std(), *np.percentile(array, [0, 25, 50, 75, 100])]
    return dict(zip(STATISTICS, (round(float(n), 4) for n in numbers), strict=True))


def intervals(values: list[float]) -> dict[str, list[float]]:
    """95 % confidence intervals of the statistics, by the percentile bootstrap."""
    rng = np.random.default_rng(0)
    array = np.array(values)
    drawn = [describe(array[rng.integers(len(array), size=len(array))].tolist()) for _ in range(_RESAMPLED)]
    return {
        name: [round(float(np.percentile([one[name] for one in drawn], q)), 4) for q in (2.5, 97.5)]
        for name in _WITH_INTERVAL
    }


def share(count: int, total: int) -> dict[str, Any]:
    """A share with its 95 % confidence interval (Wilson 1927)."""
    p, z = count / total, _NORMAL
    middle, half = p + z**2 / (2 * total), z * np.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    ends = [round(float((middle + sign * half) / (1 + z**2 / total)), 4) for sign in (-1, 1)]
    return {"of": total, "count": count, "share": round(p, 4), "interval": ends}


def measure(folder: Path, outcome: CaseOutcome) -> Measures:
    """Measures of a simulated case, read from its files as the build does."""
    run = NetfabbRun(outcome.case_id, FolderFiles(folder / outcome.case_id))
    case = run.read_case(("displacement", "von_mises_stress"))
    return measure_case(case, run.reduce_build(case.points), run.input.recoater_tolerance)


def draw(folder: Path, cases: int, points: int, seconds: float) -> Drawn:
    """Simulate batch after batch, and measure the accepted parts."""
    deadline, outcomes = time.monotonic() + seconds, ()
    while len(outcomes) < cases and time.monotonic() < deadline:
        options = SimulationOptions(
            cases=min(cases, len(outcomes) + BATCH),
            points=points,
            seed=SEED,
            draw="published",
            calibration="netfabb",
            results="lean",
        )
        outcomes = run_simulation(check_request(str(folder), options), SERIAL)
    found = Drawn()
    for outcome in outcomes:
        found.passed_over += Counter(outcome.passed_over)
        if outcome.status == "completed":
            assert not outcome.rejected_by
            found.measures.append(measure(folder, outcome))
        else:
            found.failed += 1
    return found


def columns(measures: Sequence[Measures]) -> dict[str, list[float]]:
    """The values that Table 6 describes, and numbers of points."""
    return {
        "aspect_ratio": [one.aspect_ratio_mean for one in measures],
        "height_mm": [one.height for one in measures],
        "largest_z_displacement_mm": [one.displacement_z_max for one in measures],
        "points": [float(one.num_points) for one in measures],
    }


def balanced() -> dict[str, Any]:
    """Share of hits in the corpus of the draw `balanced`, from its committed figures."""
    corpus = json.loads((RESULTS / "corpus.json").read_text(encoding="utf-8"))
    cases, clear = int(corpus["coarse"]["cases"]), float(corpus["coarse"]["clear_of_the_blade"])
    return {"simulator": corpus["simulator"], "meet_the_blade": share(round(cases * (1 - clear)), cases)}


def main() -> None:
    """Simulate, measure, save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the simulations, which are kept")
    parser.add_argument("--cases", type=int, default=240, help="accepted parts")
    parser.add_argument("--points", type=int, default=2000, help="median number of points")
    parser.add_argument("--seconds", type=float, default=600.0, help="after which no new batch begins")
    options = parser.parse_args()
    found = draw(Path(options.out), options.cases, options.points, options.seconds)
    kept = columns(found.measures)
    candidates = len(found.measures) + sum(found.passed_over.values())
    simulated = candidates - sum(found.passed_over[reason] for reason in _BEFORE_IT_BEGAN)
    content = {
        "machine": describe_machine(("numpy", "scipy", "pyamg", "numba", "manifold3d")),
        "simulator": VERSION,
        "draw": "published",
        "calibration": "netfabb",
        "median_points_asked_for": options.points,
        "parts": len(found.measures),
        "cases_without_an_accepted_candidate": found.failed,
        "candidates": {
            "accepted": share(len(found.measures), candidates),
            **{
                f"{reason}, of those simulated": share(found.passed_over[reason], simulated)
                for reason in (NOT_SURVIVED, FAILED)
            },
            "passed_over": dict(sorted(found.passed_over.items())),
        },
        "meet_the_blade": share(sum(one.recoater_interference for one in found.measures), len(found.measures)),
        "ours": {name: describe(values) for name, values in kept.items()},
        "intervals_95": {name: intervals(values) for name, values in kept.items()},
        "table_6": {name: dict(zip(STATISTICS, row, strict=True)) for name, row in TABLE_6.items()},
        "balanced": balanced(),
    }
    print(save_result("compare_table6", content))


if __name__ == "__main__":
    main()
