"""The prediction on one part, and the files that it is written to."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flare_model.data.point_fields import PointField, columns_of, resolve_inputs, resolve_targets, spans
from lpbf_data.case.schema import FIELDS, SYMMETRIC_TENSOR
from lpbf_data.case.tensor_order import VTK_ORDER, reorder
from lpbf_data.durable import flush_file, flush_folder
from lpbf_data.errors import CaseError, StoreError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.data.intervals import Intervals
    from flare_model.decision.material_scale import MaterialScale
    from flare_model.prediction.part import Part


@dataclass(frozen=True)
class Prediction:
    """Prediction of a model on a part.

    Attributes:
        part: The part.
        fields: Target to prediction in physical units, [N, components] float32.
        truth: Target to truth where it is known and finite, [N, components] float32.
        errors: Target to relative L2 error; None where the truth is zero everywhere.
        warnings: Reasons why the part lies outside of the training data's envelope; empty where it doesn't.
        seconds: Time of the prediction.
        broken_truth: Targets whose truth comes with the part, but isn't finite.
        half_widths: Target to half-widths of the intervals at points, [N, components] float32; none where the
            checkpoint has no intervals.
        extremes: Column to the part's extreme as predicted, and half-width of its interval, in the column's unit.
        peaks: Column to peak (`intervals.peaks_of`) to half-width of its interval, mm; none where the checkpoint has
            none.
    """

    part: Part
    fields: Mapping[str, NDArray[np.float32]]
    truth: Mapping[str, NDArray[np.float32]]
    errors: Mapping[str, float | None]
    warnings: tuple[str, ...]
    seconds: float
    broken_truth: tuple[str, ...] = ()
    half_widths: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    extremes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    peaks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def columns(self) -> dict[str, NDArray[np.float32]]:
        """Column to its prediction, [N]: `displacement` of three components gives its three columns."""
        return columns_of(self.fields)

    def envelope_warning(self) -> str:
        """A sentence on how the part is unlike the training parts; empty where it isn't."""
        if not self.warnings:
            return ""
        return f"{self.part.name} is unlike the parts that the model was trained on: {'; '.join(self.warnings)}"

    def point_data(self) -> dict[str, NDArray[np.float32]]:
        """Fields for a file, by name: predictions, half-widths, and where the truth is known truth and error."""
        shown: dict[str, NDArray[np.float32]] = {}
        for name, values in self.fields.items():
            shown[f"{name}_predicted"] = values
            if name in self.truth:
                shown |= {name: self.truth[name], f"{name}_error": values - self.truth[name]}
            if name in self.half_widths:
                shown[f"{name}_half_width"] = self.half_widths[name]
        return {name: v[:, 0] if v.shape[1] == 1 else v for name, v in shown.items()}


def predict_part(
    surrogate: Surrogate, part: Part, intervals: Intervals | None = None, material_scale: MaterialScale | None = None
) -> Prediction:
    """Predict on one part.

    Args:
        surrogate: The model.
        part: The part.
        intervals: Prediction intervals of its checkpoint; None where it has none.
        material_scale: Factors for another material than that of the training; None for that of the training.

    Raises:
        UsageError: If the model needs a field that the part doesn't come with, or that isn't finite.
        StoreError: If the part has points that aren't finite, or the model predicts values that aren't.
    """
    import numpy as np
    import torch

    from flare_model.data.envelope import reasons_outside
    from flare_model.data.non_finite import describe_non_finite
    from flare_model.judging.part_intervals import intervals_of

    targets = resolve_targets(surrogate.usage.targets, "the checkpoint")
    features = resolve_inputs(surrogate.usage.features, "the checkpoint")
    features_at_points = _part_features(part, features)
    if problem := describe_non_finite(part.points):
        raise StoreError(f"the points of {part.name} aren't all finite numbers: {problem}; look at its mesh")
    started = time.perf_counter()
    with torch.inference_mode():
        predicted = surrogate(np.array(part.points), features_at_points).cpu().numpy()
    seconds = time.perf_counter() - started
    if not np.isfinite(predicted).all():
        raise StoreError(
            f"the model predicts values for {part.name} that aren't finite; look at the part's lengths in mm"
        )
    columns, floors = spans(targets), surrogate.usage.floors()
    fields = {name: predicted[:, c] for name, c in columns.items()}
    known_truth = {t.name: part.column(t.name, t.field, t.components) for t in targets}
    available = {name: values for name, values in known_truth.items() if values is not None}
    truth = {name: values for name, values in available.items() if np.isfinite(values).all()}
    errors = {name: _relative_l2(fields[name], values, floors[name]) for name, values in truth.items()}
    reasons = reasons_outside(
        surrogate.usage.envelope, part.points, aspect_ratio=part.aspect_ratio, material=part.material
    )
    broken = tuple(name for name in available if name not in truth)
    part_intervals = (
        intervals_of(surrogate, part, features_at_points, predicted, intervals) if intervals else ({}, {}, {})
    )
    prediction = Prediction(part, fields, truth, errors, tuple(reasons), seconds, broken, *part_intervals)
    if material_scale is None:
        return prediction
    from flare_model.decision.material_scale import scale_prediction

    return scale_prediction(prediction, material_scale)


def _relative_l2(prediction: NDArray[np.float32], truth: NDArray[np.float32], floor: float) -> float | None:
    import numpy as np
    import torch

    from flare_model.data.metrics import has_truth, relative_l2

    predicted, true = (torch.from_numpy(np.array(values)) for values in (prediction, truth))
    offsets = torch.tensor([0, len(true)])
    return float(relative_l2(predicted, true, offsets)) if bool(has_truth(true, offsets, floor)) else None


def _part_features(part: Part, features: Sequence[PointField]) -> NDArray[np.float32] | None:
    """Input features of a part, [N, F]; None where the model takes none."""
    import numpy as np

    if not features:
        return None
    shape: dict[str, NDArray[np.float32]] = {}
    if any(feature.is_shape_feature for feature in features):
        from lpbf_data.geometry.shape_features import shape_features

        try:
            shape = shape_features(part.points, part.cells)
        except CaseError as error:
            raise UsageError(f"{part.name}: {error.detail}; this model can't do without them") from error
    columns = [
        shape[feature.field].reshape(len(part.points), -1)[:, list(feature.components)]
        if feature.is_shape_feature
        else _part_column(part, feature)
        for feature in features
    ]
    return np.concatenate(columns, axis=1)


def _part_column(part: Part, feature: PointField) -> NDArray[np.float32]:
    from flare_model.data.non_finite import describe_non_finite

    values = part.column(feature.name, feature.field, feature.components)
    if values is None:
        raise UsageError(
            f"the model needs the field {feature.name} at every point, which {part.name} doesn't come with"
        )
    if problem := describe_non_finite(values):
        raise UsageError(
            f"the model needs the field {feature.name}, which isn't finite everywhere in {part.name}: {problem}"
        )
    return values


def write_vtu(path: Path, prediction: Prediction) -> None:
    """Write a prediction as a VTU file, which ParaView opens; symmetric tensors are in VTK's order there."""
    import meshio

    shown = {
        name: reorder(values, SYMMETRIC_TENSOR, VTK_ORDER) if _is_tensor(name) else values
        for name, values in prediction.point_data().items()
    }
    mesh = meshio.Mesh(prediction.part.points, [("hexahedron", prediction.part.cells)], point_data=shown)
    mesh.write(path)


def _is_tensor(name: str) -> bool:
    """Whether a name of `Prediction.point_data` is that of a symmetric tensor; other things may have six columns."""
    bare = (name, *(name.removesuffix(f"_{what}") for what in ("predicted", "error", "half_width")))
    spec = next((FIELDS[one] for one in bare if one in FIELDS), None)
    return spec is not None and spec.components == SYMMETRIC_TENSOR


def write_results(out: Path, file: str, prediction: Prediction, *, pictures: bool) -> None:
    """Write the VTU file and the pictures of one part; nothing is written where a picture can't be drawn.

    Args:
        out: Folder of the results.
        file: Name of the files, without suffix.
        prediction: The prediction.
        pictures: Whether to draw a picture a target.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=out) as folder:
        temporary = Path(folder)
        write_vtu(temporary / f"{file}.vtu", prediction)
        for name, values in prediction.fields.items() if pictures else ():
            from flare_model.prediction.pictures import draw_prediction  # PyVista and VTK

            truth = prediction.truth.get(name)
            draw_prediction(temporary / f"{file}_{name}.png", prediction.part, name, values, truth)
        for path in sorted(temporary.iterdir()):
            flush_file(path)
            path.replace(out / path.name)
    flush_folder(out)
