"""Mesh mathematics against known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpbf_data.geometry.hexahedra import (
    HEX8_EDGES,
    boundary_faces,
    count_hex_edges,
    hex_aspect_ratio,
    hex_corner_volumes,
    hex_edges,
)
from tests.netfabb_cases import box_mesh

pytestmark = pytest.mark.numeric

sides = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_box_has_3n_n1_squared_edges(n: int) -> None:
    points, cells = box_mesh((n, n, n))
    undirected = 3 * n * (n + 1) ** 2
    assert count_hex_edges(cells) == 2 * undirected
    assert hex_edges(cells, directed=False).shape == (2, undirected)
    both = hex_edges(cells)
    assert both.shape == (2, 2 * undirected)
    lengths = np.linalg.norm(points[both[0]] - points[both[1]], axis=1)
    np.testing.assert_array_equal(lengths, 1.0)


@given(sides, st.randoms())
def test_edges_agree_with_a_plain_loop(shape: tuple[int, int, int], random: object) -> None:
    _, cells = box_mesh(shape)
    cells = cells[np.random.default_rng(random.randrange(2**32)).permutation(len(cells))]  # type: ignore[attr-defined]
    plain = {tuple(sorted((int(cell[a]), int(cell[b])))) for cell in cells for a, b in HEX8_EDGES}
    both = sorted(plain | {(b, a) for a, b in plain})
    assert hex_edges(cells).T.tolist() == [list(edge) for edge in both]
    assert hex_edges(cells, directed=False).T.tolist() == [list(edge) for edge in sorted(plain)]
    assert count_hex_edges(cells) == len(both)


def test_no_cells_have_no_edges() -> None:
    none = np.empty((0, 8), dtype=np.int32)
    assert count_hex_edges(none) == 0
    assert hex_edges(none).shape == (2, 0)
    assert boundary_faces(none).shape == (0, 4)


@given(
    sides,
    st.tuples(*[st.floats(0.01, 10)] * 3),
)
def test_aspect_ratio_and_volume_of_boxes(shape: tuple[int, int, int], edges: tuple[float, float, float]) -> None:
    points, cells = box_mesh(shape)
    stretched = points.astype(np.float64) * edges
    np.testing.assert_allclose(hex_aspect_ratio(stretched, cells), max(edges) / min(edges), rtol=1e-9)
    np.testing.assert_allclose(hex_corner_volumes(stretched, cells), np.prod(edges), rtol=1e-9)


def test_aspect_ratio_of_a_flat_cell_is_infinite() -> None:
    points, cells = box_mesh((1, 1, 1))
    assert hex_aspect_ratio(points * np.float32([1, 1, 0]), cells).tolist() == [np.inf]
    assert hex_aspect_ratio(points * np.float32(0), cells).tolist() == [np.inf]


@pytest.mark.parametrize(
    "order", [[1, 0, 3, 2, 5, 4, 7, 6], [4, 5, 6, 7, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 7, 6], [0, 1, 2, 3, 0, 1, 2, 3]]
)
def test_inverted_and_degenerate_cells_are_seen(order: list[int]) -> None:
    points, cells = box_mesh((1, 1, 1))
    assert hex_corner_volumes(points, cells)[0] == 1
    assert hex_corner_volumes(points, cells[:, order])[0] <= 0


@given(sides)
def test_boundary_faces_of_a_box_point_outwards(shape: tuple[int, int, int]) -> None:
    points, cells = box_mesh(shape)
    nx, ny, nz = shape
    faces = boundary_faces(cells)
    assert len(faces) == 2 * (nx * ny + ny * nz + nz * nx)
    corners = points[faces].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outward = corners.mean(axis=1) - points.mean(axis=0)
    assert (np.einsum("ij,ij->i", normal, outward) > 0).all()
    # The divergence theorem: the flux of x through the surface is the volume.
    assert np.einsum("ij,ij->", corners.mean(axis=1), normal) / 3 == pytest.approx(nx * ny * nz)
