"""Predictions as pictures: truth, prediction and error side by side on one colour scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.point_fields import PointField, resolve_target
from flare_model.prediction.parts import Part
from lpbf_data.case.case import Case
from lpbf_data.case.schema import FIELDS
from lpbf_data.geometry.render import MAGNITUDE, Panel, render_panels

_SIZE: Final = (420, 360)
_ALONE: Final = (640, 480)
"""Size in pixels of a panel beside others, and of a single one, which must hold the whole colour bar."""


def draw_prediction(
    path: Path, part: Part, name: str, prediction: NDArray[np.float32], truth: NDArray[np.float32] | None
) -> None:
    """Draw one target of one part.

    Args:
        path: The PNG.
        part: The part.
        name: The target.
        prediction: [N, components], in physical units.
        truth: Truth, [N, components]; None where it isn't known.
    """
    target = resolve_target(name)
    shown: Mapping[str, NDArray[np.float32]] = {"prediction": prediction}
    if truth is not None:
        shown = {"truth": truth, "prediction": prediction, "prediction - truth": prediction - truth}
    panels = [_panel(part, target, label, values) for label, values in shown.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    render_panels(panels, path, panel_size=_SIZE if len(panels) > 1 else _ALONE)


def _panel(part: Part, target: PointField, label: str, values: NDArray[np.float32]) -> Panel:
    """A part coloured by a target: by its component, the length of a vector, or the zz of a tensor."""
    spec = FIELDS[target.field]
    whole = np.zeros((len(part.points), spec.num_components), np.float32)
    whole[:, list(target.components)] = values
    case = Case(part.name, part.points, part.cells, {spec.name: whole if spec.components else whole[:, 0]})
    component = None
    if target.width == 1 and spec.components:
        component = spec.components[target.components[0]]
    elif spec.components:
        component = MAGNITUDE if len(spec.components) == 3 else "zz"
    return Panel(case, label, spec.name, component)
