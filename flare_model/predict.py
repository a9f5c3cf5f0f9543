"""`python -m flare_model.predict --checkpoint runs/first --src part.stl`: predict on parts, and draw the result.

Each part becomes a VTU file for ParaView and a picture. Where the truth is known, both show it, and the error.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flare_model.data.targets import Target, resolve_inputs, resolve_target, resolve_targets, spans
from flare_model.prediction.file_names import FileNames
from lpbf_data.case.schema import FIELDS, SYMMETRIC_TENSOR
from lpbf_data.case.tensor_order import VTK_ORDER, reorder
from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks
from lpbf_data.durable import flush_file, flush_folder, write_durably
from lpbf_data.errors import CaseError, LpbfError, StoreError, UsageError
from lpbf_data.geometry.surface_formats import Units
from lpbf_data.remarks import Remark

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.data.intervals import Intervals
    from flare_model.prediction.parts import Meshing, Part, Unreadable


@dataclass(frozen=True)
class Prediction:
    """What a model says of a part.

    Attributes:
        part: The part.
        fields: Target to prediction in physical units, [N, components] float32.
        truth: Target to truth where it is known and finite, [N, components] float32.
        errors: Target to relative L2 error; None where the truth is zero everywhere.
        warnings: Why the part is unlike those of the training.
        seconds: Time of the prediction.
        broken_truth: Targets whose truth comes with the part, but isn't finite.
        half_widths: Target to half-widths of the intervals at points, [N, components] float32; none where the
            checkpoint has no intervals.
        extremes: Column to the part's extreme as predicted, and half of its interval, in the column's unit.
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

    def point_data(self) -> dict[str, NDArray[np.float32]]:
        """Predictions, and truth and error where it is known, as a file shows them."""
        shown: dict[str, NDArray[np.float32]] = {}
        for name, values in self.fields.items():
            shown[f"{name}_predicted"] = values
            if name in self.truth:
                shown |= {name: self.truth[name], f"{name}_error": values - self.truth[name]}
            if name in self.half_widths:
                shown[f"{name}_half_width"] = self.half_widths[name]
        return {name: v[:, 0] if v.shape[1] == 1 else v for name, v in shown.items()}


def predict_part(surrogate: Surrogate, part: Part, intervals: Intervals | None = None) -> Prediction:
    """Predict on one part.

    Args:
        surrogate: The model.
        part: The part.
        intervals: Those of its checkpoint; None for none.

    Raises:
        UsageError: If the model needs a field that the part doesn't come with, or that isn't finite.
        StoreError: If the part has points that aren't finite, or the model predicts values that aren't.
    """
    import numpy as np
    import torch

    from flare_model.data.envelope import outside
    from flare_model.data.finite import not_finite
    from flare_model.judging.half_widths import intervals_of

    targets = resolve_targets(surrogate.usage.targets, "the checkpoint")
    features = resolve_inputs(surrogate.usage.features, "the checkpoint")
    known = _known(part, features)
    if said := not_finite(part.points):
        raise StoreError(f"the points of {part.name} aren't all finite numbers: {said}; look at its mesh")
    started = time.perf_counter()
    with torch.inference_mode():
        found = surrogate(np.array(part.points), known).cpu().numpy()
    seconds = time.perf_counter() - started
    if not np.isfinite(found).all():
        raise StoreError(
            f"the model predicts values for {part.name} that aren't finite; look at the part's lengths in mm"
        )
    columns, floors = spans(targets), surrogate.usage.floors()
    fields = {name: found[:, c] for name, c in columns.items()}
    known_truth = {t.name: part.column(t.name, t.field, t.components) for t in targets}
    given = {name: values for name, values in known_truth.items() if values is not None}
    truth = {name: values for name, values in given.items() if np.isfinite(values).all()}
    errors = {name: _relative_l2(fields[name], values, floors[name]) for name, values in truth.items()}
    reasons = outside(surrogate.usage.envelope, part.points, aspect_ratio=part.aspect_ratio, material=part.material)
    broken = tuple(name for name in given if name not in truth)
    half_widths, extremes = intervals_of(surrogate, part, known, found, intervals) if intervals else ({}, {})
    return Prediction(part, fields, truth, errors, tuple(reasons), seconds, broken, half_widths, extremes)


def _relative_l2(prediction: NDArray[np.float32], truth: NDArray[np.float32], floor: float) -> float | None:
    import numpy as np
    import torch

    from flare_model.data.metrics import has_truth, relative_l2

    given, known = (torch.from_numpy(np.array(values)) for values in (prediction, truth))
    offsets = torch.tensor([0, len(known)])
    return float(relative_l2(given, known, offsets)) if bool(has_truth(known, offsets, floor)) else None


def _known(part: Part, features: Sequence[Target]) -> NDArray[np.float32] | None:
    """What the model is told of a part beside its points, [N, F]; None where it is told nothing."""
    import numpy as np

    if not features:
        return None
    shape: dict[str, NDArray[np.float32]] = {}
    if any(told.of_shape for told in features):
        from lpbf_data.geometry.shape_features import shape_features

        try:
            shape = shape_features(part.points, part.cells)
        except CaseError as error:
            raise UsageError(f"{part.name}: {error.detail}; this model can't do without them") from error
    columns = [
        shape[told.field].reshape(len(part.points), -1)[:, list(told.components)]
        if told.of_shape
        else _needed(part, told)
        for told in features
    ]
    return np.concatenate(columns, axis=1)


def _needed(part: Part, feature: Target) -> NDArray[np.float32]:
    from flare_model.data.finite import not_finite

    values = part.column(feature.name, feature.field, feature.components)
    if values is None:
        raise UsageError(
            f"the model needs the field {feature.name} at every point, which {part.name} doesn't come with"
        )
    if said := not_finite(values):
        raise UsageError(
            f"the model needs the field {feature.name}, which isn't finite everywhere in {part.name}: {said}"
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
    """Write what belongs to one part: all of it, or nothing where a picture can't be drawn.

    Args:
        out: Folder of the results.
        file: Name of the files, without suffix.
        prediction: The prediction.
        pictures: Whether to draw a picture a target.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=out) as folder:
        aside = Path(folder)
        write_vtu(aside / f"{file}.vtu", prediction)
        for name, values in prediction.fields.items() if pictures else ():
            from flare_model.prediction.pictures import draw_prediction  # PyVista and VTK

            truth = prediction.truth.get(name)
            draw_prediction(aside / f"{file}_{name}.png", prediction.part, name, values, truth)
        for path in sorted(aside.iterdir()):
            flush_file(path)
            path.replace(out / path.name)
    flush_folder(out)


def predict(
    checkpoint: str,
    src: list[str],
    *,
    out: str = "predictions",
    split: str = "test",
    case: list[str] = [],  # noqa: B006 (read only; shown as the default in the help)
    points: int | None = None,
    centre: bool = False,
    units: Units | None = None,
    pictures: bool = True,
    trust: str | None = None,
    accelerator: str = "auto",
) -> int:
    """Predict on parts with a trained model.

    Args:
        checkpoint: Folder of a run or checkpoint, or an id on the Hugging Face hub.
        src: Hexahedral meshes (VTU and others), closed surfaces (STL and others), folders of simulation results,
            folders of any of these; or data sets: folders, URLs, or ids on the Hugging Face hub.
        out: Folder of the results, a VTU file a part and a picture a target.
        split: Which split of a data set.
        case: Ids of cases of a data set; all of the split by default.
        points: Points that a surface is meshed with; by default the median of the parts that the model was trained on.
        centre: Move the middle of a surface to x = y = 0; its lowest point is put on the build plate in any case.
        units: Unit of lengths in files of surfaces; by default the one that a file states (3MF), else mm. Meshes are
            in mm.
        pictures: Draw every part.
        trust: Class path of a model outside of this package that may be imported.
        accelerator: auto, cpu or gpu.

    Returns:
        Exit status: 0, or 1 when a part could not be predicted on.
    """
    if points is not None and points < 8:
        raise UsageError(f"--points must be 8 or more, not {points}")
    from flare_model.checkpoints.surrogate import from_pretrained
    from flare_model.judging.half_widths import kept_intervals
    from flare_model.prediction.parts import Meshing, Unreadable
    from flare_model.training.devices import device_of

    device = device_of(accelerator)
    surrogate = from_pretrained(checkpoint, trust=trust).to(device)
    meshing = Meshing(points or _usual_points(surrogate), centre, units)
    console, complaints = open_console(), open_console(stderr=True)
    needed = {resolve_target(name).field for name in surrogate.usage.targets}
    needed |= {told.field for told in resolve_inputs(surrogate.usage.features, "the checkpoint") if not told.of_shape}
    names, done, failed = FileNames(), 0, 0
    remarks: dict[str, tuple[Remark, ...]] = {}
    intervals, doubt = kept_intervals(checkpoint, surrogate)
    if doubt:
        complaints.print(f"warning: {doubt}", style=None)
    shown: dict[str, dict[str, dict[str, float | str]]] = {}
    for part in _parts(src, split, case, needed, meshing):
        if part.remarks:
            remarks[part.name] = (*remarks.get(part.name, ()), *part.remarks)
        try:
            if isinstance(part, Unreadable):
                raise part.error
            prediction = predict_part(surrogate, part, intervals)
            file = names.name(part.name)
            write_results(Path(out), file, prediction, pictures=pictures)
        except LpbfError as error:
            complaints.print(f"error: {error}", style=None)
            failed += 1
        else:
            done += 1
            shown |= {file: _extremes(prediction)} if intervals else {}
            _say(prediction, file, console, complaints)
    if done:
        _keep_extremes(Path(out), intervals, shown)
        console.print(f"predictions in {out}")
        _keep_remarks(Path(out), remarks)
    print_remarks((one for found in remarks.values() for one in found), complaints)
    if failed and done + failed > 1:
        complaints.print(f"{done} of {done + failed} parts are predicted", style=None)
    return 1 if failed else 0


def _keep_remarks(out: Path, remarks: Mapping[str, Sequence[Remark]]) -> None:
    """Write what was left out, changed, guessed or repaired beside the predictions, by name of the part."""
    path = out / "remarks.json"
    if remarks:
        stored = {name: [remark.as_dict() for remark in found] for name, found in remarks.items()}
        write_durably(path, (json.dumps(stored, indent=1) + "\n").encode())
    else:
        path.unlink(missing_ok=True)  # those of an earlier run


def _extremes(prediction: Prediction) -> dict[str, dict[str, float | str]]:
    """Column to the part's extreme and half its interval, lengths in µm."""
    from flare_model.judging.scores import unit_of_errors

    found: dict[str, dict[str, float | str]] = {}
    for column, (extreme, half) in prediction.extremes.items():
        factor, unit = unit_of_errors(resolve_target(column).unit)
        found[column] = {"extreme": factor * extreme, "half_width": factor * half, "unit": unit}
    return found


def _keep_extremes(
    out: Path, intervals: Intervals | None, shown: Mapping[str, Mapping[str, Mapping[str, float | str]]]
) -> None:
    """Write what is predicted of whole parts, and how sure it is, by the names of the files."""
    from flare_model.data.intervals import INTERVALS_NAME

    if intervals is None:
        (out / INTERVALS_NAME).unlink(missing_ok=True)  # those of an earlier run
        return
    content = {"level": intervals.level, "parts": shown}
    write_durably(out / INTERVALS_NAME, (json.dumps(content, indent=1) + "\n").encode())


def _usual_points(surrogate: Surrogate) -> int:
    """Points that a part of the training has."""
    from flare_model.prediction.parts import Meshing

    envelope = surrogate.usage.envelope
    return round((envelope.num_points_median if envelope else None) or Meshing.num_points)


def _parts(
    sources: Sequence[str], split: str, cases: Sequence[str], fields: Collection[str], meshing: Meshing
) -> Iterator[Part | Unreadable]:
    """The parts of several sources; one that can't be opened counts as one that can't be read."""
    from flare_model.prediction.parts import Unreadable, find_parts

    for source in sources:
        try:
            yield from find_parts(source, split=split, cases=cases, fields=fields, meshing=meshing)
        except LpbfError as error:
            yield Unreadable(source, error)


def _say(prediction: Prediction, file: str, console: Console, complaints: Console) -> None:
    import numpy as np

    from flare_model.judging.scores import unit_of_errors

    part = prediction.part
    words = []
    for target in resolve_targets(tuple(prediction.fields), "the checkpoint"):
        values = prediction.fields[target.name]
        factor, unit = unit_of_errors(target.unit)
        words.append(f"{target.name} {values.min():.4g} … {values.max():.4g} {target.unit}")
        error = prediction.errors.get(target.name)
        if error is not None:
            mean = float(np.linalg.norm(values - prediction.truth[target.name], axis=1).mean()) * factor
            words[-1] += f" (relative L2 error {error:.4f}, mean error {mean:.4g} {unit})"
    for column, of in _extremes(prediction).items():
        words.append(f"extreme {column} {of['extreme']:.4g} ± {of['half_width']:.3g} {of['unit']}")
    place = "" if file == part.name else f" (written as {file})"
    seconds = f"{prediction.seconds:.2f} s"
    console.print(f"{part.name}{place}: {len(part.points):,} points in {seconds}: {'; '.join(words)}")
    for name in prediction.broken_truth:
        complaints.print(
            f"warning: the {name} that {part.name} comes with isn't finite everywhere: no error is shown",
            style=None,
        )
    if prediction.warnings:
        complaints.print(
            f"warning: {part.name} is unlike the parts that the model was trained on: {'; '.join(prediction.warnings)}",
            style=None,
        )


def main() -> None:
    """Entry point of `lpbf-predict`."""
    run(predict, "python -m flare_model.predict")


if __name__ == "__main__":
    main()
