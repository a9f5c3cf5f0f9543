"""A picture of a calibration: measured values, and what was simulated before and after."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np

from lpbf_data.durable import write_durably
from pipelines.calibrating.fitting import Fit
from pipelines.calibrating.measured_file import COMPONENTS
from pipelines.calibrating.request import CalibrationRequest

_MAX_ALONG: Final = 200  # values of a component, up to which they are shown along the part
_BEFORE: Final = {"color": "#b0b0b0", "label": "simulated before"}
_AFTER: Final = {"color": "#c44e52", "label": "simulated after"}
_MEASURED: Final = {"color": "#222222", "label": "measured"}


def draw(request: CalibrationRequest, fit: Fit) -> None:
    """Draw beside the material file, as PNG: few values along the part, many against the measured ones.

    Args:
        request: What was asked for.
        fit: The result of the fit.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    measured = request.experiment.measured
    shown = [k for k in range(3) if (measured.components == k).any()]
    # Whatever style the user has set up: the picture is the material's.
    with style.context(["default", {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}]):
        figure = Figure(figsize=(1.0 + 4.2 * len(shown), 3.6), layout="constrained", facecolor="white")
        for axes, component in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            mine = measured.components == component
            axis = COMPONENTS[component]
            many = mine.sum() > _MAX_ALONG
            if many:
                _against(axes, measured.values[mine], fit.before[mine], fit.after[mine], axis)
            else:
                _along(axes, request, fit, mine)
                axes.set_ylabel(f"displacement along {axis} [mm]")
            axes.grid(alpha=0.3)
            axes.legend(loc="upper left" if many else "best", frameon=False)  # points lie along the diagonal
        figure.suptitle(f"{request.name}: {fit.rms[0]:.3g} mm off before, {fit.rms[1]:.3g} mm after (root mean square)")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    write_durably(request.out.with_suffix(".png"), drawn.getvalue())


def _along(axes: Any, request: CalibrationRequest, fit: Fit, mine: Any) -> None:
    measured = request.experiment.measured
    longest = int(np.ptp(measured.coordinates[mine], axis=0).argmax())
    order = np.flatnonzero(mine)[np.argsort(measured.coordinates[mine, longest], kind="stable")]
    along = measured.coordinates[order, longest]
    axes.plot(along, fit.before[order], ".-", **_BEFORE)
    axes.plot(along, fit.after[order], ".-", **_AFTER)
    sigmas = None if measured.sigmas is None else measured.sigmas[order]
    axes.errorbar(along, measured.values[order], sigmas, fmt="o", markersize=4, capsize=2, **_MEASURED)
    axes.set_xlabel(f"{COMPONENTS[longest]} [mm]")


def _against(axes: Any, measured: Any, before: Any, after: Any, axis: str) -> None:
    ends = [float(measured.min()), float(measured.max())]
    axes.plot(measured, before, ".", markersize=2, **_BEFORE)
    axes.plot(measured, after, ".", markersize=2, **_AFTER)
    axes.plot(ends, ends, "-", linewidth=1, color="#222222", label="equal")
    axes.set(xlabel=f"measured along {axis} [mm]", ylabel="simulated [mm]")
