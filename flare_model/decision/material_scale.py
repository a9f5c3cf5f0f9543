"""Scaling predictions from the material and calibration of the training to another material or calibration.

A model is trained for one material and one calibration. Displacements are linear in the two causes of shrinkage of the
layers: the strain that a calibration gives, and the thermal contraction of warm layers. Let a be the thermal expansion
of the new material divided by that of the training, and r the same ratio of the strains, divided by a. Predictions are
multiplied by

    a (1 + share (r - 1))

where `share` is the part of a displacement that is due to the strain; the loss of clearance below the recoater has a
share of its own. Shares and errors are measured by the simulator on unseen parts (`python -m
tests.benchmarks.material_scale`); intervals and the chance of a hit are widened by these errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.intervals import peaks_of
from flare_model.data.material_scale_errors import ERRORS, SHARE_OF_STRAIN
from flare_model.data.point_fields import columns_of, resolve_targets
from lpbf_data.case.schema import BUILD_FIELDS, DEFAULT_TOLERANCE, FULL_CLEARANCE
from lpbf_data.errors import UsageError
from lpbf_data.shrinkage import CALIBRATION_NAMES, Shrinkage, shrinkage_of, strain_of

if TYPE_CHECKING:
    from flare_model.checkpoints.files import Usage
    from flare_model.decision.prediction import Prediction

SCALES: Final = (0.2, 6.0)
"""Smallest and largest factor that may be asked for; beyond these nothing was measured."""

_ONE_IN_TEN: Final = 1.645  # standard deviations within which nine of ten lie
_SAME: Final = 1e-3  # ratios of expansions that differ by less are of one material
_LAYER: Final = 0.04  # mm, of the training parts
_MOVED: Final = ("displacement", "displacement_x", "displacement_y", "displacement_z")


@dataclass(frozen=True)
class MaterialScale:
    """Factors of predictions for another material or calibration than that of the training.

    Attributes:
        wanted: Shrinkage of the material that is asked for.
        trained: Shrinkage of the material of the training.
        displacement: Factor of displacements.
        clearance: Factor of the loss of clearance (100 % less the clearance), and of the rise of a part in the build.
        error: Relative L2 error of the scaled displacements that nine of ten unseen parts stayed below.
        clearance_error: Relative error of the loss of the least clearance that nine of ten unseen parts stayed below.
    """

    wanted: Shrinkage
    trained: Shrinkage
    displacement: float
    clearance: float
    error: float
    clearance_error: float

    @property
    def calibrated(self) -> bool:
        """Whether the material is calibrated to a user's machine, and not one of the calibrations of this package."""
        return self.wanted.calibration not in CALIBRATION_NAMES

    def spread(self, target: str, score: float) -> float:
        """Standard deviation that the scale adds to the score from which the chance of a hit comes.

        Args:
            target: The target that the score is computed from.
            score: The score.
        """
        lost = FULL_CLEARANCE + score if target == "build_clearance_min" else score
        return (self.clearance_error if target in BUILD_FIELDS else self.error) * abs(lost) / _ONE_IN_TEN

    def describe(self) -> str:
        """The scale in words."""
        words = (
            f"displacements are those for {self.trained.label} times {self.displacement:.3g}, a factor that was off by "
            f"up to {100 * self.error:.2g} % on nine of ten unseen parts"
        )
        other = [
            f"{name} of {value:g} {unit}"
            for name, value, known, unit in (
                ("layers", self.wanted.layer, _LAYER, "mm"),
                ("a tolerance", self.wanted.tolerance, DEFAULT_TOLERANCE, "%"),
            )
            if value is not None and abs(value - known) > 1e-9
        ]
        if other:
            words += f"; {' and '.join(other)} aren't in it: hits are for layers of 0.04 mm and a tolerance of 80 %"
        return words

    def as_dict(self) -> dict[str, Any]:
        """The scale as JSON takes it."""
        names = ("displacement", "clearance", "error", "clearance_error")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return found | {"material": self.wanted.label, "trained_on": self.trained.label, "said": self.describe()}


def scale_for_material(name: str, usage: Usage) -> MaterialScale:
    """The scale for a material.

    Args:
        name: A material file (YAML), a named material, or a named calibration of the material of the training.
        usage: Targets and materials of the model.

    Raises:
        UsageError: If the file is wrong, the material of the training isn't known, the scale is out of range, or the
            model predicts a field that isn't proportional to the strain.
    """
    trained = _trained_on(usage)
    wanted = _named(name, trained)
    others = [one for one in usage.targets if one not in (*_MOVED, *BUILD_FIELDS)]
    if others:
        raise UsageError(f"--material scales displacements and clearances, and this model predicts {', '.join(others)}")
    if wanted.strain >= 0 or wanted.expansion <= 0:
        raise UsageError(f"--material {name}: its layers shrink by nothing, so that there is nothing to scale")
    expansion = wanted.expansion / trained.expansion
    ratio = wanted.strain / trained.strain / expansion
    moved, lost = (expansion * (1 + SHARE_OF_STRAIN[of] * (ratio - 1)) for of in ("displacement", "clearance"))
    low, high = SCALES
    if not all(low <= factor <= high for factor in (moved, lost)):
        raise UsageError(
            f"--material {name}: its strain {wanted.strain:.4g} would multiply what is predicted for {trained.label} "
            f"by {moved:.3g}; nothing was measured beyond {low:g} to {high:g}. Check the strain, or train a model on "
            "it (python -m pipelines.simulate --material)"
        )
    if (wanted.strain, wanted.expansion, wanted.at_once) == (trained.strain, trained.expansion, trained.at_once):
        return MaterialScale(wanted, trained, 1.0, 1.0, 0.0, 0.0)
    return MaterialScale(wanted, trained, moved, lost, *_errors(wanted, trained, (moved, lost)))


def _errors(wanted: Shrinkage, trained: Shrinkage, scales: tuple[float, float]) -> tuple[float, float]:
    """Relative errors of scaled displacements and of the scaled loss of clearance."""
    if wanted.at_once != trained.at_once:
        return ERRORS["at once"]
    expansion = wanted.expansion / trained.expansion
    beyond = abs(wanted.strain / trained.strain - expansion)
    by_strain = [error * beyond / scale for error, scale in zip(ERRORS["strain"], scales, strict=True)]
    by_expansion = ERRORS["expansion"] if abs(expansion - 1) > _SAME else (0.0, 0.0)
    moved, lost = (math.hypot(*both) for both in zip(by_strain, by_expansion, strict=True))
    return moved, lost


def _trained_on(usage: Usage) -> Shrinkage:
    materials = usage.materials
    if len(materials) != 1:
        known = ", ".join(materials) or "a material that it doesn't name"
        raise UsageError(f"--material scales from one material, and this model was trained on {known}; leave it out")
    try:
        return shrinkage_of(materials[0])
    except UsageError as error:
        raise UsageError(
            f"--material: how much layers of {materials[0]}, which this model was trained on, shrink isn't known; "
            "leave it out"
        ) from error


def _named(name: str, trained: Shrinkage) -> Shrinkage:
    if name in CALIBRATION_NAMES:
        strain = strain_of(name, trained.expansion)
        return Shrinkage(trained.material, name, strain, trained.expansion, at_once=name == "netfabb")
    try:
        return shrinkage_of(name)
    except UsageError as error:
        known = "" if not str(error).startswith("unknown material") else f", or {' and '.join(CALIBRATION_NAMES)}"
        raise UsageError(f"--material: {error}{known}") from error


def scale_prediction(prediction: Prediction, scale: MaterialScale) -> Prediction:
    """A prediction for another material, without truth and errors, which are of the material of the training.

    Args:
        prediction: For the material of the training.
        scale: The scale.
    """
    fields, widths, extremes, peaks = {}, {}, dict(prediction.extremes), {}
    for target in resolve_targets(tuple(prediction.fields), "the checkpoint"):
        values = prediction.fields[target.name].astype(np.float64)
        factor, rest = _of_target(target.name, scale)
        fields[target.name] = (rest + factor * (values - rest)).astype(np.float32)
        own = _added(target.name, factor * values, scale)
        if target.name in prediction.half_widths:
            wide = np.hypot(factor * prediction.half_widths[target.name], own)
            widths[target.name] = wide.astype(np.float32)
        for column in target.columns:
            if column in extremes:
                value, half = extremes[column]
                moved = rest + factor * (value - rest)
                relative = scale.clearance_error if target.name in BUILD_FIELDS else scale.error
                added_error = relative * abs(moved - rest)
                extremes[column] = (moved, math.hypot(factor * half, added_error))
    for column, sizes in peaks_of(columns_of(fields)).items():
        halves = prediction.peaks.get(column, {})
        peaks[column] = {
            peak: math.hypot(scale.displacement * half, scale.error * sizes[peak]) for peak, half in halves.items()
        }
    return replace(
        prediction,
        fields=fields,
        half_widths=widths,
        extremes=extremes,
        peaks=peaks,
        truth={},
        errors={},
        broken_truth=(),
    )


def _of_target(name: str, scale: MaterialScale) -> tuple[float, float]:
    """Factor of a target, and the value that it is applied around: 100 % for a clearance, else 0."""
    factor = scale.clearance if name in BUILD_FIELDS else scale.displacement
    return factor, FULL_CLEARANCE if name == "build_clearance_min" else 0.0


def _added(name: str, moved: NDArray[np.float64], scale: MaterialScale) -> NDArray[np.float64]:
    """Half-width at points that the error of the scale adds; for displacements it follows their root mean square."""
    if name in BUILD_FIELDS:
        return scale.clearance_error * np.abs(moved)
    added: NDArray[np.float64] = scale.error * np.sqrt(np.mean(moved**2, axis=0, keepdims=True))
    return added
