"""A mesh beside its surface: what is lost is said in numbers, or refused with what would help."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import pyvista
import trimesh

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface, surface_of_arrays
from lpbf_data.geometry.faithful_mesh import mesh_and_check, mesh_faithfully, remarks_on
from lpbf_data.geometry.mesh_check import _first_walls, check_mesh, find_walls
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize, voxelize_to_size

pytestmark = pytest.mark.numeric


def surface_of(*meshes: trimesh.Trimesh) -> Surface:
    whole = trimesh.boolean.union(list(meshes), engine="manifold") if len(meshes) > 1 else meshes[0]
    return surface_of_arrays(whole.vertices, whole.faces)


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> trimesh.Trimesh:
    return trimesh.creation.box(bounds=[low, high])


def table(leg: float) -> Surface:
    top = box((0, 0, 20), (40, 40, 30.5))
    corners = [(x, y) for x in (3.3, 35.1) for y in (3.3, 35.1)]
    return surface_of(top, *(box((x, y, 0), (x + leg, y + leg, 21)) for x, y in corners))


def mesher(surface: Surface, num_points: int) -> VoxelMesh:
    return voxelize_to_size(surface, num_points, layer=0.04, planes=2)


def test_a_faithful_mesh_has_no_remarks() -> None:
    for mesh in (
        trimesh.creation.box((10, 20, 30)),
        trimesh.creation.icosphere(4, 10),
        trimesh.creation.annulus(5, 10, 9),
    ):
        surface = surface_of(mesh)
        meshed, remarks = mesh_faithfully(surface, 2000, "part", mesher)
        assert remarks == ()
        assert meshed.num_points == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize("points", [300, 1000, 2000, 5000])
def test_a_table_stands_on_its_legs_or_is_refused_with_what_helps(points: int) -> None:
    surface = table(1.0)
    refused = ""
    try:
        mesh, _ = mesh_faithfully(surface, points, "table", mesher)
    except GeometryError as error:
        refused = str(error)
    if refused:
        assert "of 30.5 mm along z" in refused
        needed = int(re.search(r"--points (\d+) gives a mesh", refused)[1])
        mesh, remarks = mesh_faithfully(surface, needed, "table", mesher)
        assert remarks == ()
    assert float(np.ptp(mesh.points[:, 2])) == pytest.approx(30.5, abs=2 * mesh.spacing[2])


def test_lost_legs_are_said_in_numbers() -> None:
    surface = table(0.6)
    mesh = voxelize(surface, (4.0, 2.0))
    check = check_mesh(surface, mesh)
    assert check.is_another_part
    assert check.extents[2] == pytest.approx(12, abs=2.1)
    assert mesh.lowered > 0
    (remark,) = remarks_on(check, "table")
    assert (remark.treatment, remark.kind) == ("changed", "mesh_differs")
    assert re.search(r"table: 1\d(\.\d+)? of 30.5 mm along z", str(remark))


def test_loose_pieces_are_said() -> None:
    bridge = box((9, 4.9, 4.9), (21, 5.05, 5.05))
    surface = surface_of(box((0, 0, 0), (10, 10, 10)), bridge, box((20, 3, 3), (23.9, 6.9, 6.9)))
    mesh = voxelize(surface, (1.3, 1.3))
    check = check_mesh(surface, mesh)
    assert mesh.left_out > 0
    assert f"{mesh.left_out} cells in loose pieces are missing" in check.differences()
    assert "of 23.9 mm along x" in check.differences()[0]


def test_walls_are_measured() -> None:
    for wall in (0.3, 1.0, 2.5):
        tube = surface_of(trimesh.creation.annulus(10 - wall, 10, 30, sections=128))
        thickness, cells = find_walls(tube).thinnest((0.5, 0.5, 0.5))
        assert thickness == pytest.approx(wall, rel=0.03)
        assert cells == pytest.approx(2 * wall, rel=0.03)
    assert find_walls(surface_of(box((0, 0, 0), (20, 30, 1)))).thinnest((1, 1, 1))[0] == pytest.approx(1)


@pytest.mark.parametrize("wall", [0.15, 0.3, 0.6, 1.2])
def test_a_tube_keeps_its_volume_and_more_points_are_said(wall: float) -> None:
    tube = surface_of(trimesh.creation.annulus(10 - wall, 10, 20))
    mesh, remarks = mesh_faithfully(tube, 500, "tube", mesher)
    volume = mesh.num_cells * math.prod(mesh.spacing) / tube.volume
    assert 0.5 <= volume <= 1.5
    assert 0.9 <= volume <= 1.1 or "mesh_differs" in [remark.kind for remark in remarks]
    assert mesh.num_points < 750 or "more_points" in [remark.kind for remark in remarks]


def test_a_fin_thinner_than_a_cell_is_said() -> None:
    surface = surface_of(box((0, 0, 0), (20, 20, 10)), box((3, 5, 9), (17, 5.2, 20)))
    mesh = voxelize(surface, (1.0, 1.0))
    said = " ".join(check_mesh(surface, mesh).differences())
    assert "walls of 0.2 mm are 0.2 cells thick" in said


@pytest.mark.parametrize("made", [trimesh.creation.torus(20, 5), trimesh.creation.cylinder(8, 60, sections=100)])
def test_walls_are_met_where_vtk_meets_them(made: trimesh.Trimesh) -> None:
    made.apply_transform(trimesh.transformations.random_rotation_matrix(np.array([0.1, 0.6, 0.3])))
    made.apply_translation((300, -40, 7))
    surface = surface_of_arrays(made.vertices, made.faces)
    corners = surface.vertices[surface.triangles]
    normals = surface.area_vectors()
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    some = np.random.default_rng(0).permutation(len(corners))[:200]
    starts = np.einsum("k,rkc->rc", (0.5, 0.3, 0.2), corners[some])
    found = _first_walls(surface, starts, -normals[some])
    drawn = pyvista.make_tri_mesh(surface.vertices, surface.triangles)
    for start, direction, distance in zip(starts, -normals[some], found, strict=True):
        places, cells = drawn.ray_trace(start + 1e-4 * direction, start + 100 * direction)
        first = np.argmin(np.linalg.norm(places - start, axis=1))
        facing = float(normals[cells[first]] @ direction) > 0.9
        assert math.isfinite(distance) == facing
        assert not facing or distance == pytest.approx(np.linalg.norm(places[first] - start), rel=1e-6)
    assert np.isfinite(found).sum() > 50


def hollow(edge: float, wall: float) -> Surface:
    whole, hole = box((0, 0, 0), (edge, edge, edge)), box((wall, wall, wall), (edge - wall,) * 3)
    return surface_of(trimesh.boolean.difference([whole, hole], engine="manifold"))


@pytest.mark.parametrize(("edge", "wall"), [(30, 1.0), (40, 1.0), (37.3, 1.1), (40, 0.7)])
@pytest.mark.parametrize(("points", "refined"), [(2000, True), (9000, False), (28_750, False)])
def test_the_proposed_number_of_points_gives_a_mesh_without_differences(
    edge: float, wall: float, points: int, refined: bool
) -> None:
    """Walls that are a cell thick or more can still have too little or too much volume: cells are all of one size."""
    surface = hollow(edge, wall)
    mesh, check, remarks = mesh_and_check(surface, points, "box", mesher, refined=refined)
    assert check.differences() != ()
    assert check.needed_points is not None
    assert check.needed_points <= 50_000
    assert f"--points {check.needed_points} gives a mesh that represents the part" in str(remarks[0])
    again, check, remarks = mesh_and_check(surface, check.needed_points, "box", mesher)
    assert remarks == ()
    assert again.num_cells * math.prod(again.spacing) == pytest.approx(surface.volume, rel=0.1)
    first = mesher(surface, points)
    if not refined and not check_mesh(surface, first).is_another_part:
        assert mesh.num_points == first.num_points  # what was asked for is what is taken


def test_where_no_mesh_is_right_that_is_said() -> None:
    surface = hollow(60, 0.4)
    with pytest.raises(GeometryError, match=r"no mesh that was tried represents the part, up to 50,000 points"):
        mesh_faithfully(surface, 2000, "box", mesher)


def test_a_cell_across_a_wall_is_one_also_where_coordinates_are_rounded() -> None:
    surface = hollow(20, np.float64(np.float32(1.00001)) - 2e-5)
    mesh = voxelize(surface, (1.0, 1.0))
    assert check_mesh(surface, mesh).differences() == ()
