"""What a calibration found, as a material file: values, where they come from, and how good they are."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lpbf_data.durable import write_durably
from lpbf_data.errors import StoreError
from pipelines.calibrating.experiment import Experiment
from pipelines.calibrating.fitting import Fit
from pipelines.calibrating.request import CalibrationRequest
from pipelines.simulation.materials.material import Material
from pipelines.simulation.materials.material_files import load_material, material_values
from pipelines.simulation.results.identity import GENERATOR

_DIGITS = 5


def calibrated_material(request: CalibrationRequest, fit: Fit) -> Material:
    """The material with the fitted parameters.

    Args:
        request: What was asked for.
        fit: The result of the fit.
    """
    names = ", ".join(parameter.name for parameter in request.parametrisation.parameters)
    source = f"{names} fitted with {GENERATOR} to {request.said}; residual {_residual(fit)}; the rest as before: "
    before = request.parametrisation.material(fit.start)
    material = request.parametrisation.material(fit.parameters, request.name, source + before.calibration.source)
    said = f"calibration {request.name}: {names} fitted to {request.said}"
    return replace(material, sources=(*material.sources, said))


def write_outcome(request: CalibrationRequest, fit: Fit) -> Material:
    """Write the material file: aside, read back, then in its place.

    Args:
        request: What was asked for.
        fit: The result of the fit.

    Raises:
        StoreError: If it doesn't read back as it was written.
    """
    material = calibrated_material(request, fit)
    content = material_values(material) | {"fit": _report(request, fit)}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder, "material.yaml")
        aside.write_text(text, encoding="utf-8")
        if load_material(aside) != material:
            raise StoreError(f"the material file {request.out} doesn't read back as it was written")
    write_durably(request.out, text.encode("utf-8"))
    return material


def _report(request: CalibrationRequest, fit: Fit) -> Mapping[str, Any]:
    experiment, parametrisation = request.experiment, request.parametrisation
    parameters = {
        parameter.name: {
            "meaning": parameter.said,
            "before": _rounded(before),
            "after": _rounded(after),
            "standard_uncertainty": _rounded(uncertainty),
        }
        for parameter, before, after, uncertainty in zip(
            parametrisation.parameters, fit.start, fit.parameters, fit.uncertainty, strict=True
        )
    }
    residual: dict[str, Any] = {"rms_before_mm": _rounded(fit.rms[0]), "rms_after_mm": _rounded(fit.rms[1])}
    if fit.over_sigma is not None:
        residual |= {
            f"rms_{when}_in_sigmas": _rounded(v) for when, v in zip(("before", "after"), fit.over_sigma, strict=True)
        }
    return {
        "fitted_on": dict(request.fitted_on),
        "simulator": GENERATOR,
        "values": len(experiment.measured),
        "cut": request.cut,
        "displacement_counts_from": experiment.reference,
        "moved_as_a_body_to_fit": experiment.held is None,
        "mesh": _mesh(experiment, parametrisation.material(fit.parameters)),
        "numbers": parameters,
        "residual": residual,
        "singular_values": [_rounded(float(value)) for value in fit.singular_values],
        "undetermined": list(fit.undetermined) or ["nothing of what was fitted"],
        "uncertainty_means": UNCERTAINTY,
        "simulations": fit.simulations,
        "remarks": [str(remark) for remark in request.remarks],
    }


UNCERTAINTY = (
    "one standard deviation, from sigma_mm (or from what the fit leaves, where that is more) and the Jacobian; errors "
    "of the simulator that neighbouring values share aren't in it, nor is what the data don't determine"
)
"""What the uncertainty of a parameter holds."""


def _mesh(experiment: Experiment, material: Material) -> dict[str, Any]:
    return {
        "points": experiment.mesh.num_points,
        "cell_mm": [_rounded(float(edge)) for edge in experiment.mesh.spacing],
        "planes_a_group": 2 ** experiment.refinement(material),
    }


def _residual(fit: Fit) -> str:
    return f"{fit.rms[0]:.3g} mm before and {fit.rms[1]:.3g} mm after (root mean square)"


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
