"""A surface moved by a displacement field: correct values, closed surfaces, and a report of every crossing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from flare_model import from_pretrained
from flare_model.compensate import compensate
from lpbf_data.durable import check_writable
from lpbf_data.errors import GeometryError, UsageError
from lpbf_data.geometry.closed_surface import surface_of_arrays
from lpbf_data.geometry.compensation import compensate_surface, interpolate, subdivide
from lpbf_data.geometry.crossings import crossing_triangles
from lpbf_data.geometry.surface_files import load_bodies, load_surface
from tests.commands import run_here
from tests.flare_model.flare_support import tiny_surrogate
from tests.flare_model.test_decision import box, model, part_of, surface_of, table

__all__ = ["model"]

GRADIENT = np.array([[0.01, 0.02, 0.0], [0.0, -0.01, 0.005], [0.003, 0.0, 0.02]])


def test_a_linear_field_is_interpolated_exactly_and_its_nearest_value_taken_outside() -> None:
    part = part_of(table(), 800)
    values = part.points @ GRADIENT.T + 0.1
    inside = part.points[part.cells].mean(axis=1) + np.random.default_rng(0).uniform(-0.2, 0.2, (len(part.cells), 3))
    found = interpolate(inside.astype(np.float64), part.points, part.cells, values)
    np.testing.assert_allclose(found, inside @ GRADIENT.T + 0.1, atol=1e-5)
    above = part.points[[np.argmax(part.points @ [1, 1, 1])]].astype(np.float64)
    np.testing.assert_allclose(
        interpolate(above + 3, part.points, part.cells, values), above @ GRADIENT.T + 0.1, atol=1e-5
    )


@pytest.mark.parametrize("edge", [3.0, 1.1, 0.4])
def test_subdividing_keeps_a_surface_closed_and_in_place(edge: float) -> None:
    surface = surface_of(table())
    found, asked = subdivide(surface, edge)  # making a `Surface` checks that it is closed
    corners = found.vertices[found.triangles]
    assert np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max() <= edge == asked
    assert found.volume == pytest.approx(surface.volume)
    assert trimesh.Trimesh(found.vertices, found.triangles).area == pytest.approx(
        trimesh.Trimesh(surface.vertices, surface.triangles).area
    )
    bounded, coarser = subdivide(surface, edge, max_triangles=400)
    assert len(bounded.triangles) <= 400
    assert coarser >= edge


@pytest.mark.parametrize("scale", [-1.0, 1.0, 5.0])
def test_a_surface_moves_by_the_scale_times_the_field(scale: float) -> None:
    part = part_of(box(12, 10, 8), 600)
    assert part.origin is not None
    field = part.points @ GRADIENT.T
    found = compensate_surface(part.origin.surface, part.points, part.cells, field, scale)
    wanted = abs(np.linalg.det(np.eye(3) + scale * GRADIENT)) * 12 * 10 * 8
    # The tolerance is for what the mesh leaves out at the top: its height is a whole number of cells.
    assert found.surface.volume - 960 == pytest.approx(wanted - 960, rel=0.02)
    assert found.split == len(found.surface.triangles) - 12
    assert not len(found.crossings)


@pytest.mark.parametrize("shift", [(5, 0, 0), (5.1, 0.2, 0.3), (0, 0, 19.9)])
def test_spheres_that_overlap_cross_and_those_apart_do_not(shift: tuple[float, float, float]) -> None:
    one = trimesh.creation.icosphere(2, 10)
    for factor, crosses in ((1.0, True), (5.0, False)):
        both = trimesh.util.concatenate([one, one.copy().apply_translation(factor * np.array(shift))])
        found = crossing_triangles(surface_of_arrays(both.vertices, both.faces))
        assert bool(len(found)) == crosses
        count = len(one.faces)
        assert all(a < count <= b for a, b in found.tolist())


def test_crossings_are_those_found_by_testing_every_pair() -> None:
    rng = np.random.default_rng(1)
    one = trimesh.creation.icosphere(1, 5)
    both = trimesh.util.concatenate([one, one.copy().apply_translation([4.0, 1.0, 0.5])])
    surface = surface_of_arrays(both.vertices + rng.normal(0, 1e-3, both.vertices.shape), both.faces)
    corners = surface.vertices[surface.triangles]
    wanted = []
    for i in range(len(corners)):
        for j in range(i + 1, len(corners)):
            if set(surface.triangles[i]) & set(surface.triangles[j]):
                continue
            if any(_goes_through(corners[a], corners[b]) for a, b in ((i, j), (j, i))):
                wanted.append([i, j])
    assert wanted
    assert crossing_triangles(surface).tolist() == wanted


def _goes_through(source: np.ndarray, target: np.ndarray) -> bool:
    """Whether an edge of one triangle goes through another triangle, by solving for the intersection."""
    for k in range(3):
        start, end = source[k], source[(k + 1) % 3]
        system = np.column_stack([target[1] - target[0], target[2] - target[0], start - end])
        u, v, t = np.linalg.solve(system, start - target[0])
        if u >= 0 and v >= 0 and u + v <= 1 and 0 <= t <= 1:
            return True
    return False


def test_walls_that_would_cross_are_reported() -> None:
    """Two plates with a gap of 1 mm, moved towards each other by 0.8 mm each."""
    pair = trimesh.util.concatenate([box(10, 2, 10, at=(0, -1.5, 0)), box(10, 2, 10, at=(0, 1.5, 0))])
    base = box(10, 5, 1, at=(0, 0, -1))
    slotted = surface_of(trimesh.boolean.union([*pair.split(), base], engine="manifold"))
    part = part_of(trimesh.boolean.union([*pair.split(), base], engine="manifold"), 1500)
    field = np.zeros_like(part.points)
    top = part.points[:, 2] - part.points[:, 2].min()
    field[:, 1] = -0.08 * np.sign(part.points[:, 1]) * top
    assert part.origin is not None
    assert part.origin.surface.volume == pytest.approx(slotted.volume)
    assert not len(compensate_surface(part.origin.surface, part.points, part.cells, field, 0.3).crossings)
    found = compensate_surface(part.origin.surface, part.points, part.cells, field, 1.0).crossings
    assert len(found)
    assert np.abs(found[:, 1]).max() < 1


def test_the_command_moves_each_body_in_its_own_position(model: Path, tmp_path: Path) -> None:
    pair = trimesh.util.concatenate([box(10, 10, 12, at=(100, 0, 3)), box(10, 10, 30, at=(120, 0, 7))])
    pair.export(tmp_path / "pair.stl")
    out = tmp_path / "new.stl"
    assert compensate(str(tmp_path / "pair.stl"), str(out), checkpoint=str(model), scale=0.0, points=300) == 0
    same = load_bodies(out)
    assert len(same.bodies) == 2
    for body, before in zip(same.bodies, load_bodies(tmp_path / "pair.stl").bodies, strict=True):
        np.testing.assert_allclose(body.bounds, before.bounds, atol=1e-4)
        assert body.volume == pytest.approx(before.volume, rel=1e-4)
    assert compensate(str(tmp_path / "pair.stl"), str(out), checkpoint=str(model), points=300) == 0
    told = json.loads(out.with_suffix(".json").read_text())
    assert [body["name"] for body in told["bodies"]] == ["pair_1", "pair_2"]
    moved = load_surface(out)
    largest = max(body["largest_move"] for body in told["bodies"])
    assert np.abs(moved.bounds - pair.bounds).max() <= largest * 1.001
    assert largest > 0


def test_compensated_and_warped_surfaces_lie_symmetrically_about_the_nominal_one(model: Path, tmp_path: Path) -> None:
    """The mean of both surfaces is the nominal surface, vertex by vertex."""
    box(10, 10, 12).export(tmp_path / "box.stl")
    both = []
    for scale in (-1.0, 1.0):
        out = tmp_path / f"new{scale}.stl"
        compensate(str(tmp_path / "box.stl"), str(out), checkpoint=str(model), scale=scale, points=300)
        both.append(trimesh.load_mesh(out, process=False).triangles)
    (told,) = json.loads((tmp_path / "new1.0.json").read_text())["bodies"]
    middle, _ = subdivide(load_surface(tmp_path / "box.stl"), told["longest_edge"])
    np.testing.assert_allclose(sum(both) / 2, middle.vertices[middle.triangles], atol=1e-4)


def test_what_can_not_be_compensated_is_refused(model: Path, tmp_path: Path) -> None:
    box(10, 10, 12).export(tmp_path / "box.stl")
    source = str(tmp_path / "box.stl")
    for words, said in (
        ({"out": str(tmp_path / "new.ply")}, "--out must be an STL file"),
        ({"out": source}, "--out must be another file"),
        ({"out": str(tmp_path / "new.stl"), "scale": 6.0}, "--scale must lie between -5 and 5"),
    ):
        with pytest.raises(UsageError, match=said):
            compensate(source, checkpoint=str(model), **words)  # type: ignore[arg-type]
    for name, said in (
        ("missing.stl", "there is no file "),
        ("part.igs", "export it as STL, OBJ, PLY, OFF or 3MF from"),
    ):
        with pytest.raises(UsageError, match=said):
            compensate(str(tmp_path / name), str(tmp_path / "new.stl"), checkpoint=str(tmp_path / "nothing"))
    tiny_surrogate().save_pretrained(tmp_path / "z_alone")
    with pytest.raises(UsageError, match="doesn't predict displacement_x, displacement_y"):
        compensate(source, str(tmp_path / "new.stl"), checkpoint=str(tmp_path / "z_alone"))
    trimesh.Trimesh(box(1, 1, 1).vertices, box(1, 1, 1).faces[1:]).export(tmp_path / "open.stl")
    with pytest.raises(GeometryError, match="not watertight"):
        compensate(str(tmp_path / "open.stl"), str(tmp_path / "new.stl"), checkpoint=str(model))
    assert not (tmp_path / "new.stl").exists()
    assert from_pretrained(model).usage.targets[2] == "displacement_z"


@pytest.mark.parametrize(
    ("mesh", "sentence"),
    [
        (table(), "isn't quite the part: 72% of its volume; --points 820 gives a mesh that represents the part"),
        (box(70, 10, 10), "doesn't fit the build volume that the model knows: it reaches 5 mm out of the build volume"),
    ],
    ids=["another mesh", "too large"],
)
def test_a_doubtful_compensation_is_written_only_with_anyway(
    model: Path, tmp_path: Path, mesh: trimesh.Trimesh, sentence: str
) -> None:
    mesh.export(tmp_path / "part.stl")
    out = tmp_path / "new.stl"
    words = [str(tmp_path / "part.stl"), str(out), "--checkpoint", str(model), "--points", "400"]
    refused = run_here("flare_model.compensate", *words)
    assert refused.returncode == 1
    assert sentence in refused.stderr
    assert refused.stderr.endswith("Nothing is written; --anyway true writes it all the same\n")
    assert [path.name for path in tmp_path.iterdir()] == ["part.stl"]
    written = run_here("flare_model.compensate", *words, "--anyway", "true")
    assert written.returncode == 0, written.stderr
    (line,) = [line for line in written.stderr.splitlines() if sentence in line]
    assert line.startswith("warning: ")
    assert out.exists()
    (told,) = json.loads(out.with_suffix(".json").read_text())["bodies"]
    assert [f"warning: {doubt}" for doubt in told["doubts"]] == [line]


def test_an_output_that_can_not_be_written_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.stl").mkdir()
    (tmp_path / "beside.json").mkdir()
    (tmp_path / "lost").symlink_to(tmp_path / "gone", target_is_directory=True)
    before = sorted(tmp_path.rglob("*"))
    for out, said in (
        (tmp_path / "folder.stl", "folder.stl is a folder; name a file in it"),
        (tmp_path / "beside.stl", "beside.json is a folder"),
        (tmp_path / "file/below/new.stl", "can't be written: .*file isn't a folder"),
        (tmp_path / "lost/new.stl", "can't be written: .*lost isn't a folder"),
        (tmp_path / f"{'n' * 240}.stl", "can't be written: File name too long; name another file or folder"),
        (Path("/proc/lpbf/new.stl"), "/proc/lpbf/new.stl can't be written: [^/]+; name another file or folder"),
    ):
        with pytest.raises(UsageError, match=said):  # the missing part would be read later
            compensate(str(tmp_path / "gone.stl"), str(out))
    check_writable(tmp_path / "new" / "folder" / "new.stl")
    assert sorted(tmp_path.rglob("*")) == before
