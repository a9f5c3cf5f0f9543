"""Pictures of cases, drawn off screen: several parts or fields side by side on one colour scale."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.case import Case
from lpbf_data.case.schema import FIELDS
from lpbf_data.durable import write_durably
from lpbf_data.errors import UsageError
from lpbf_data.geometry.outer_surface import outer_faces

MAGNITUDE: Final = "magnitude"
"""Instead of a component: the length of a vector."""

_BAR_SHARE: Final = 0.24  # height of the colour bar against that of a row of panels
_PLAIN: Final = "#c9ccd1"
_FONT: Final = 9
_MAX_FACES_WITH_EDGES: Final = 5000  # faces of a part whose edges are drawn


@dataclass(frozen=True)
class Panel:
    """One part in a picture.

    Attributes:
        case: The part.
        label: Text above it.
        field: Field that colours it; None for a plain surface.
        component: Component of a vector or tensor, or `MAGNITUDE`.
        exaggeration: Factor by which its displacement is drawn; 0 draws the nominal shape.
    """

    case: Case
    label: str = ""
    field: str | None = "displacement"
    component: str | None = "z"
    exaggeration: float = 0.0


def panel_values(panel: Panel) -> NDArray[np.float32] | None:
    """What colours a panel: one number per point, or per cell; None for a plain surface.

    Args:
        panel: The panel.

    Raises:
        UsageError: If the case doesn't have the field, or the field not the component.
    """
    if panel.field is None:
        return None
    if panel.field not in panel.case.fields:
        stored = ", ".join(panel.case.fields) or "none"
        raise UsageError(f"case {panel.case.case_id} has no field {panel.field!r}; it has: {stored}")
    values, spec = panel.case.fields[panel.field], FIELDS[panel.field]
    if not spec.components:
        return values
    if panel.component == MAGNITUDE and len(spec.components) == 3:
        lengths: NDArray[np.float32] = np.linalg.norm(values, axis=1).astype(np.float32)
        return lengths
    if panel.component not in spec.components:
        raise UsageError(f"{panel.field} has no component {panel.component!r}; it has: {', '.join(spec.components)}")
    return values[:, spec.components.index(panel.component)]


def color_limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Limits of one colour scale for all panels; around zero when values lie on both sides of it.

    Args:
        panels: The panels.
    """
    arrays = [values for values in map(panel_values, panels) if values is not None]
    if not arrays:
        return 0.0, 1.0
    low, high = min(float(v.min()) for v in arrays), max(float(v.max()) for v in arrays)
    if low < 0 < high:
        high = max(-low, high)
        low = -high
    if high == low:
        high = low + max(abs(low), 1.0) * 1e-6
    return low, high


def render_panels(
    panels: Sequence[Panel],
    path: Path,
    *,
    columns: int | None = None,
    panel_size: tuple[int, int] = (420, 360),
    limits: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Draw panels into a PNG file, which appears whole or not at all.

    Args:
        panels: The panels, row by row; coloured ones must show the same quantity.
        path: The file.
        columns: Panels in a row; all in one row by default.
        panel_size: Width and height of a panel in pixels.
        limits: Limits of the colour scale; those of all values by default.

    Returns:
        The limits of the colour scale.

    Raises:
        UsageError: If there are no panels, or they can't share a colour scale.
    """
    if not panels:
        raise UsageError("there is nothing to draw: no panels")
    titles = {_bar_title(panel) for panel in panels if panel.field is not None}
    if len(titles) > 1:
        raise UsageError(f"one colour scale can't serve different quantities: {', '.join(sorted(titles))}")
    low, high = color_limits(panels) if limits is None else limits
    pyvista = import_pyvista()
    across = columns or len(panels)
    rows = -(-len(panels) // across)
    weights = [1.0] * rows + ([_BAR_SHARE] if titles else [])
    plotter = pyvista.Plotter(
        off_screen=True,
        shape=(len(weights), across),
        row_weights=weights,
        groups=[(rows, slice(None))] if titles else None,
        border=False,
        window_size=(panel_size[0] * across, round(panel_size[1] * sum(weights))),
    )
    plotter.set_background("white")
    style = {"clim": (low, high), "cmap": "coolwarm" if low < 0 < high else "viridis"}
    for number, panel in enumerate(panels):
        plotter.subplot(*divmod(number, across))
        _draw(pyvista, plotter, panel, style)
    if titles:
        plotter.subplot(rows, 0)
        _draw_bar(pyvista, plotter, titles.pop(), style)
    _save(plotter.screenshot(None, return_img=True), path)
    plotter.close()
    return low, high


def import_pyvista() -> Any:
    """PyVista, with VTK silent about the screens that it tries before it finds that there is none."""
    # Software OpenGL and triton both bring LLVM. Loaded after the first picture, as torch_geometric does, triton ends
    # the process; loaded before it, it does no harm.
    with contextlib.suppress(ImportError):
        import_module("triton")
    import pyvista
    from vtkmodules.vtkCommonCore import vtkLogger

    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)
    return pyvista


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    """Save with a palette: a third of the size, and no difference that one could see."""
    from PIL import Image

    image = Image.fromarray(picture)
    content = io.BytesIO()
    palette = image.quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(content, format="png", optimize=True)
    write_durably(path, content.getvalue())


def _bar_title(panel: Panel) -> str:
    assert panel.field is not None
    spec = FIELDS[panel.field]
    name = panel.field.replace("_", " ")
    what = f"{panel.component} {name}" if spec.components else name
    return f"{what} [{spec.unit}]"


def _draw(pyvista: Any, plotter: Any, panel: Panel, style: dict[str, Any]) -> None:
    case, values = panel.case, panel_values(panel)
    points = case.points.astype(np.float64)
    if panel.exaggeration:
        points = points + panel.exaggeration * case.fields["displacement"]
    faces = outer_faces(case.points, case.cells)
    surface = pyvista.PolyData(points, np.insert(faces, 0, 4, axis=1).ravel())
    look = {"show_edges": len(faces) < _MAX_FACES_WITH_EDGES, "edge_color": "#50545a", "line_width": 0.4}
    if values is None:
        plotter.add_mesh(surface, color=_PLAIN, ambient=0.45, diffuse=0.6, specular=0.0, **look)
    elif len(values) == len(points):
        surface.point_data["values"] = values
        # Without light: a colour on the surface is the one that the colour bar has for its value.
        plotter.add_mesh(surface, scalars="values", show_scalar_bar=False, lighting=False, **style, **look)
    else:
        raise UsageError(f"{panel.field} is a field of cells; only fields of points can be drawn")
    if panel.label:
        plotter.add_text(panel.label, position="upper_edge", font_size=_FONT, color="black")
    plotter.enable_parallel_projection()
    plotter.view_isometric()
    plotter.camera.zoom(0.95)


def _draw_bar(pyvista: Any, plotter: Any, title: str, style: dict[str, Any]) -> None:
    """The colour bar alone, below the panels."""
    dot = pyvista.PolyData(np.zeros((1, 3)))
    dot.point_data["values"] = np.zeros(1)
    plotter.add_mesh(dot, scalars="values", opacity=0.0, show_scalar_bar=False, **style)
    # A title of the bar's own would lie on its labels.
    plotter.add_text(title, position="upper_edge", font_size=_FONT, color="black")
    plotter.add_scalar_bar(
        title="",
        vertical=False,
        width=0.7,
        height=0.5,
        position_x=0.15,
        position_y=0.1,
        n_labels=5,
        fmt="%.4g",
        color="black",
        label_font_size=16,
    )
