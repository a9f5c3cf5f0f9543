"""The answer for one part: how far it warps, whether the recoater hits it, and how certain both are.

N points, E cells of one part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flare_model.checkpoints.files import WEIGHTS_NAME
from flare_model.checkpoints.hub import fetch_checkpoint
from flare_model.data.envelope import BUILD_EXTENTS, fits_build_volume
from flare_model.data.intervals import Intervals
from flare_model.data.likeness import Likeness, TrainingShapes, describe_shape
from flare_model.judging.interference import assess, risk_target
from flare_model.judging.risk_model import RiskModel, Verdict, verdict_of
from flare_model.prediction.surface_parts import LAYER
from lpbf_data.durable import sha256_of_file
from lpbf_data.errors import CaseError

if TYPE_CHECKING:
    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.decision.material_scale import MaterialScale
    from flare_model.decision.prediction import Prediction
    from flare_model.prediction.part import Part
    from lpbf_data.remarks import Remark


@dataclass(frozen=True)
class Auxiliary:
    """Data that answers need in addition to the model: the checkpoint's auxiliary files, and a material scale.

    Attributes:
        intervals: Prediction intervals.
        risk_model: Gives the chance of a hit from a score.
        training_shapes: Distribution of the shapes of the training parts.
        material_scale: Factors for another material than that of the training; None where predictions are for that
            of the training.
        model_doubts: Sentences on the model: that its evaluation found it no better than predicting zero, and why it
            has no intervals.
    """

    intervals: Intervals | None = None
    risk_model: RiskModel | None = None
    training_shapes: TrainingShapes | None = None
    material_scale: MaterialScale | None = None
    model_doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peak:
    """The largest displacement in one direction.

    Attributes:
        value: Displacement, mm.
        half_width: Half-width of its prediction interval, mm; None where the checkpoint has no intervals.
        place: Position of that point, [x, y, z], mm.
    """

    value: float
    half_width: float | None
    place: tuple[float, float, float]


@dataclass(frozen=True)
class Hit:
    """Whether the blade of the recoater hits the part while it is built.

    Attributes:
        verdict: "yes", "no" or "can't tell".
        chance: Probability of a hit; None where the checkpoint has no risk model.
        place: Where a hit is likeliest, [x, y, z], mm.
        layer: The powder layer there, from 1.
        clearance: Least clearance between blade and part that is predicted, percent of a layer; None where the model
            predicts no clearance.
        half_width: Half-width of the prediction interval of that clearance, percent of a layer.
        tolerance: Clearance below which the recoater hits, percent of a layer.
        chance_parts: Number of parts that the chance was fitted to; None where there is no chance.
        why: Reason of a verdict "can't tell"; empty for other verdicts.
    """

    verdict: Verdict
    chance: float | None
    place: tuple[float, float, float]
    layer: int
    clearance: float | None
    half_width: float | None
    tolerance: float | None
    chance_parts: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer for one part.

    Attributes:
        name: Name of the part.
        size: Extents as read along x, y and z, mm.
        volume: Volume, mm³.
        unit: Unit that the file was read in, and whether it was stated; None for a mesh, which is in mm.
        body: Number of the body in its file, from 1, and number of bodies of the file.
        moved: What was added to the coordinates of the file, mm; places are in coordinates of the build volume.
        mesh: Points and cells of the mesh, and how well it represents the surface.
        up: Largest displacement upwards after release.
        down: Largest displacement downwards.
        sideways: Largest displacement in the plane; None where the model predicts none.
        level: Level of the prediction intervals: the share of parts that they hold for.
        hit: Whether the recoater hits; None where no target of the model says anything about it.
        likeness: How similar to the training parts it is; None where that isn't known.
        outside: In what it lies outside of the envelope of the training data: size, position, material.
        material: Material that the prediction is for.
        calibrated: Whether the prediction is for a calibration of the user's own machine.
        supports: Which supports the prediction assumes, in words.
        scale: Factors of predictions for that material; None where they are for that of the training.
    """

    name: str
    size: tuple[float, float, float]
    volume: float
    unit: tuple[str, bool] | None
    body: tuple[int, int]
    moved: tuple[float, float, float]
    mesh: Mapping[str, Any]
    up: Peak | None
    down: Peak | None
    sideways: Peak | None
    level: float | None
    hit: Hit | None
    likeness: Likeness | None
    outside: tuple[str, ...]
    material: str
    calibrated: bool = False
    supports: str = field(default="none are known: the part stands on the plate as it is")
    scale: MaterialScale | None = None

    def as_dict(self) -> dict[str, Any]:
        """The answer as JSON takes it; lengths in mm, clearances in percent of a layer."""
        content = asdict(self)
        content["unit"] = None if self.unit is None else {"name": self.unit[0], "stated": self.unit[1]}
        content["body"] = {"number": self.body[0], "of": self.body[1]}
        if self.likeness is not None:
            content["likeness"]["said"] = [str(reason) for reason in self.likeness.reasons]
        if self.scale is not None:
            content["scale"] = self.scale.as_dict()
        return content


def answer_of(prediction: Prediction, auxiliary: Auxiliary, materials: tuple[str, ...] = ()) -> Answer:
    """The answer from a prediction.

    Args:
        prediction: The prediction.
        auxiliary: Intervals, risk model, training shapes and material scale.
        materials: Materials that it was trained on.
    """
    part = prediction.part
    extents = np.ptp(part.points if part.origin is None else part.origin.surface.vertices, axis=0)
    columns = prediction.columns()
    likeness = likeness_to_training(part, auxiliary.training_shapes)
    origin, material_scale = part.origin, auxiliary.material_scale
    return Answer(
        name=part.name,
        size=_three(extents),
        volume=_volume(part) if origin is None else origin.surface.volume,
        unit=None if origin is None else (origin.unit, origin.unit_told),
        body=(1, 1) if origin is None else (origin.body, origin.bodies),
        moved=(0.0, 0.0, 0.0) if origin is None else origin.moved,
        mesh=_mesh(part),
        up=_peak(prediction, columns, "displacement_z", 1.0),
        down=_peak(prediction, columns, "displacement_z", -1.0),
        sideways=_sideways(prediction, columns),
        level=auxiliary.intervals.level if auxiliary.intervals else None,
        hit=_hit(prediction, auxiliary.risk_model, _doubt(prediction, likeness), auxiliary.material_scale),
        likeness=likeness,
        outside=prediction.warnings,
        material=material_scale.wanted.label if material_scale else part.material or ", ".join(materials) or "unknown",
        calibrated=material_scale is not None and material_scale.calibrated,
        scale=material_scale,
    )


def answers_as_dict(
    model: Mapping[str, Any],
    answers: Mapping[str, Answer],
    remarks: Mapping[str, Sequence[Remark]],
    orientations: Mapping[str, Any],
    errors: Sequence[str] = (),
    model_doubts: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of `answers.json`.

    Args:
        model: Digests that identify the model: `identity_of`.
        answers: Answers by the names of their files.
        remarks: Remarks on each part, by the names of the files.
        orientations: Rankings of orientations, by the names of the files.
        errors: Why other parts have no answer.
        model_doubts: `Auxiliary.model_doubts`.
    """
    parts = {
        file: answer.as_dict()
        | {"remarks": [remark.as_dict() for remark in remarks.get(file, ())]}
        | ({"orientations": orientations[file]} if file in orientations else {})
        for file, answer in answers.items()
    }
    return {"model": {**model, "doubts": list(model_doubts)}, "parts": parts, "errors": list(errors)}


def identity_of(surrogate: Surrogate, checkpoint: str) -> dict[str, Any]:
    """Identity of a model for JSON: the SHA-256 of its weights, and of the data set that it was trained on.

    Args:
        surrogate: The model.
        checkpoint: Folder or id that it was loaded from.
    """
    weights = sha256_of_file(fetch_checkpoint(checkpoint) / WEIGHTS_NAME)
    return {"weights_sha256": weights, "data_sha256": surrogate.origin.get("data_sha256")}


def _three(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _volume(part: Part) -> float:
    corners = part.points[part.cells].astype(np.float64)
    sides = [corners[:, k] - corners[:, 0] for k in (1, 3, 4)]
    return float(np.abs(np.einsum("ij,ij->i", sides[0], np.cross(sides[1], sides[2]))).sum())


def _mesh(part: Part) -> dict[str, Any]:
    report: dict[str, Any] = {"points": len(part.points), "cells": len(part.cells)}
    if part.origin is not None:
        check, is_doubtful = part.origin.check, part.origin.unit_doubtful
        report |= {"cell": check.spacing, "volume_share": check.volume, "wall": check.wall}
        report |= {"cells_across": check.cells_across, "needed_points": None if is_doubtful else check.needed_points}
        report |= {"resolved_wall": None if is_doubtful else check.resolved_wall, "unit_doubtful": is_doubtful}
        report |= {"differences": check.differences(), "lost": check.lost(), "thin_walls": check.has_thin_walls}
        report["advice"] = check.advice() if check.differences() and not is_doubtful else None
    return report


def _peak(prediction: Prediction, columns: Mapping[str, NDArray[np.float32]], name: str, sign: float) -> Peak | None:
    values = columns.get(name)
    if values is None:
        return None
    place = int(np.argmax(sign * values))
    extreme = prediction.extremes.get(name)
    # Checkpoints of earlier versions have one interval, for whichever of the largest and the least value is farther
    # from zero, which is then taken for both.
    half = prediction.peaks.get(name, {}).get("largest" if sign > 0 else "least", extreme[1] if extreme else None)
    return Peak(float(values[place]), half, _three(prediction.part.points[place]))


def _sideways(prediction: Prediction, columns: Mapping[str, NDArray[np.float32]]) -> Peak | None:
    if "displacement_x" not in columns or "displacement_y" not in columns:
        return None
    lengths = np.hypot(columns["displacement_x"], columns["displacement_y"])
    place = int(np.argmax(lengths))
    halves = [prediction.extremes[n][1] for n in ("displacement_x", "displacement_y") if n in prediction.extremes]
    half = prediction.peaks.get("displacement_x", {}).get("sideways", max(halves) if halves else None)
    return Peak(float(lengths[place]), half, _three(prediction.part.points[place]))


def _doubt(prediction: Prediction, likeness: Likeness | None) -> str:
    """Why the verdict must be "can't tell" whatever the model predicts; empty where there is no such reason."""
    if prediction.warnings or (likeness is not None and likeness.unlike):
        return "it is unlike the parts of the training, see below"
    origin = prediction.part.origin
    return (
        "its mesh isn't quite the part, see below" if origin is not None and not origin.check.is_quite_the_part else ""
    )


def _hit(
    prediction: Prediction, risk_model: RiskModel | None, doubt: str, material_scale: MaterialScale | None
) -> Hit | None:
    target = risk_target(tuple(prediction.fields))
    if target is None:
        return None
    values = prediction.fields[target]
    scored = assess(prediction.part.name, target, values, hit=False, tolerance=None)
    direct = target == "build_clearance_min"
    place = int(np.argmin(values[:, -1]) if direct else np.argmax(values[:, -1]))
    spread = material_scale.spread(target, scored.score) if material_scale is not None else 0.0
    chance = risk_model.chance(scored.score, spread) if risk_model is not None and risk_model.target == target else None
    verdict: Verdict = "can't tell" if chance is None else verdict_of(chance)
    why = ""
    if chance is None:
        why = (
            "this checkpoint has no risk model; python -m flare_model.evaluate makes one, from a data set with a "
            "validation split"
        )
    elif doubt:
        verdict, why = "can't tell", doubt
    elif verdict == "can't tell":
        why = "the model isn't sure enough"
    position = _three(prediction.part.points[place])
    extreme = prediction.extremes.get(target) if direct else None
    return Hit(
        verdict=verdict,
        chance=chance,
        place=position,
        layer=max(1, math.ceil((position[2] - float(prediction.part.points[:, 2].min())) / LAYER - 1e-3)),
        clearance=float(values[place, -1]) if direct else None,
        half_width=extreme[1] if extreme else None,
        tolerance=risk_model.tolerance if risk_model is not None and direct else None,
        chance_parts=risk_model.parts if risk_model is not None and chance is not None else None,
        why=why,
    )


def likeness_to_training(part: Part, training_shapes: TrainingShapes | None) -> Likeness | None:
    """How similar to the training parts a part is; None where that isn't known."""
    if training_shapes is None:
        return None
    try:
        return training_shapes.compare(describe_shape(part.points, part.cells))
    except CaseError:
        return None  # a mesh of other cells than boxes, which is refused earlier where the model needs the shape


def advice_on_size(size: tuple[float, float, float]) -> str:
    """Advice for a part that is larger than the build volume; empty where it fits."""
    if fits_build_volume(size):
        return ""
    wanted = " × ".join(f"{length:g}" for length in BUILD_EXTENTS)
    if any(fits_build_volume(turned) for turned in itertools.permutations(size)):
        return f"it is larger than the build volume of {wanted} mm, but fits turned: --orientations 24 shows how"
    return (
        f"it is larger than the build volume of {wanted} mm that the model knows: cut it into parts that fit, check "
        "its unit (--units), or train a model on larger parts"
    )
