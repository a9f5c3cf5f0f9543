"""Surfaces to hexahedra: against volumes in closed form, NetFabb's own counts, and surfaces that must be refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface, surface_of_arrays
from lpbf_data.geometry.hexahedra import hex_corner_volumes
from lpbf_data.geometry.stl import write_stl
from lpbf_data.geometry.surface_files import load_surface
from lpbf_data.geometry.voxel_mesh import mesh_of_mask
from lpbf_data.geometry.voxelize import fill_fractions, voxelize, voxelize_to_size

pytestmark = pytest.mark.numeric


def surface_of(mesh: trimesh.Trimesh) -> Surface:
    return surface_of_arrays(mesh.vertices, mesh.faces)


def box(*size: float) -> Surface:
    return surface_of(trimesh.creation.box(extents=size))


@given(st.lists(st.integers(1, 6), min_size=3, max_size=3), st.floats(0.3, 4))
@settings(max_examples=25, deadline=None)
def test_a_box_of_whole_cells_is_filled_exactly(counts: list[int], edge: float) -> None:
    mesh = voxelize(box(*(edge * n for n in counts)), (edge, edge))
    assert mesh.num_cells == math.prod(counts)
    assert mesh.num_points == math.prod(n + 1 for n in counts)
    assert np.allclose(np.ptp(mesh.points, axis=0), [edge * n for n in counts])


def test_the_meshed_volume_of_a_ball_approaches_its_own() -> None:
    ball = surface_of(trimesh.creation.icosphere(subdivisions=4, radius=10.0))
    errors = []
    for cell in (2.0, 1.0, 0.5):
        mesh = voxelize(ball, (cell, cell))
        errors.append(abs(mesh.num_cells * math.prod(mesh.spacing) / ball.volume - 1))
    assert errors[2] < 0.005
    assert errors[2] < errors[1] < errors[0]


def test_fractions_of_a_slanted_wall_add_up_to_its_volume() -> None:
    wedge = surface_of(trimesh.creation.cone(radius=7.0, height=9.0, sections=64))
    low, high = wedge.bounds
    shares = fill_fractions(wedge, low, (high - low) / 8, (8, 8, 8), samples=6)
    assert float(shares.sum()) * math.prod((high - low) / 8) == pytest.approx(wedge.volume, rel=0.01)


def test_overlapping_and_nested_pieces_are_one_part() -> None:
    first, second = trimesh.creation.box(extents=(4, 4, 4)), trimesh.creation.box(extents=(4, 4, 4))
    second.apply_translation((2, 0, 0))
    both = surface_of(trimesh.util.concatenate([first, second]))
    assert voxelize(both, (1.0, 1.0)).num_cells == 6 * 4 * 4


def test_a_cavity_stays_empty() -> None:
    outer, inner = trimesh.creation.box(extents=(6, 6, 6)), trimesh.creation.box(extents=(2, 2, 2))
    inner.invert()
    hollow = surface_of(trimesh.util.concatenate([outer, inner]))
    assert voxelize(hollow, (1.0, 1.0)).num_cells == 6**3 - 2**3


def test_cells_are_boxes_with_the_node_order_of_vtk() -> None:
    mesh = voxelize(surface_of(trimesh.creation.cylinder(radius=5, height=6)), (1.0, 0.5))
    assert np.allclose(hex_corner_volumes(mesh.points, mesh.cells), math.prod(mesh.spacing))


def test_points_are_numbered_as_the_part_grows() -> None:
    mask = np.zeros((4, 3, 5), bool)
    mask[0], mask[:, :, 3] = True, True  # a column with an arm that starts at the fourth plane
    mesh = mesh_of_mask(mask, (0, 0, 0), (1, 1, 1))
    for planes in range(1, 6):
        cells = mesh.cells[mesh.indices[:, 2] < planes]
        there = np.unique(cells)
        assert np.array_equal(there, np.arange(len(there)))
        assert len(there) == int((mesh.point_levels <= planes).sum())


def test_the_number_of_points_is_met() -> None:
    ring = surface_of(trimesh.creation.annulus(r_min=6, r_max=12, height=8))
    for wanted in (500, 2000, 8000):
        mesh = voxelize_to_size(ring, wanted, 1.28, layer=0.04)
        assert mesh.num_points == pytest.approx(wanted, rel=0.1)
        assert mesh.spacing[2] / 0.04 == pytest.approx(round(mesh.spacing[2] / 0.04))


def test_the_same_cells_are_active_as_in_netfabb(samples: Path) -> None:
    # Its logs say "Activated 5160 / 32,768 total voxels", "Mesh preview volume = 1608.95272470611", and 1696 and 530.
    for name, cells, volume in (("binary/step2", 5160, 1608.95272470611), ("ascii/meshes2", 1696, 530.0)):
        mesh = voxelize(load_surface(next((samples / name).glob("*.stl"))), (0.625, 0.8))
        assert mesh.num_cells == cells
        assert mesh.num_cells * math.prod(mesh.spacing) == pytest.approx(volume, rel=1e-12)


def test_a_surface_with_a_hole_is_refused(tmp_path: Path) -> None:
    mesh = trimesh.creation.box(extents=(1, 2, 3))
    with pytest.raises(GeometryError, match="not watertight"):
        surface_of_arrays(mesh.vertices, mesh.faces[:-1])
    mesh.faces = mesh.faces[:-1]
    mesh.export(tmp_path / "open.stl")
    with pytest.raises(GeometryError, match=r"open\.stl: the surface is not watertight"):
        load_surface(tmp_path / "open.stl")


def test_an_inverted_surface_is_refused() -> None:
    mesh = trimesh.creation.box(extents=(1, 2, 3))
    with pytest.raises(GeometryError, match="face inwards"):
        surface_of_arrays(mesh.vertices, mesh.faces[:, ::-1])


def test_files_that_hold_no_surface_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.stl").write_text("this is not a surface")
    (tmp_path / "empty.stl").write_bytes(b"")
    for name in ("text.stl", "empty.stl"):
        with pytest.raises(GeometryError, match=name):
            load_surface(tmp_path / name)


def test_walls_thinner_than_cells_are_refused() -> None:
    pieces = [trimesh.creation.box(extents=(10, 10, 4)) for _ in range(2)]
    pieces[1].apply_translation((20, 0, 0))
    pieces.append(
        trimesh.creation.box(
            extents=(20, 0.2, 0.2), transform=trimesh.transformations.translation_matrix((10, 0, 0.05))
        )
    )
    with pytest.raises(GeometryError, match="falls apart into 2 pieces"):
        voxelize(surface_of(trimesh.util.concatenate(pieces)), (2.0, 2.0))


def test_what_is_written_as_stl_is_read_back(tmp_path: Path) -> None:
    surface = surface_of(trimesh.creation.capsule(height=4, radius=2))
    rounded = surface_of_arrays(surface.vertices.astype(np.float32), surface.triangles)
    write_stl(tmp_path / "part.stl", rounded)
    again = load_surface(tmp_path / "part.stl")
    assert again.volume == pytest.approx(rounded.volume, rel=1e-12)
    assert np.array_equal(voxelize(again, (0.4, 0.3)).indices, voxelize(rounded, (0.4, 0.3)).indices)


def test_faces_at_centres_of_cells_fill_whole_layers_or_none() -> None:
    """Heights of faces are off by rounding from triangle to triangle; a layer of cells is never filled in patches."""
    rng = np.random.default_rng(0)
    for height in (3.1, 5.0, 7.3):
        box = trimesh.creation.box(bounds=[[0, 0, 0], [10, 8, height]]).subdivide().subdivide()
        vertices = np.asarray(box.vertices) + np.array([0.3, 0.7, 0.0])
        vertices[:, 2] += np.where(vertices[:, 2] > 0, rng.uniform(-1e-7, 1e-7, len(vertices)), 0)
        spacing = (0.5, 0.5, height / 4.5)  # the fifth layer's centres lie on the upper face
        shares = fill_fractions(Surface(vertices, np.asarray(box.faces)), (0.3, 0.7, 0.0), spacing, (20, 16, 6))
        assert [len(np.unique(shares[:, :, layer])) for layer in range(6)] == [1] * 6
        assert (shares[:, :, :4] == 1).all()
