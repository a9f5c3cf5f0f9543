"""The surface of refined meshes, compared with voxels, whose surface is known without any doubt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lpbf_data.geometry.hexahedra import boundary_faces, hex_corner_volumes
from lpbf_data.geometry.outer_surface import extract_surface, outer_faces
from tests.netfabb_cases import box_mesh
from tests.pipelines.test_netfabb import run_of

_CORNERS = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)])


def mesh_of_boxes(boxes: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Cubes [E, 4] (corner and edge, whole numbers) as a mesh; points that coincide are one."""
    corners = boxes[:, None, :3] + _CORNERS * boxes[:, None, 3:]
    points, cells = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    return points.astype(np.float32), cells.reshape(-1, 8).astype(np.int32)


def exposed_area(boxes: NDArray[np.int64]) -> int:
    """Faces between full and empty voxels."""
    solid = np.zeros(boxes[:, :3].max(axis=0) + boxes[:, 3].max() + 2, dtype=np.int8)
    for x, y, z, edge in boxes + np.array([1, 1, 1, 0]):
        solid[x : x + edge, y : y + edge, z : z + edge] = 1
    return int(sum(np.abs(np.diff(solid, axis=axis)).sum() for axis in range(3)))


def area_and_volume(points: NDArray[np.float32], faces: NDArray[np.int64]) -> tuple[float, float]:
    """Area, and the enclosed volume by the divergence theorem (right only when the surface is closed)."""
    a, b, c, d = (points[faces[:, i]].astype(np.float64) for i in range(4))
    vectors = np.cross(c - a, d - b) / 2
    return float(np.linalg.norm(vectors, axis=1).sum()), float(np.einsum("fi,fi->", (a + b + c + d) / 4, vectors) / 3)


@st.composite
def refined_boxes(draw: st.DrawFn) -> NDArray[np.int64]:
    """Coarse cubes in a grid, some of them missing, some cut into eight of which some are missing."""
    shape = draw(st.tuples(*[st.integers(1, 3)] * 3))
    boxes: list[tuple[int, int, int, int]] = []
    for place in np.ndindex(*shape):
        x, y, z = (2 * p for p in place)
        kind = draw(st.sampled_from(["coarse", "missing", "fine"]))
        if kind == "coarse":
            boxes.append((x, y, z, 2))
        elif kind == "fine":
            octants = draw(st.lists(st.integers(0, 7), unique=True, min_size=1))
            boxes += [(x + int(i), y + int(j), z + int(k), 1) for i, j, k in _CORNERS[octants]]
    return np.array(boxes or [(0, 0, 0, 2)])


@given(refined_boxes(), st.sampled_from([(1.0, 1.0, 1.0), (0.625, 0.625, 0.8), (0.1, 0.3, 0.05)]))
def test_refined_meshes_have_the_surface_of_their_voxels(
    boxes: NDArray[np.int64], cell: tuple[float, float, float]
) -> None:
    points, cells = mesh_of_boxes(boxes)
    area, volume = area_and_volume(points, outer_faces(points, cells))
    assert area == exposed_area(boxes)
    assert volume == pytest.approx((boxes[:, 3] ** 3).sum())
    stretched = (points * np.array(cell)).astype(np.float32)
    assert np.array_equal(outer_faces(stretched, cells), outer_faces(points, cells))


def test_coordinates_with_few_digits() -> None:
    boxes = np.array([(0, 0, 0, 2), *((2 + i, j, k, 1) for i in (0, 1) for j in (0, 1) for k in (0, 1))])
    points, cells = mesh_of_boxes(boxes)
    noisy = points + np.random.default_rng(0).uniform(-0.01, 0.01, points.shape).astype(np.float32)
    assert len(boundary_faces(cells)) == 6 + 24
    faces = outer_faces(noisy, cells)
    assert np.array_equal(faces, outer_faces(points, cells))
    assert len(faces) == 5 + 20


def test_a_mesh_of_one_size_keeps_its_boundary_faces() -> None:
    points, cells = box_mesh((4, 3, 2))
    surface = extract_surface(points, cells)
    assert len(surface.point_numbers) == 5 * 4 * 3 - 3 * 2
    assert np.array_equal(surface.point_numbers[surface.faces], boundary_faces(cells))


def test_real_parts_are_closed(samples: Path) -> None:
    for folder, lonely in (("binary/step2", 3784), ("ascii/meshes2", 1088)):
        case = run_of(samples / folder).read_case(["displacement"])
        faces = outer_faces(case.points, case.cells)
        _, volume = area_and_volume(case.points, faces)
        assert volume == pytest.approx(hex_corner_volumes(case.points, case.cells).sum(), rel=1e-3)
        assert len(boundary_faces(case.cells)) == lonely
        assert len(faces) < lonely
