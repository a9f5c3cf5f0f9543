"""From loose triangles to closed surfaces, one per body; what had to be repaired becomes remarks.

Repaired is what has one answer: corners a rounding error apart, facets that are there twice, facets that are turned.
Holes, and facets that belong to no side, are refused.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface, inside_surface
from lpbf_data.geometry.rows import unique_rows
from lpbf_data.remarks import Remark, Treatment

_WELDS: Final = (1e-8, 1e-7, 1e-6)  # of the largest extent: what rounding moves
_MAX_COORDINATE: Final = 1e12  # of any unit: volumes beyond lose their digits
_MAX_NEAR: Final = 60  # corners within the distance of welding, before it is given up


def repair(corners: NDArray[np.float64], name: str) -> tuple[Surface, list[Remark]]:
    """A closed surface from loose triangles.

    Args:
        corners: Corners of the triangles, [T, 3, 3].
        name: The file, as remarks name it.

    Returns:
        The surface, its outer shells facing outwards, and what was repaired.

    Raises:
        GeometryError: If the surface isn't closed and can't be repaired with certainty.
    """
    if not len(corners):
        raise GeometryError("it holds no triangles")
    if not np.isfinite(corners).all():
        raise GeometryError("a coordinate of the surface is not a finite number; export it again from the CAD program")
    largest = max(float(corners.max()), -float(corners.min()))
    if not 1 / _MAX_COORDINATE < largest < _MAX_COORDINATE:
        raise GeometryError(f"its lengths are no part's: its largest coordinate is {largest:.3g}")
    first, number = unique_rows(corners.reshape(-1, 3))
    vertices, triangles = corners.reshape(-1, 3)[first], number.reshape(-1, 3)
    del corners, first, number
    vertices, triangles, remarks = _weld(vertices, triangles, name)
    if not len(triangles):
        raise GeometryError("corners of all its facets coincide, so that it encloses nothing; save it again")
    triangles, merged = _merge(triangles)
    if merged:
        sentence = "facets that were there more than once were merged"
        remarks.append(Remark(Treatment.REPAIRED, "merged_facets", sentence, merged, (f"{name}: {merged:,}",)))
    triangles, turned = _orient(vertices, triangles)
    if turned:
        sentence = "facets that faced the wrong side were turned"
        remarks.append(Remark(Treatment.REPAIRED, "turned_facets", sentence, turned, (f"{name}: {turned:,}",)))
    used, triangles = np.unique(triangles, return_inverse=True)
    return Surface(vertices[used], triangles.reshape(-1, 3)), remarks


def _proper(triangles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Triangles with three different corners."""
    a, b, c = triangles.T
    proper: NDArray[np.int64] = triangles[(a != b) & (b != c) & (c != a)]
    return proper


def edges_of(triangles: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Edges without direction as numbers from 0, and whether each goes from its lesser to its larger corner, [3T].

    Edge k of triangle t has the index k T + t.

    Args:
        triangles: [T, 3].
    """
    starts, ends = triangles.T.ravel(), triangles[:, [1, 2, 0]].T.ravel()
    up = starts < ends
    keys = np.minimum(starts, ends)
    keys *= int(triangles.max(initial=0)) + 1
    keys += np.maximum(starts, ends)
    del starts, ends
    return np.unique(keys, return_inverse=True)[1].ravel(), up


def _weld(
    vertices: NDArray[np.float64], triangles: NDArray[np.int64], name: str
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[Remark]]:
    """Join corners that are a rounding error apart, where that closes the surface; only corners at open edges move."""
    triangles = _proper(triangles)
    before = _open_edges(triangles)
    if not before.any():
        return vertices, triangles, []
    size = float(np.ptp(vertices, axis=0).max())
    loose = np.unique(triangles[:, [0, 1, 2]].T.ravel()[before])
    loose = np.union1d(loose, triangles[:, [1, 2, 0]].T.ravel()[before])
    tree = cKDTree(vertices[loose])
    for share in _WELDS:
        if tree.count_neighbors(tree, share * size) > _MAX_NEAR * len(loose):
            break
        pairs = tree.query_pairs(share * size, output_type="ndarray")
        if not len(pairs):
            continue
        links = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(len(loose), len(loose)))
        groups, label = connected_components(links, directed=False)
        first = np.full(groups, len(loose))
        np.minimum.at(first, label, np.arange(len(loose)))
        target = np.arange(len(vertices))
        target[loose] = loose[first[label]]
        moved = np.linalg.norm(vertices[target] - vertices, axis=1)
        welded = _proper(target[triangles])
        if len(welded) and not _open_edges(welded).any() and moved.max() <= 4 * share * size:
            count = int((target[loose] != loose).sum())
            sentence = "corners of facets that lay a rounding error apart were joined"
            example = f"{name}: {count:,}, at most {moved.max():.1g} apart"
            return vertices, welded, [Remark(Treatment.REPAIRED, "welded_corners", sentence, count, (example,))]
    return vertices, triangles, []


def _open_edges(triangles: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each edge, [3T], belongs to one triangle alone."""
    edges, _ = edges_of(triangles)
    alone: NDArray[np.bool_] = np.bincount(edges)[edges] == 1
    return alone


def _merge(triangles: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Triangles without duplicates, and how many were removed.

    The same three corners once each way are the two sides of a wall, and stay, as long as their edges are shared by
    even numbers of triangles; else one of them is a copy that was turned.
    """
    ordered = np.sort(triangles, axis=1)
    first, inverse = unique_rows(ordered)
    even = (triangles[:, 0] < triangles[:, 1]).astype(int) + (triangles[:, 1] < triangles[:, 2])
    even = (even + (triangles[:, 2] < triangles[:, 0])) % 2  # whether the corners are an even permutation
    sided = np.unique(inverse * 2 + even, return_index=True)[1]
    kept = np.zeros(len(triangles), bool)
    kept[sided] = True
    edges, _ = edges_of(triangles[kept])
    odd = (np.bincount(edges) % 2 == 1)[edges].reshape(3, -1).any(axis=0)
    suspect = np.zeros(len(triangles), bool)
    suspect[np.flatnonzero(kept)[odd]] = True
    copies = suspect & (first[inverse] != np.arange(len(triangles)))
    kept &= ~copies
    return triangles[kept], int((~kept).sum())


def _orient(vertices: NDArray[np.float64], triangles: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Triangles that agree with their neighbours, shells facing outwards; and how many were turned."""
    edges, up = edges_of(triangles)
    counts = np.bincount(edges)
    if odd := int((counts % 2 == 1).sum()):
        raise GeometryError(_not_closed(counts, odd))
    number = np.tile(np.arange(len(triangles)), 3)
    turn, region = _agreement(edges, up, counts, number)
    area = np.bincount(region)
    turned = np.bincount(region, turn)
    minority = (turned > area / 2)[region]  # the fewer facets turn
    turn ^= minority
    oriented = np.where(turn[:, None], triangles[:, ::-1], triangles)
    shell = shells_of(oriented)
    inverted = _inverted(vertices, oriented, shell)
    oriented = np.where(inverted[shell][:, None], oriented[:, ::-1], oriented)
    edges, up = edges_of(oriented)
    if uneven := int((np.bincount(edges, np.where(up, 1, -1)) != 0).sum()):
        raise GeometryError(
            f"its triangles don't agree on which side is outside at {uneven:,} edges where more than two meet; "
            "unite its solids in a CAD program"
        )
    return oriented, int((turn ^ inverted[shell]).sum())


def _not_closed(counts: NDArray[np.int64], odd: int) -> str:
    single, total = int((counts == 1).sum()), len(counts)
    if single:
        return (
            f"the surface is not watertight: {single:,} of {total:,} edges have no neighbour; close its holes in a "
            "CAD program or with trimesh.repair"
        )
    return (
        f"the surface has triangles too many: at {odd:,} of {total:,} edges three or more meet, an odd number; remove "
        "walls that end within it"
    )


def _agreement(
    edges: NDArray[np.int64], up: NDArray[np.bool_], counts: NDArray[np.int64], number: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each triangle must turn to agree with the first of its region, and its region.

    Each triangle stands twice in a graph, as it is and turned; neighbours that agree are linked like to like, others
    crosswise. A region without an outside links a triangle with itself turned.
    """
    triangles = int(number.max()) + 1
    order = np.argsort(edges, kind="stable")
    order = order[(counts == 2)[edges[order]]].reshape(-1, 2)
    a, b = number[order].T
    same = up[order[:, 0]] != up[order[:, 1]]  # neighbours pass their edge in opposite directions
    other = np.where(same, b, b + triangles)
    mirror = np.where(same, b + triangles, b)
    rows, columns = np.concatenate([a, a + triangles]), np.concatenate([other, mirror])
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(2 * triangles, 2 * triangles))
    label = connected_components(links, directed=False)[1]
    plain, turned = label[:triangles], label[triangles:]
    if (plain == turned).any():
        raise GeometryError(
            "its triangles can't be turned so that they agree: the surface has no inside, as a Möbius band or a Klein "
            "bottle; model it as a solid"
        )
    region = np.unique(np.minimum(plain, turned), return_inverse=True)[1].ravel()
    return plain > turned, region


def shells_of(triangles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the shell of each triangle, [T]; triangles that share an edge belong to one.

    Args:
        triangles: [T, 3].
    """
    edges, _ = edges_of(triangles)
    count, total = len(triangles), int(edges.max()) + 1
    rows, columns = np.tile(np.arange(count), 3), count + edges
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count + total, count + total))
    label = connected_components(links, directed=False)[1][:count]
    return np.unique(label, return_inverse=True)[1].ravel()


def _inverted(
    vertices: NDArray[np.float64], triangles: NDArray[np.int64], shell: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which shells face inwards without being cavities: their volume is negative, and no other shell contains them."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    volumes = np.bincount(shell, np.einsum("ij,ij->i", a - a.mean(0), np.cross(b - a, c - a)) / 6)
    inverted = volumes < 0
    if len(inverted) == 1 or not inverted.any():
        return inverted
    if volumes.sum() < 0:  # the whole file is turned, its cavities too
        return ~_inverted(vertices, triangles[:, ::-1], shell)
    low = np.full((len(volumes), 3), np.inf)
    high = -low
    for k in range(3):
        np.minimum.at(low, shell, vertices[triangles[:, k]])
        np.maximum.at(high, shell, vertices[triangles[:, k]])
    first = np.unique(shell, return_index=True)[1]
    for number in np.flatnonzero(inverted):
        point = vertices[triangles[first[number]]].mean(axis=0)
        around = ((low <= point) & (point <= high)).all(axis=1)
        around[number] = False
        inverted[number] = not inside_surface(vertices, triangles[around[shell]], point)
    return inverted
