"""`python -m pipelines.calibrate --measured a.csv --stl a.stl --cut 'x<56' --material Inc625 --out my.yaml`.

Fit how much layers shrink to measured displacements, or to a result of NetFabb, by a few simulations, and write a
material file that `pipelines.simulate --material my.yaml` takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks, progress, say
from lpbf_data.geometry.surface_formats import UNIT_SPELLINGS, Units
from pipelines.simulation.choices import CalibrationName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from pipelines.calibrating.fitting import Fit
    from pipelines.calibrating.request import CalibrationRequest
    from pipelines.simulation.materials.material import Material


def calibrate(
    out: str,
    *,
    measured: str | None = None,
    stl: str | None = None,
    part: str | None = None,
    netfabb: str | None = None,
    material: str | None = None,
    calibration: CalibrationName | None = None,
    fit: list[str] = [],  # noqa: B006 (read only)
    cut: str | None = None,
    reference: Literal["before_cut", "nominal"] | None = None,
    units: Units | None = None,
    points: int | None = None,
    name: str | None = None,
    pictures: bool = True,
) -> int:
    """Fit how much layers shrink to measured displacements or to a result of NetFabb; a material file comes out.

    Args:
        out: Material file to write (YAML), for `pipelines.simulate --material`; the picture lies beside it.
        measured: Table of measured displacements (CSV) with the columns point, x_mm, y_mm, z_mm, component (x, y or z),
            value_mm, sigma_mm (standard uncertainty); points in the coordinates of the surface file.
        stl: Surface file (STL, OBJ, PLY, OFF, 3MF) of the part that was measured.
        part: A part that is known by name instead: amb2018_bridge (NIST's measured values are in the package, for
            Inc625 and 15-5PH) or cantilever.
        netfabb: Folder of a finished result of NetFabb instead, with its STL file.
        material: Material to start from: Ti64, Inc625, SS316L, 15-5PH, AlSi10Mg, or a YAML file; with --netfabb the one
            that its log names by default.
        calibration: Calibration to start from: measured or netfabb; by default the material's own, with --netfabb
            netfabb.
        fit: Parameters to fit, at most three: strain (the in-plane inherent strain of layers; the default), normal and
            along (its relative reduction at walls, normal to them and along them; all three by default with --netfabb).
        cut: What was cut from the plate before it was measured, such as x<56 or 'x<29 or x>43', in mm; all by default.
        reference: Whether displacements count from the part before the cut or from its nominal shape; before_cut by
            default where something stays on the plate, else nominal.
        units: Unit of lengths in the surface file; by default the one that it states (3MF), else mm.
        points: Points of the mesh; 5,000 by default, parts known by name have cells of their own.
        name: Name of the calibration in logs and cards; that of the output file by default.
        pictures: Whether to draw measured and simulated values.

    Returns:
        Exit status: 0; errors are reported in a sentence, and no material file is written.
    """
    from pipelines.calibrating.options import CalibrationOptions, check_options

    options = CalibrationOptions(
        measured, stl, part, netfabb, material, calibration, tuple(fit), cut, reference, units, points, name
    )
    check_options(out, options)  # before anything heavy is imported

    from pipelines.calibrating.request import check_request

    request = check_request(out, options)
    found = run_calibration(request)

    from pipelines.calibrating.outcome import write_outcome

    material_of_ours = write_outcome(request, found)
    if pictures:
        from pipelines.calibrating.picture import draw

        draw(request, found)
    print_fit(request, found, material_of_ours, open_console())
    return 0


def run_calibration(request: CalibrationRequest) -> Fit:
    """Simulate and fit.

    Args:
        request: What was asked for.

    Returns:
        The result of the fit.

    Raises:
        FitError: If nothing can be fitted.
        SolverError: If a simulation fails.
    """
    from threadpoolctl import threadpool_limits

    from pipelines.calibrating.fitting import fit

    experiment, parametrisation = request.experiment, request.parametrisation
    expected = len(parametrisation.parameters) + 2
    say(
        f"{experiment.mesh.num_points:,} points, {len(experiment.measured):,} values, "
        f"{', '.join(parameter.name for parameter in parametrisation.parameters)} to fit: about {expected} simulations"
    )
    with progress(expected, "calibrate", "simulation") as bar, threadpool_limits(limits=1):

        def simulate(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
            values = experiment.simulate(parametrisation.material(parameters))
            bar.update()
            return values

        return fit(parametrisation, experiment.values, simulate)


def print_fit(request: CalibrationRequest, fit: Fit, material: Material, console: Console) -> None:
    """Print what was found.

    Args:
        request: What was asked for.
        fit: The result of the fit.
        material: The material that was written.
        console: Where to print.
    """
    from rich.table import Table

    table = Table(title=f"calibration {request.name} in {request.out}", title_justify="left")
    for heading in ("", "before", "after", "uncertainty"):
        table.add_column(heading, justify="left" if not heading else "right")
    for parameter, before, after, spread in zip(
        request.parametrisation.parameters, fit.start, fit.parameters, fit.uncertainty, strict=True
    ):
        table.add_row(parameter.name, f"{before:.5g}", f"{after:.5g}", f"{spread:.2g}")
        if parameter.name == "strain":
            drops = (f"{-value / material.expansion:.4g} K" for value in (before, after))
            table.add_row("  as cooling", *drops, f"{spread / material.expansion:.2g} K")
    table.add_row("residual (rms)", *(f"{value:.4g} mm" for value in fit.rms), "")
    if fit.over_sigma is not None:
        table.add_row("  in uncertainties", *(f"{value:.3g}" for value in fit.over_sigma), "")
    console.print(table)
    console.print(f"{len(request.experiment.measured):,} values, {fit.simulations} simulations, {request.said}")
    for sentence in fit.undetermined:
        console.print(f"note: {sentence}")
    print_remarks(request.remarks, console)


def main() -> None:
    """Entry point of `lpbf-calibrate`."""
    run(calibrate, "python -m pipelines.calibrate", spellings={"units": UNIT_SPELLINGS})


if __name__ == "__main__":
    main()
