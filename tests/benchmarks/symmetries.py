"""Would it pay to predict each part under all eight symmetries of the build plate, and to average?

    python -m pipelines.simulate --results lean --draw balanced --seed 901 --cases 420 --points 2000 --out parts/
    python -m pipelines.build --src parts/ --out lpbf_new/ --filters.preset all --fields displacement \\
        --splits 'validation=1'
    python -m tests.benchmarks.symmetries --data lpbf_new/

A part that is mirrored or turned by a quarter moves the same way, so the eight predictions of the package's own model
would agree if it were exact. Compared are the relative L2 errors of one prediction and of the mean of eight, and the
widths of 90 % prediction intervals whose residual model is given the spread of the eight predictions or not. Intervals
are calibrated on half of the designs and measured on the other, both ways round, for several random halves. Nothing is
trained. The designs must be new to the model: the seed above was not used before.

Needs no GPU; the commands above make its data. The result goes to results/symmetries.json.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flare_model.checkpoints.surrogate import Surrogate, from_pretrained
from flare_model.data.batches import Batch
from flare_model.data.splits import Split, open_loader
from flare_model.judging.conformal import PartResiduals, calibrate, coverage, part_residuals
from lpbf_data.console import follow
from lpbf_data.serving.transforms import RandomSymmetry
from tests.benchmarks.machine import describe_training_machine, save_result

COLUMNS: Final = ("displacement_x", "displacement_y", "displacement_z")
LEVEL: Final = 0.9
HALVES: Final = 10
_LEAST: Final = 1e-4
"""Spread, in standard deviations of the training, below which predictions count as equal."""


def predictions_under_symmetries(surrogate: Surrogate, batch: Batch) -> NDArray[np.float32]:
    """Predicted displacements of one part under the eight symmetries, each turned back, [8, N, 3], mm."""
    features, names = surrogate.usage.feature_fields, [field.name for field in surrogate.usage.feature_fields]
    widths = [field.width for field in features]
    found = []
    for mirror_x, mirror_y, exchange in itertools.product((False, True), repeat=3):
        moves = {"mirror_x": mirror_x, "mirror_y": mirror_y, "exchange": exchange}
        assert batch.features is not None
        parts: Sequence[Tensor] = torch.split(batch.features, widths, dim=1)
        sample = {"pos": batch.points} | dict(zip(names, parts, strict=True))
        moved = RandomSymmetry().apply(sample, **moves)
        with torch.inference_mode():
            inputs = torch.cat([moved[name] for name in names], dim=1)
            given = surrogate(moved["pos"], inputs)[:, : len(COLUMNS)]
        found.append(turned_back(given, **moves).numpy())
    return np.stack(found)


def turned_back(displacement: Tensor, *, mirror_x: bool, mirror_y: bool, exchange: bool) -> Tensor:
    """The displacement, [N, 3], of a part that was mirrored, then had x and y exchanged, as of the part itself."""
    x, y, z = displacement.unbind(dim=1)
    x, y = (y, x) if exchange else (x, y)
    return torch.stack([-x if mirror_x else x, -y if mirror_y else y, z], dim=1)


def with_spread(part: PartResiduals, spread: NDArray[np.floating], deviations: Sequence[float]) -> PartResiduals:
    """The residuals of a part whose residual model also sees the spread of the predictions.

    Args:
        part: Residuals at n points.
        spread: Standard deviation of the predictions at these points, [n, 3], mm.
        deviations: Standard deviation of each displacement in the training, mm.
    """
    inputs = {}
    for number, name in enumerate(COLUMNS):
        own = spread[:, number]
        whole = np.sqrt(np.mean(own**2)) + _LEAST * deviations[number]
        of_part = np.full(len(own), np.log(whole / deviations[number]))
        at_points = np.log(np.hypot(own, 0.3 * whole) / whole)
        inputs[name] = np.column_stack([part.inputs[name], at_points, of_part, of_part**2])
    return replace(part, inputs=inputs)


def measure(split: Split) -> tuple[dict[str, Any], dict[str, list[PartResiduals]]]:
    """Errors of one prediction and of the mean of eight, and residuals of each part, with and without the spread."""
    surrogate = from_pretrained()
    usage = surrogate.usage
    norm, count = usage.normalisation, len(COLUMNS)
    norm = replace(norm, target_mean=norm.target_mean[:count], target_std=norm.target_std[:count])
    targets = usage.target_fields[:count]
    opened = Split(split.data, split.name, (*targets, *usage.feature_fields)).only(split.case_ids)
    errors: dict[str, list[NDArray[np.floating]]] = {"one": [], "mean": []}
    residuals: dict[str, list[PartResiduals]] = {"one": [], "mean": [], "one with spread": [], "mean with spread": []}
    for ragged in follow(open_loader(opened), len(opened), split.name, "case"):
        batch = Batch.of(ragged, targets, usage.feature_fields)
        (case_id,) = batch.case_ids
        design = str(split.records[case_id].design_id)
        assert batch.features is not None
        points, features, truth = batch.points.numpy(), batch.features.numpy(), batch.targets.numpy()
        all_eight = predictions_under_symmetries(surrogate, batch)
        for name, given in (("one", all_eight[0]), ("mean", all_eight.mean(axis=0))):
            errors[name].append(np.linalg.norm(given - truth, axis=0) / np.linalg.norm(truth, axis=0))
            part = part_residuals(case_id, design, COLUMNS, points, features, given, truth, norm)
            residuals[name].append(part)
            # What is called a residual here is the spread itself, at the points that are drawn for this case.
            taken = part_residuals(
                case_id, design, COLUMNS, points, features, np.zeros_like(truth), all_eight.std(axis=0), norm
            ).residuals
            spread = np.stack([taken[column] for column in COLUMNS], axis=1)
            residuals[f"{name} with spread"].append(with_spread(part, spread, norm.target_std))
    tables = {name: np.array(rows) for name, rows in errors.items()}
    return {
        name: {
            column: {"mean": float(np.mean(of[:, k])), "median": float(np.median(of[:, k]))}
            for k, column in enumerate(COLUMNS)
        }
        for name, of in tables.items()
    }, residuals


def widths(parts: Sequence[PartResiduals]) -> dict[str, Any]:
    """Mean half-width of the intervals in mm, its ratio to that of constant ones, and the share of points inside."""
    designs = sorted({part.design for part in parts})
    found: dict[str, list[dict[str, float]]] = {column: [] for column in COLUMNS}
    for seed in range(HALVES):
        order = np.random.default_rng(seed).permutation(len(designs))
        half = {designs[number] for number in order[: len(designs) // 2]}
        first, second = ([part for part in parts if (part.design in half) == inside] for inside in (True, False))
        for calibration, test in ((first, second), (second, first)):
            intervals = calibrate(calibration, LEVEL, "")
            assert not isinstance(intervals, str), intervals
            for column, shares in coverage(intervals, test, {}).items():
                found[column].append(shares)
    names = ("half_width", "over_constant_width", "points_inside")
    return {c: {name: float(np.mean([row[name] for row in rows])) for name in names} for c, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="validation")
    arguments = parser.parse_args()
    split = Split(arguments.data, arguments.split)
    errors, residuals = measure(split)
    content = {
        "parts": len(split.case_ids),
        "relative_l2": errors,
        "intervals": {name: widths(parts) for name, parts in residuals.items()},
        "machine": describe_training_machine(),
    }
    print(save_result("symmetries", content))


if __name__ == "__main__":
    main()
