"""Displacing all bodies of a file of surfaces: the STL to print, and a report on each body."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.envelope import BUILD_EXTENTS, reasons_outside
from flare_model.decision.answer import likeness_to_training
from flare_model.decision.prediction import Prediction, predict_part
from flare_model.prediction.part import Meshing, Part, Unreadable
from lpbf_data.errors import GeometryError, UsageError
from lpbf_data.geometry.compensation import Compensated, compensate_surface, joined, refuse_crossings, triangles_said
from lpbf_data.remarks import Remark

if TYPE_CHECKING:
    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.data.likeness import Likeness
    from flare_model.decision.answer import Auxiliary
    from flare_model.decision.material_scale import MaterialScale
    from lpbf_data.geometry.closed_surface import Surface

_DISPLACEMENTS: Final = ("displacement_x", "displacement_y", "displacement_z")


@dataclass(frozen=True)
class CompensatedFile:
    """A displaced file.

    Attributes:
        stl: A binary STL, lengths in mm, the bodies where they lie in the file.
        bodies: Report on each body, as JSON takes it; lengths in mm.
        remarks: What was guessed or repaired on reading it, and where meshes differ from their surfaces.
        scale: Factor of the displacement that was added; -1 compensates.
        material_scale: Factors of predictions for another material; None for that of the training.
    """

    stl: bytes
    bodies: tuple[dict[str, Any], ...]
    remarks: tuple[Remark, ...]
    scale: float
    material_scale: MaterialScale | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report, as JSON takes it."""
        remarks = [remark.as_dict() for remark in self.remarks]
        material = None if self.material_scale is None else self.material_scale.as_dict()
        return {"scale": self.scale, "material": material, "bodies": [*self.bodies], "remarks": remarks}


def compensate_file(
    surrogate: Surrogate,
    auxiliary: Auxiliary,
    source: Path,
    meshing: Meshing,
    scale: float,
    *,
    anyway: bool = False,
) -> CompensatedFile:
    """Displace the bodies of a file by a factor times the displacement that a model predicts.

    Args:
        surrogate: The model.
        auxiliary: Intervals and training shapes of its checkpoint, and the material scale.
        source: A file of closed surfaces.
        meshing: How surfaces become meshes.
        scale: Factor of the displacement: -1 for the part to print, 1 for the shape that it warps to.
        anyway: Displace a body also where its mesh misses parts of it, or it doesn't fit the build volume; its report
            says so.

    Raises:
        UsageError: If the model doesn't predict all three displacements.
        GeometryError: If the file can't be read, a body can't be meshed, its mesh misses parts of it, it doesn't fit
            the build volume, or its displaced surface would cross itself.
    """
    from flare_model.prediction.surface_parts import mesh_bodies
    from lpbf_data.geometry.stl import stl_bytes
    from lpbf_data.geometry.surface_files import load_bodies

    check_targets(surrogate)
    file = load_bodies(source, meshing.units)
    moved, reports = [], []
    remarks: dict[Remark, None] = {}
    for body, part in zip(file.bodies, mesh_bodies(source, file, meshing), strict=True):
        if isinstance(part, Unreadable):
            raise part.error  # a body that can't be meshed would be missing in the result
        doubts = _doubts(part)
        if doubts and not anyway:
            raise GeometryError(f"{'; '.join(doubts)}. Nothing is written; --anyway true writes it all the same")
        compensated, content = _move(surrogate, auxiliary, part, scale)
        content["doubts"] = doubts
        assert part.origin is not None
        shift_back = body.vertices[0] - part.origin.surface.vertices[0]
        moved.append(replace(compensated, vertices=compensated.vertices + shift_back))
        reports.append(content)
        remarks |= dict.fromkeys(part.remarks)
    return CompensatedFile(
        stl_bytes(joined(moved), "lengths in mm"), tuple(reports), tuple(remarks), scale, auxiliary.material_scale
    )


def _doubts(part: Part) -> list[str]:
    """Reasons to doubt a part's predicted displacement: its mesh misses parts of it, or it is too large."""
    assert part.origin is not None
    doubts, check = [], part.origin.check
    if not check.is_quite_the_part:
        advice = "check its unit (--units)" if part.origin.unit_doubtful else check.advice()
        doubts.append(
            f"the mesh of {part.name}, of {check.num_points:,} points (--points), isn't quite the part: "
            f"{', '.join(check.lost())}; {advice}"
        )
    if reasons := reasons_outside(None, part.origin.surface.vertices):
        may_fit = (sorted(part.origin.check.surface_extents) <= np.sort(BUILD_EXTENTS)).all()
        turn = "turn it (lpbf-predict --orientations 24 shows how), " if may_fit else ""
        doubts.append(
            f"{part.name} doesn't fit the build volume that the model knows: {', '.join(reasons)}; {turn}cut it into "
            "parts that fit, or check its unit (--units)"
        )
    return doubts


def _move(surrogate: Surrogate, auxiliary: Auxiliary, part: Part, scale: float) -> tuple[Surface, dict[str, Any]]:
    """The displaced surface of a body, and the report on it.

    Raises:
        LpbfError: If it can't be predicted on, or would cross itself.
    """
    assert part.origin is not None
    prediction = predict_part(surrogate, part, auxiliary.intervals, auxiliary.material_scale)
    compensated = compensate_surface(part.origin.surface, part.points, part.cells, _displacement(prediction), scale)
    refuse_crossings(compensated, part.name, scale)
    likeness = likeness_to_training(part, auxiliary.training_shapes)
    return compensated.surface, _body_report(prediction, compensated, likeness)


def check_targets(surrogate: Surrogate) -> None:
    """Refuse a model that doesn't predict all three displacements.

    Raises:
        UsageError: If it doesn't.
    """
    missing = set(_DISPLACEMENTS) - set(surrogate.usage.columns)
    if missing:
        raise UsageError(
            f"to move a surface takes displacements along x, y and z, and this model doesn't predict "
            f"{', '.join(sorted(missing))}; name another one with --checkpoint"
        )


def _displacement(prediction: Prediction) -> NDArray[np.float32]:
    """Predicted displacement at the points, [N, 3], mm."""
    columns = prediction.columns()
    return np.stack([columns[name] for name in _DISPLACEMENTS], axis=1)


def _body_report(prediction: Prediction, compensated: Compensated, likeness: Likeness | None) -> dict[str, Any]:
    """The report on one body, as JSON takes it; lengths in mm."""
    unlike = [*prediction.warnings]
    if likeness is not None and (unlike or likeness.unlike):
        unlike += map(str, likeness.reasons)
    return {
        "name": prediction.part.name,
        "points": len(prediction.part.points),
        **compensated.as_dict(),
        "half_widths": {n: half for n, (_, half) in prediction.extremes.items() if n in _DISPLACEMENTS},
        "unlike_the_training": unlike,
    }


def describe_body(report: dict[str, Any]) -> str:
    """The report on one body as a sentence."""
    half = max(report["half_widths"].values(), default=None)
    sure = "" if half is None else f", each displacement ± {1000 * half:.3g} µm at most"
    return f"{report['name']}: moved by up to {1000 * report['largest_move']:.3g} µm{sure}; {triangles_said(report)}"
