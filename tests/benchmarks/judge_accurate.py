"""How good is an `lpbf_accurate` model on unseen designs, by size and family, and on two real parts of NetFabb?

    python -m flare_model.evaluate --checkpoint model/ --data lpbf/ --out judged/ --false_alarms 0.05
    LPBF_NETFABB_SAMPLES=folder python -m tests.benchmarks.judge_accurate --checkpoint model/ --data lpbf/ \\
        --evaluation judged/ --run run/

Errors, hits and intervals on the test split are computed from what that evaluation stored, without predicting again.
Only NetFabb's two parts are predicted here, and compared with the simulator, with both calibrations, at the points
that its mesh and NetFabb's share. They are of Inc625 and the model was trained on Ti64: no material scale is applied,
so the error after the best single factor says more than the error as it is.

Parts whose source's name contains "fine" were simulated with about 20,000 points, the others with about 2,000. Needs
no GPU; without LPBF_NETFABB_SAMPLES (see `compare_netfabb`) NetFabb's parts are left out. The result goes to
results/judge_accurate.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flare_model.checkpoints.surrogate import Surrogate, from_pretrained
from flare_model.data.batches import Batch
from flare_model.data.intervals import Intervals, read_intervals
from flare_model.data.point_fields import column_names, resolve_inputs, resolve_targets
from flare_model.data.splits import Split, open_loader
from flare_model.judging.conformal import coverage
from flare_model.judging.interference import HitScore, assess, detect
from flare_model.judging.interval_calibration import ResidualCollector
from flare_model.judging.risk_curves import describe
from tests.benchmarks.machine import describe_machine, save_result

FALSE_ALARMS: Final = 0.05
_LARGE: Final = "fine"  # in the names of folders of parts that were simulated with about 20,000 points
COARSE, FINE = "about 2,000 points", "about 20,000 points"


def rows_by_target(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Relative L2 error by target over some cases, and the 95 % quantile of errors over that of predicting zero."""
    found: dict[str, Any] = {}
    for target in dict.fromkeys(row["target"] for row in rows):
        model, zero = (
            [row for row in rows if (row["target"], row["predictor"]) == (target, name)] for name in ("model", "zero")
        )
        relative = [row["relative_l2"] for row in model if row["relative_l2"] is not None]
        found[target] = {
            "cases": len(model),
            "relative_l2_mean": round(float(np.mean(relative)), 4) if relative else None,
            "relative_l2_median": round(float(np.median(relative)), 4) if relative else None,
            "p95_error_over_zeros": round(
                float(np.mean([row["p95_error"] for row in model]) / np.mean([row["p95_error"] for row in zero])), 4
            ),
        }
    return found


def same_designs(rows: Sequence[Mapping[str, Any]], designs: Mapping[str, str], large: set[str]) -> dict[str, Any]:
    """Relative L2 error of the Z displacement by size, for the designs that there are at both sizes."""
    by_size: list[dict[str, float]] = [{}, {}]
    for row in rows:
        if (row["target"], row["predictor"]) == ("displacement_z", "model") and row["relative_l2"] is not None:
            by_size[row["case_id"] in large][designs[row["case_id"]]] = row["relative_l2"]
    both = sorted(by_size[0].keys() & by_size[1].keys())
    means = [round(float(np.mean([of[name] for name in both])), 4) if both else None for of in by_size]
    return {"designs": len(both), COARSE: means[0], FINE: means[1]}


class Kept:
    """What an evaluation stored of the cases of a split, with their truth.

    Args:
        surrogate: The model.
        split: The split, opened for targets and features of the model.
        folder: Folder of the evaluation.
    """

    def __init__(self, surrogate: Surrogate, split: Split, folder: Path) -> None:
        self.columns = column_names(resolve_targets(surrogate.usage.targets, ""))
        watch, self.risks = ResidualCollector(surrogate, split), list[HitScore]()
        targets = resolve_targets(surrogate.usage.targets, "")
        features = resolve_inputs(surrogate.usage.features, "")
        kept = {row["case_id"]: row for row in pq.read_table(folder / "predictions.parquet").to_pylist()}
        clearance = self.columns.index("build_clearance_min")
        for ragged in open_loader(split):
            batch = Batch.of(ragged, targets, features)
            row, record = kept[batch.case_ids[0]], split.records[batch.case_ids[0]]
            prediction = np.array([row[name] for name in self.columns], np.float32).T
            watch(batch, prediction)
            assert record.measures is not None
            self.risks.append(
                assess(
                    record.case_id, "build_clearance_min", prediction[:, clearance : clearance + 1],
                    hit=record.measures.recoater_interference, tolerance=record.run.recoater_tolerance,
                    design=record.design_id,
                )
            )  # fmt: skip
        self.parts = watch.parts

    def of(self, cases: set[str], intervals: Intervals | None, threshold: float | None) -> dict[str, Any]:
        """Detection of hits and coverage of intervals, over some of the cases."""
        risks = [risk for risk in self.risks if risk.case_id in cases]
        found: dict[str, Any] = {"hits": sum(risk.hit for risk in risks), "clear": sum(not risk.hit for risk in risks)}
        found |= {name: value for name, value in describe(risks, FALSE_ALARMS).items() if name != "curves"}
        if threshold is not None:
            detected = detect(risks, threshold)
            found["by_threshold"] = {"recall": detected.recall, "false_alarm_rate": detected.false_alarm_rate}
        if intervals is not None:
            shares = coverage(intervals, [part for part in self.parts if part.case_id in cases], {})
            names = ("points_inside", "points_inside_interval", "holds", "parts_inside", "over_constant_width")
            found["intervals"] = {column: {name: of[name] for name in names} for column, of in shares.items()}
        return found


def last_row(path: Path) -> dict[str, float]:
    """The last row of a CSV file of a run."""
    with path.open(newline="", encoding="utf-8") as file:
        return {name: round(float(value), 5) for name, value in list(csv.DictReader(file))[-1].items()}


def fit_of(prediction: NDArray[np.floating], truth: NDArray[np.floating]) -> dict[str, float]:
    """Relative L2 error as it is and after the best single factor, and correlation, of one displacement component."""
    given, known = prediction.astype(np.float64), truth.astype(np.float64)
    factor = float(given @ known / (given @ given))
    size = float(np.linalg.norm(known))
    return {
        "relative_l2": round(float(np.linalg.norm(given - known)) / size, 4),
        "best_factor": round(factor, 4),
        "relative_l2_after_it": round(float(np.linalg.norm(factor * given - known)) / size, 4),
        "correlation": round(float(np.corrcoef(given, known)[0, 1]), 4),
    }


def real_parts(surrogate: Surrogate, samples: Path) -> dict[str, Any]:
    """Predict NetFabb's two parts on its meshes, and simulate them on ours with both calibrations.

    Errors are over the points that both meshes have.
    """
    from flare_model.predict import predict_part
    from flare_model.prediction.parts import Part
    from lpbf_data.geometry.surface_files import load_surface
    from lpbf_data.geometry.voxelize import voxelize
    from pipelines.netfabb.run import NetfabbRun
    from pipelines.simulation.materials.material import MATERIALS
    from pipelines.simulation.physics.build_simulation import BuildSimulation
    from pipelines.sources.case_files import FolderFiles
    from tests.benchmarks.compare_netfabb import CELL, PARTS, REFINEMENT, matching_points

    found: dict[str, Any] = {}
    for name, place in PARTS.items():
        folder = samples / place
        theirs = NetfabbRun(folder.name, FolderFiles(folder)).read_case(("displacement",))
        # Training parts stand in the middle of the plate; the place on the plate doesn't change the displacement.
        middle = (theirs.points.min(axis=0) + theirs.points.max(axis=0)) / 2 * np.array([1, 1, 0], np.float32)
        said = predict_part(surrogate, Part(name, theirs.points - middle, theirs.cells))
        predicted = np.concatenate([said.fields[f"displacement_{axis}"] for axis in "xyz"], axis=1)
        mesh = voxelize(load_surface(next(folder.glob("*.stl"))), CELL)
        ours, others = matching_points(mesh.points, theirs.points)
        simulated = {}
        for calibration in ("measured", "netfabb"):
            material = MATERIALS["Inc625"].calibrated(calibration)
            frames = list(BuildSimulation(mesh, material, refinement=REFINEMENT).frames())
            simulated[calibration] = frames[-1].state.displacement[ours]
        truth = theirs.fields["displacement"][others]
        found[name] = {
            "points": len(theirs.points),
            "warnings": list(getattr(said, "warnings", ())),
            **{
                f"displacement_{axis}": {
                    "surrogate": fit_of(predicted[others, i], truth[:, i]),
                    "surrogate_beside_the_simulator": fit_of(predicted[others, i], simulated["measured"][:, i]),
                    "simulator": fit_of(simulated["measured"][:, i], truth[:, i]),
                    "simulator_calibrated_to_netfabb": fit_of(simulated["netfabb"][:, i], truth[:, i]),
                }
                for i, axis in enumerate("xyz")
            },
        }
    return found


def main() -> None:
    """Summarise the evaluation, predict NetFabb's parts, save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (
        ("checkpoint", "folder of the model"),
        ("data", "data set whose test split was evaluated"),
        ("evaluation", "folder that flare_model.evaluate wrote"),
        ("run", "folder of the training, for its curves"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    asked = parser.parse_args()
    surrogate = from_pretrained(str(asked.checkpoint))
    inputs = resolve_inputs(surrogate.usage.features, "")
    split = Split(str(asked.data), "test", (*resolve_targets(surrogate.usage.targets, ""), *inputs))
    summary = json.loads((asked.evaluation / "summary.json").read_text(encoding="utf-8"))
    rows = pq.read_table(asked.evaluation / "cases.parquet").to_pylist()
    records = split.records
    large = {name for name, record in records.items() if _LARGE in record.source.archive}
    sizes = {COARSE: set(records) - large, FINE: large}
    kept, intervals = Kept(surrogate, split, asked.evaluation), read_intervals(asked.evaluation)
    threshold = (summary["interference"].get("by_threshold") or {}).get("threshold")
    families = sorted({record.run.family for record in records.values() if record.run.family})
    result: dict[str, Any] = {
        "machine": describe_machine(("numpy", "torch", "pyarrow")),
        "identity": {name: value for name, value in summary["identity"].items() if name != "families"},
        "step": summary["origin"].get("step"),
        "training_beside_validation": {
            "training": last_row(asked.run / "training_error.csv"),
            "validation": last_row(asked.run / "validation.csv"),
        },
        "by_size": {
            size: {
                "targets": rows_by_target([row for row in rows if row["case_id"] in cases]),
                "risk_and_intervals": kept.of(cases, intervals, threshold),
            }
            for size, cases in sizes.items()
            if cases
        },
        "same_designs": same_designs(rows, {name: r.design_id or name for name, r in records.items()}, large),
        "by_family": {
            family: rows_by_target(
                [row for row in rows if records[row["case_id"]].run.family == family and row["case_id"] not in large]
            )["displacement_z"]
            for family in families
        },
        "brier": summary["interference"].get("brier"),
    }
    samples = os.environ.get("LPBF_NETFABB_SAMPLES", "")
    if samples:
        result["netfabb"] = real_parts(surrogate, Path(samples))
    print(save_result("judge_accurate", result))


if __name__ == "__main__":
    main()
