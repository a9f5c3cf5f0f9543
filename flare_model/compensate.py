"""`python -m flare_model.compensate --src part.stl --out part_compensated.stl`: what to print for a straight part.

Each vertex of the surface moves against the displacement that the model predicts.
"""

from __future__ import annotations

import json
from pathlib import Path

from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks
from lpbf_data.durable import write_durably
from lpbf_data.geometry.surface_formats import UNIT_SPELLINGS, Units


def compensate(
    src: str,
    out: str,
    *,
    checkpoint: str | None = None,
    scale: float = -1.0,
    points: int | None = None,
    units: Units | None = None,
    material: str | None = None,
    anyway: bool = False,
    trust: str | None = None,
    accelerator: str = "auto",
) -> int:
    """Move a surface against the displacement that a model predicts, so that the printed part comes out straight.

    A warning says where a part is unlike those that the model was trained on.

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
        anyway: Write the surface too where its mesh isn't the part, or where it doesn't fit the build volume that the
            model knows; what is wrong is a warning then.
        trust: Class path of a model outside of this package that may be imported.
        accelerator: auto, cpu or gpu.

    Returns:
        Exit status: 0; 1 where the surface would cross itself, its mesh isn't the part, or it doesn't fit the build
        volume, and nothing is written.
    """
    from flare_model.prediction.part import Meshing, check_points
    from lpbf_data.geometry.compensation import check_files

    source, target = Path(src), Path(out)
    check_points(points)
    check_files(source, target, scale)

    from flare_model.checkpoints.packaged_model import packaged_checkpoint
    from flare_model.checkpoints.surrogate import from_pretrained
    from flare_model.decision.answer_text import first_reasons
    from flare_model.decision.auxiliary import read_auxiliary
    from flare_model.decision.compensated_file import check_targets, compensate_file, describe_body
    from flare_model.predict import default_points
    from flare_model.training.devices import device_of

    checkpoint = checkpoint or packaged_checkpoint()
    surrogate = from_pretrained(checkpoint, trust=trust).to(device_of(accelerator))
    check_targets(surrogate)
    auxiliary, doubts = read_auxiliary(checkpoint, surrogate, material)
    console, errors_console = open_console(), open_console(stderr=True)
    for doubt in (*doubts, *auxiliary.model_doubts):
        errors_console.print(f"warning: {doubt}", style=None)
    meshing = Meshing(points or default_points(surrogate), units=units, refined=points is None)
    found = compensate_file(surrogate, auxiliary, source, meshing, scale, anyway=anyway)
    write_durably(target, found.stl)
    write_durably(target.with_suffix(".json"), (json.dumps(found.as_dict(), indent=1) + "\n").encode())
    for content in found.bodies:
        console.print(describe_body(content))
        for doubt in content["doubts"]:
            errors_console.print(f"warning: {doubt}", style=None)
        if reasons := content["unlike_the_training"]:
            shown = first_reasons(reasons)
            errors_console.print(f"warning: {content['name']} is unlike the parts of the training: {shown}", style=None)
    made_for = (
        "not calibrated to your machine (--material)"
        if auxiliary.material_scale is None
        else auxiliary.material_scale.describe()
    )
    console.print(f"{scale:g} times the displacement is in {target}; {made_for}")
    print_remarks(found.remarks, errors_console)
    return 0


def main() -> None:
    """Entry point of `lpbf-compensate`."""
    run(compensate, "python -m flare_model.compensate", positional=("src", "out"), spellings={"units": UNIT_SPELLINGS})


if __name__ == "__main__":
    main()
