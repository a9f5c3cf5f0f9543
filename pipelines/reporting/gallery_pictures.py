"""Pictures of parts and of distributions: VTK draws a part, matplotlib puts pictures and bars together.

VTK draws through whatever OpenGL the machine has, and a broken driver takes the process along: parts are drawn in a
process of their own, and what can't be drawn is reported in a sentence instead.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.record import CaseRecord
from lpbf_data.geometry.render import import_pyvista
from lpbf_data.viewer.palettes import SIGNED_PALETTE
from pipelines.reporting.overview import QUANTITIES, Quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

STILL_SIZE: Final = (320, 240)
"""Width and height of a part's picture in pixels."""

VIEW_DIRECTION: Final = (1.0, -1.6, 0.9)
"""From the part to the eye; z is up."""

_SAMPLES: Final = 2  # along each axis of a pixel
_TIME_LIMIT: Final = 120.0  # seconds for one picture, the start of the process included
_MARGIN: Final = 1.06

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawing:
    """What a picture of a part needs.

    Attributes:
        points: Points of the surface, [S, 3].
        faces: Quadrilaterals over them, [F, 4].
        values: Signed values at the points, [S]; the colours reach equally far to both sides of zero.
    """

    points: NDArray[np.floating[Any]]
    faces: NDArray[np.int64]
    values: NDArray[np.floating[Any]]


def draw_part(drawing: Drawing, size: tuple[int, int] = STILL_SIZE) -> Pixels:
    """Draw a part before a transparent background.

    Without light, so that a colour means the value that it has in the colour bar; edges show the shape.

    Args:
        drawing: The part.
        size: Width and height in pixels.

    Returns:
        [height, width, 4] uint8.
    """
    from PIL import Image

    pyvista = import_pyvista()
    plotter = _offscreen_plotter(size[0] * _SAMPLES, size[1] * _SAMPLES)
    plotter.clear_actors()
    mesh = pyvista.PolyData.from_regular_faces(drawing.points.astype(np.float32), drawing.faces)
    furthest = float(np.abs(drawing.values).max(initial=0.0)) or 1.0
    plotter.add_mesh(
        mesh, scalars=drawing.values.astype(np.float32), cmap=SIGNED_PALETTE, clim=(-furthest, furthest),
        show_scalar_bar=False, lighting=False, render=False,
    )  # fmt: skip
    edges = mesh.extract_feature_edges(30, boundary_edges=False, non_manifold_edges=False)
    if edges.n_points:
        plotter.add_mesh(edges, color="black", opacity=0.35, line_width=_SAMPLES, lighting=False, render=False)
    _aim(plotter.camera, drawing.points, size[0] / size[1])
    plotter.render()
    pixels = plotter.screenshot(None, transparent_background=True, return_img=True)
    drawn: Pixels = np.asarray(Image.fromarray(pixels).reduce(_SAMPLES))
    return drawn


@functools.lru_cache(maxsize=1)
def _offscreen_plotter(width: int, height: int) -> Any:
    """The plotter, kept from picture to picture: to make one takes longer than to draw."""
    pyvista = import_pyvista()
    plotter = pyvista.Plotter(off_screen=True, window_size=[width, height], lighting="none")
    # Every pixel is the mean of several already; to sample each of those as well doubles the time.
    plotter.render_window.SetMultiSamples(0)
    plotter.show(auto_close=False)
    return plotter


def _aim(camera: Any, points: NDArray[np.floating[Any]], aspect: float) -> None:
    """Look at the part from VIEW_DIRECTION, in parallel projection, so that it just fits."""
    eye = np.array(VIEW_DIRECTION) / np.linalg.norm(VIEW_DIRECTION)
    right = np.cross([0, 0, 1], eye)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(eye, right), eye])
    seen = points.astype(np.float64) @ axes.T
    least, largest = seen.min(axis=0), seen.max(axis=0)
    middle, extent = (least + largest) / 2 @ axes, largest - least
    camera.parallel_projection = True
    camera.focal_point = tuple(middle)
    camera.position = tuple(middle + eye * (2 * float(np.linalg.norm(extent)) + 1))
    camera.up = (0, 0, 1)
    camera.parallel_scale = max(extent[1], extent[0] / aspect, 1e-6) / 2 * _MARGIN
    camera.reset_clipping_range()


class PartRenderer:
    """Draws parts in a process of its own, one after the other; use it as a context.

    Once something goes wrong it draws nothing more and says why in `problem`.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        # Not forked: OpenGL doesn't survive that, nor do threads.
        self._pool = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            if self.problem is not None:
                self._end_process()
            self._pool.shutdown(wait=self.problem is None, cancel_futures=True)

    def _end_process(self) -> None:
        """End the process that draws: it may hang, and this one would wait for it at its own end."""
        # Python 3.14 has kill_workers() for this; what it does is the same.
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.kill()

    def start(self, drawing: Drawing) -> Future[Pixels] | None:
        """Begin a picture; None when nothing can be drawn.

        Args:
            drawing: The part.
        """
        if self.problem is not None or self._pool is None:
            return None
        try:
            return self._pool.submit(draw_part, drawing)
        except (BrokenProcessPool, RuntimeError) as error:
            self._give_up(error)
            return None

    def finish(self, started: Future[Pixels] | None) -> Pixels | None:
        """The picture that was begun; None when it can't be drawn.

        Args:
            started: What `start` gave.
        """
        if started is None or self.problem is not None:
            return None
        try:
            return started.result(timeout=_TIME_LIMIT)
        except Exception as error:  # noqa: BLE001 (VTK, its driver and the pool have errors of many kinds)
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        kind = type(error).__name__
        if isinstance(error, ImportError):
            reason = f"{error}; install pyvista"
        elif isinstance(error, BrokenProcessPool):
            reason = "the process that draws with VTK died; is there an OpenGL (libegl1 and libgl1-mesa-dri on Debian)?"
        elif isinstance(error, TimeoutError):
            reason = f"VTK didn't finish a picture in {_TIME_LIMIT:g} s"
        else:
            reason = f"{kind}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no further word'}"
        self.problem = f"no pictures were drawn ({reason})"
        self._end_process()


def encode_still(pixels: Pixels) -> bytes:
    """A picture as WebP, a few kilobytes.

    Args:
        pixels: [height, width, 4] uint8.
    """
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "WEBP", quality=78, method=2)
    return sink.getvalue()


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure that is written as PNG into a buffer when it is done, without the time and the version of a program."""
    from matplotlib import style
    from matplotlib.figure import Figure
    from PIL import Image

    sink = io.BytesIO()
    # Whatever style the user has set up: the picture is the data set's.
    with style.context(["default", {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}]):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield figure, sink
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").save(sink, "PNG", optimize=True)


def draw_mosaic(pictures: Sequence[tuple[Pixels, str]]) -> bytes:
    """Some parts beside each other, with the colours that they share, as PNG.

    Args:
        pictures: Pixels [height, width, 4], and a line to stand below.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    with _figure(2.6 * columns, 2.15 * rows + 0.5) as (figure, sink):
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False).ravel())
        for axis in axes:
            axis.axis("off")
        for axis, (pixels, line) in zip(axes, pictures, strict=False):
            axis.imshow(pixels, interpolation="lanczos")
            axis.set_title(line, y=-0.12, fontsize=8, parse_math=False)
        scale = ScalarMappable(Normalize(-1, 1), cmap=SIGNED_PALETTE)
        bar = figure.colorbar(scale, ax=axes.tolist(), location="bottom", shrink=0.5, aspect=45, pad=0.04)
        bar.set_ticks([-1, 0, 1], labels=["−", "0", "+"])
        bar.set_label("Z displacement; the strongest colours stand for the figure below the part", fontsize=8)
        bar.outline.set_visible(False)
    return sink.getvalue()


def draw_histograms(records: Sequence[CaseRecord]) -> bytes:
    """Distributions of what is measured, kept and rejected cases apart, as PNG.

    Args:
        records: Rows of the manifest.
    """
    groups = {
        status: [record.measures for record in records if record.status == status and record.measures is not None]
        for status in ("kept", "rejected")
    }
    with _figure(11, 5) as (figure, sink):
        for axis, quantity in zip(figure.subplots(2, 4).ravel(), QUANTITIES, strict=True):
            values = {status: [float(quantity.value_of(m)) for m in group] for status, group in groups.items()}
            _draw_bars(axis, values, quantity)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return sink.getvalue()


def _draw_bars(axis: Any, values: Mapping[str, Sequence[float]], quantity: Quantity) -> None:
    from matplotlib.ticker import MaxNLocator

    joined = [value for group in values.values() for value in group]
    low, high = (min(joined), max(joined)) if joined else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 25).tolist()
    axis.hist(list(values.values()), bins=edges, stacked=True, color=["#2f6f9f", "#e0a458"], label=list(values))
    axis.set_xlabel(quantity.heading)
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.xaxis.set_major_locator(MaxNLocator(4))
