"""`python -m flare_model.compensate --src part.stl --out part_compensated.stl`: what to print for a straight part.

Each vertex of the surface moves against the displacement that the model predicts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks
from lpbf_data.durable import write_durably
from lpbf_data.errors import GeometryError, UsageError
from lpbf_data.geometry.surface_formats import SURFACE_SUFFIXES, Units
from lpbf_data.remarks import Remark

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.decision.answer import Beside
    from flare_model.decision.compensation import Compensated
    from flare_model.decision.prediction import Prediction
    from flare_model.prediction.part import Part
    from lpbf_data.geometry.closed_surface import Surface

_DISPLACEMENTS = ("displacement_x", "displacement_y", "displacement_z")
_MOST_PLACES = 5


def compensate(
    src: str,
    out: str,
    *,
    checkpoint: str | None = None,
    scale: float = -1.0,
    points: int | None = None,
    units: Units | None = None,
    material: str | None = None,
    trust: str | None = None,
    accelerator: str = "auto",
) -> int:
    """Move a surface against the displacement that a model predicts, so that the printed part comes out straight.

    Args:
        src: A file of closed surfaces: STL, OBJ, PLY, OFF or 3MF.
        out: The STL to write, in mm, where the bodies of the file lie; what was done goes into a JSON file beside it.
        checkpoint: Folder of a run or checkpoint, or an id on the Hugging Face hub; the model that comes with the
            package where none is named.
        scale: How many times the displacement is added, -5 to 5: -1 compensates it, 1 shows the part as it warps.
        points: Points that the surface is meshed with; by default the median of the parts of the training.
        units: Unit of lengths in the file; by default the one that it states (3MF), else mm.
        material: Material and calibration of your machine, as in flare_model.predict: a YAML file as
            pipelines.calibrate writes it, a named material or a calibration; by default those of the training.
        trust: Class path of a model outside of this package that may be imported.
        accelerator: auto, cpu or gpu.

    Returns:
        Exit status: 0; 1 where the surface would cross itself, and nothing is written.
    """
    if not -5 <= scale <= 5:
        raise UsageError(f"--scale must lie between -5 and 5, not {scale:g}")
    if points is not None and points < 8:
        raise UsageError(f"--points must be 8 or more, not {points}")
    source, target = Path(src), Path(out)
    if source.suffix.lower() not in SURFACE_SUFFIXES:
        raise UsageError(f"{src}: surfaces are read from {', '.join(SURFACE_SUFFIXES)} files")
    if target.suffix.lower() != ".stl":
        raise UsageError(f"--out must be an STL file, not {out}")
    if target.resolve() == source.resolve():
        raise UsageError(f"--out must be another file than {src}, which stays as it is")
    from flare_model.checkpoints.own import own_checkpoint
    from flare_model.checkpoints.surrogate import from_pretrained
    from flare_model.decision.beside import read_beside
    from flare_model.decision.compensation import joined
    from flare_model.predict import usual_points
    from flare_model.prediction.part import Meshing, Unreadable
    from flare_model.prediction.surface_parts import mesh_bodies
    from flare_model.training.devices import device_of
    from lpbf_data.geometry.stl import stl_bytes
    from lpbf_data.geometry.surface_files import load_bodies

    checkpoint = checkpoint or own_checkpoint()
    surrogate = from_pretrained(checkpoint, trust=trust).to(device_of(accelerator))
    _check_targets(surrogate)
    beside, doubts = read_beside(checkpoint, surrogate, material)
    console, complaints = open_console(), open_console(stderr=True)
    for doubt in doubts:
        complaints.print(f"warning: {doubt}", style=None)
    file = load_bodies(source, units)
    parts = mesh_bodies(source, file, Meshing(points or usual_points(surrogate), units=units))
    moved, told = [], []
    remarks: dict[Remark, None] = {}
    for body, part in zip(file.bodies, parts, strict=True):
        if isinstance(part, Unreadable):
            raise part.error  # a body that can't be meshed would be missing in the result
        found, content = _move(surrogate, beside, part, scale)
        assert part.origin is not None
        back = body.vertices[0] - part.origin.surface.vertices[0]
        moved.append(replace(found, vertices=found.vertices + back))
        told.append(content)
        remarks |= dict.fromkeys(part.remarks)
    write_durably(target, stl_bytes(joined(moved), "lengths in mm"))
    known = beside.scale.as_dict() if beside.scale is not None else None
    stored = {"scale": scale, "material": known, "bodies": told, "remarks": [remark.as_dict() for remark in remarks]}
    write_durably(target.with_suffix(".json"), (json.dumps(stored, indent=1) + "\n").encode())
    for content in told:
        console.print(_said(content))
        for reason in content["unlike_the_training"]:
            complaints.print(f"warning: {content['name']} is unlike the parts of the training: {reason}", style=None)
    made_for = "uncalibrated for your machine" if beside.scale is None else beside.scale.said()
    console.print(f"{scale:g} times the displacement is in {target}; {made_for}")
    print_remarks(remarks, complaints)
    return 0


def _move(surrogate: Surrogate, beside: Beside, part: Part, scale: float) -> tuple[Surface, dict[str, Any]]:
    """A body's surface, moved, and what was done.

    Raises:
        LpbfError: If it can't be predicted on, or would cross itself.
    """
    from flare_model.decision.compensation import compensate_surface
    from flare_model.decision.prediction import predict_part

    assert part.origin is not None
    prediction = predict_part(surrogate, part, beside.intervals, beside.scale)
    found = compensate_surface(part.origin.surface, part.points, part.cells, _displacement(prediction), scale)
    _refuse_crossings(found, part.name, scale)
    return found.surface, _told(prediction, found)


def _check_targets(surrogate: Surrogate) -> None:
    from flare_model.data.targets import column_names, resolve_targets

    missing = set(_DISPLACEMENTS) - set(column_names(resolve_targets(surrogate.usage.targets, "the checkpoint")))
    if missing:
        raise UsageError(
            f"to move a surface takes displacements along x, y and z, and this model doesn't predict "
            f"{', '.join(sorted(missing))}; name another one with --checkpoint"
        )


def _displacement(prediction: Prediction) -> NDArray[np.float32]:
    """At the points, [N, 3], mm."""
    import numpy as np

    from flare_model.data.targets import resolve_targets

    found = {}
    for target in resolve_targets(tuple(prediction.fields), "the checkpoint"):
        for k, column in enumerate(target.columns):
            found[column] = prediction.fields[target.name][:, k]
    return np.stack([found[name] for name in _DISPLACEMENTS], axis=1)


def _refuse_crossings(found: Compensated, name: str, scale: float) -> None:
    if not len(found.crossings):
        return
    places = "; ".join("x {:.2f}, y {:.2f}, z {:.2f} mm".format(*place) for place in found.crossings[:_MOST_PLACES])
    more = ", …" if len(found.crossings) > _MOST_PLACES else ""
    raise GeometryError(
        f"{name} would cross itself at {len(found.crossings):,} places ({places}{more}), and isn't written; "
        f"take a --scale nearer to 0 than {scale:g}, or widen the gaps there"
    )


def _told(prediction: Prediction, found: Compensated) -> dict[str, Any]:
    """What was done to one body, as JSON takes it; lengths in mm."""
    return {
        "name": prediction.part.name,
        "points": len(prediction.part.points),
        "triangles": len(found.surface.triangles),
        "triangles_added": found.split,
        "longest_edge": found.edge,
        "largest_move": found.largest,
        "half_widths": {n: half for n, (_, half) in prediction.extremes.items() if n in _DISPLACEMENTS},
        "unlike_the_training": list(prediction.warnings),
    }


def _said(told: dict[str, Any]) -> str:
    half = max(told["half_widths"].values(), default=None)
    sure = "" if half is None else f", each displacement ± {1000 * half:.3g} µm at most"
    return (
        f"{told['name']}: moved by up to {1000 * told['largest_move']:.3g} µm{sure}; {told['triangles']:,} "
        f"triangles ({told['triangles_added']:,} added, edges up to {told['longest_edge']:.3g} mm); "
        "closed, crosses itself nowhere"
    )


def main() -> None:
    """Entry point of `lpbf-compensate`."""
    run(compensate, "python -m flare_model.compensate", positional=("src", "out"))


if __name__ == "__main__":
    main()
