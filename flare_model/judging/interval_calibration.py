"""Intervals of a checkpoint: calibrated on the validation split, evaluated on the split that is judged."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.batches import Batch
from flare_model.data.intervals import Intervals
from flare_model.data.splits import Split, has_split
from flare_model.judging.conformal import PartResiduals, calibrate, coverage, part_residuals
from flare_model.judging.judge import predictions
from lpbf_data.errors import StoreError


@dataclass
class ResidualCollector:
    """Collects the residuals of every predicted case, from which intervals are calibrated or evaluated.

    Attributes:
        surrogate: The model.
        split: The split that is predicted.
        parts: Residuals so far.
    """

    surrogate: Surrogate
    split: Split
    parts: list[PartResiduals] = field(default_factory=list)

    def __call__(self, batch: Batch, prediction: NDArray[np.float32]) -> None:
        """Collect one case."""
        case_id = batch.case_ids[0]
        record = self.split.records.get(case_id)
        features = None if batch.features is None else batch.features.numpy()
        columns = self.surrogate.usage.columns
        self.parts.append(
            part_residuals(
                case_id, (record.design_id if record else None) or case_id, columns, batch.points.numpy(), features,
                prediction, batch.targets.numpy(), self.surrogate.usage.normalisation,
            )
        )  # fmt: skip


def validation_collector(surrogate: Surrogate, split: Split) -> ResidualCollector | None:
    """Collector for the validation cases of the data set that is judged; None where intervals can't come from them."""
    if split.point_schema is not None or split.name == "validation" or not has_split(split.data, "validation"):
        return None
    return ResidualCollector(surrogate, Split(split.data, "validation"))


def validation_intervals(
    surrogate: Surrogate, split: Split, level: float, weights_sha256: str, collector: ResidualCollector | None
) -> Intervals | str:
    """Intervals from the validation split of the data set that is judged.

    Args:
        surrogate: The model.
        split: The split that is judged.
        level: Share of points and of parts that are to lie inside.
        weights_sha256: The model's weights.
        collector: What `validation_collector` returned; where it has no case yet, all are predicted for it.

    Returns:
        The intervals, or why there are none.
    """
    if collector is None:
        if split.point_schema is not None:
            return "they are made for printed parts alone"
        if split.name == "validation":
            return "the validation split, from which they come, is the one that is judged"
        return "the data set has no validation split to take them from"
    if not collector.parts:
        for batch, prediction in predictions(surrogate, collector.split):
            collector(batch, prediction)
    return calibrate(collector.parts, level, weights_sha256)


def describe_intervals(
    found: Intervals | str, parts: Sequence[PartResiduals], families: Mapping[str, str]
) -> dict[str, Any]:
    """Summary of intervals: their coverage, or why there are none."""
    if isinstance(found, str):
        return {"none": found}
    return {"level": found.level, "designs": found.designs, "columns": coverage(found, parts, families)}


def families_of(split: Split) -> dict[str, str]:
    """Case id to family, from the manifest of the data set; empty where it names no families."""
    return {name: record.run.family for name, record in split.records.items() if record.run.family}


def read_families(path: str | None) -> dict[str, str]:
    """Case id to family, from a CSV file with the columns case_id and family; empty without a file.

    Raises:
        StoreError: If it can't be read, or lacks a column.
    """
    if path is None:
        return {}
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            return {row["case_id"]: row["family"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise StoreError(f"--families {path}: no CSV file with the columns case_id and family ({error!r})") from error
