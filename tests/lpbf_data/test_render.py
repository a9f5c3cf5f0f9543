"""Pictures: that they show the values, share one scale, and refuse what can't be drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpbf_data.case.case import Case
from lpbf_data.errors import UsageError
from lpbf_data.geometry.render import MAGNITUDE, Panel, color_limits, panel_values, render_panels
from lpbf_data.geometry.voxel_mesh import mesh_of_mask
from lpbf_data.viewer.palettes import palette


def part(name: str = "part", scale: float = 1.0) -> Case:
    mesh = mesh_of_mask(np.ones((6, 4, 3), bool), (0, 0, 0), (1.0, 1.0, 1.0))
    moved = np.zeros((mesh.num_points, 3), np.float32)
    moved[:, 2] = scale * (mesh.points[:, 0] - 3.0) / 3.0
    return Case(name, mesh.points.astype(np.float32), mesh.cells, {"displacement": moved, "temperature": moved[:, 0]})


def test_one_scale_serves_all_panels_and_is_centred() -> None:
    panels = [Panel(part(scale=0.5)), Panel(part(scale=2.0))]
    assert color_limits(panels) == (-2.0, 2.0)
    assert color_limits([Panel(part(), field="temperature")]) == pytest.approx((0.0, 1e-6))
    assert color_limits([Panel(part(), field=None)]) == (0.0, 1.0)
    assert panel_values(Panel(part(), component=MAGNITUDE)).min() >= 0  # type: ignore[union-attr]


def test_a_picture_shows_both_ends_of_the_scale(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    limits = render_panels([Panel(part(), "left"), Panel(part(scale=-1.0), "right", exaggeration=0.5)], path)
    assert limits == (-1.0, 1.0)
    with Image.open(path) as file:
        image = np.asarray(file.convert("RGB")).astype(int)
    assert image.shape[1] == 840
    part_of_image = image[: image.shape[0] * 3 // 4]
    red, blue = part_of_image[..., 0] - part_of_image[..., 2], part_of_image[..., 2] - part_of_image[..., 0]
    left, right = np.s_[:, :420], np.s_[:, 420:]
    for side in (left, right):
        assert (red[side] > 60).sum() > 100
        assert (blue[side] > 60).sum() > 100
    # Values grow with x in the left panel and fall in the right one, so colours lie the other way round.
    shift = [np.argwhere(red[s] > 60)[:, 1].mean() - np.argwhere(blue[s] > 60)[:, 1].mean() for s in (left, right)]
    assert shift[0] * shift[1] < 0


def test_colours_are_those_of_the_colour_bar(tmp_path: Path) -> None:
    """Whichever way a face looks: a colour in the picture stands for the same value everywhere."""
    path = tmp_path / "picture.png"
    render_panels([Panel(part())], path, panel_size=(840, 720))
    with Image.open(path) as file:
        image = np.asarray(file.convert("RGB")).astype(int)[:720]
    found, counts = np.unique(image[np.ptp(image, axis=2) > 30], axis=0, return_counts=True)
    distance = np.abs(found[:, None] - palette("coolwarm").astype(int)[None]).max(axis=2).min(axis=1)
    assert counts.sum() > 10_000
    assert counts[distance <= 6].sum() > 0.9 * counts.sum()  # but for edges; files have 256 colours


@pytest.mark.parametrize(("count", "size"), [(1, (640, 480)), (3, (420, 360))])
def test_the_title_of_the_colour_bar_lies_above_its_labels(count: int, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    render_panels([Panel(part(scale=0.0537))] * count, path, panel_size=size)
    with Image.open(path) as file:
        below = np.asarray(file.convert("RGB"))[size[1] :]
    inked = (below < 110).all(axis=2).any(axis=1)
    bands = int(np.count_nonzero(np.diff(inked.astype(int), prepend=0) == 1))
    assert bands == 2  # title, and labels with white between them; the bar itself has no black


def test_pictures_are_small_and_rows_can_be_filled(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    render_panels([Panel(part(str(n)), str(n), field=None) for n in range(5)], path, columns=3, panel_size=(160, 120))
    with Image.open(path) as image:
        assert image.size == (480, 240)
    assert path.stat().st_size < 60_000


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no panels"):
        render_panels([], tmp_path / "x.png")
    with pytest.raises(UsageError, match="no field 'von_mises_stress'"):
        render_panels([Panel(part(), field="von_mises_stress")], tmp_path / "x.png")
    with pytest.raises(UsageError, match="no component 'w'"):
        render_panels([Panel(part(), component="w")], tmp_path / "x.png")
    with pytest.raises(UsageError, match="different quantities"):
        render_panels([Panel(part()), Panel(part(), field="temperature")], tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_opens_after_a_picture_was_drawn(tmp_path: Path) -> None:
    """Mesa's LLVM and triton's don't get along in one process unless triton came first."""
    program = (
        "from tests.lpbf_data.test_render import part, Panel, render_panels\n"
        "from pathlib import Path\n"
        f"render_panels([Panel(part())], Path({str(tmp_path / 'x.png')!r}), panel_size=(160, 120))\n"
        "import torch_geometric.data\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").is_file()
