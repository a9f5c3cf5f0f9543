"""One case of a packed corpus: the mesh as voxels, fields as residuals of a prediction, quantised.

A mesh of boxes that is numbered as [VoxelMesh][lpbf_data.geometry.voxel_mesh.VoxelMesh] numbers it is restored to the
bit from the planes of its grid and a bit for each box. Each field is quantised with a step of its own, so that no value
is off by more than a share of the field's largest one in that case. Its neighbours below and behind predict each
quantised value; stored is the residual, less that of the neighbour to the left: small integers, which compress well.
Where all neighbours exist, this is the Lorenzo predictor (Ibarria, Lindstrom, Rossignac and Szymczak 2003).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.case import Case
from lpbf_data.case.schema import FIELDS, FULL_CLEARANCE, FieldSpec
from lpbf_data.errors import StoreError
from lpbf_data.geometry.box_grid import MAX_VOXELS
from lpbf_data.geometry.voxel_mesh import VoxelMesh, mesh_of_mask

_ORIGINS: Final = {"build_clearance_min": FULL_CLEARANCE}
"""Value of a field where the build left no trace, which is restored exactly; 0 for all other fields."""
_MAX_STEPS: Final = 2**30  # largest residual, as it is stored


@dataclass(frozen=True)
class PackedCase:
    """A case as it is stored.

    Attributes:
        planes: Coordinates of the grid's planes along x, y and z, mm, ascending, float32.
        occupied: A bit for each box of the grid, in the order of x, y, z (z fastest), big end first.
        steps: Quantisation step of each field, in its unit.
        residuals: Differences from the predictions, [columns, N] uint32: 0, -1, 1, -2, … as 0, 1, 2, 3, …
        digest: SHA-256 over all of these.
    """

    planes: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    occupied: bytes
    steps: NDArray[np.float64]
    residuals: NDArray[np.uint32]

    @property
    def digest(self) -> str:
        """SHA-256 over the content."""
        digest = hashlib.sha256()
        for array in (*self.planes, self.steps, self.residuals):
            digest.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        digest.update(self.occupied)
        return digest.hexdigest()


def pack_case(case: Case, specs: tuple[FieldSpec, ...], tolerance: float) -> PackedCase | None:
    """Pack a case.

    Args:
        case: The case.
        specs: Fields to keep, of points.
        tolerance: Share of a field's largest value (for vectors, of the longest one) that values may be off.

    Returns:
        The packed case; None when its mesh isn't one of boxes that is numbered from the bottom up, or a field jumps by
        so much that its steps can't be counted.
    """
    axes = [np.unique(case.points[:, axis], return_inverse=True) for axis in range(3)]
    indices = np.stack([numbers.reshape(-1) for _, numbers in axes], axis=1).astype(np.int64)
    shape = [len(values) - 1 for values, _ in axes]
    if min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
        return None
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(np.minimum(indices[case.cells].min(axis=1), np.array(shape) - 1).T)] = True
    mesh = _mesh(mask)
    if not (np.array_equal(mesh.point_indices, indices) and np.array_equal(mesh.cells, case.cells)):
        return None
    steps, whole = [], []
    for spec in specs:
        values = case.planar(spec).astype(np.float64) - origin_of(spec)
        largest = float(np.linalg.norm(values, axis=0).max())
        steps.append(2 * tolerance * largest)
        whole.append(np.rint(values / steps[-1]).astype(np.int64) if largest else np.zeros(values.shape, np.int64))
    residuals = _residuals(mesh.point_indices, np.concatenate(whole).T)
    if int(np.abs(residuals).max()) >= _MAX_STEPS // 2:
        return None
    packed = np.where(residuals < 0, -2 * residuals - 1, 2 * residuals).astype(np.uint32)
    x, y, z = (values for values, _ in axes)
    return PackedCase((x, y, z), np.packbits(mask).tobytes(), np.array(steps), np.ascontiguousarray(packed.T))


def unpack_case(packed: PackedCase, case_id: str, specs: tuple[FieldSpec, ...], attributes: Mapping[str, Any]) -> Case:
    """The inverse of `pack_case`, but for rounding.

    Args:
        packed: What was stored, from a file that anybody may have written.
        case_id: Its id.
        specs: Fields that it has.
        attributes: What travels with it.

    Raises:
        StoreError: If the numbers don't fit together.
    """
    mask = _mask(packed, case_id)
    mesh = _mesh(mask)
    columns = sum(spec.num_components for spec in specs)
    residuals = packed.residuals
    if residuals.shape != (columns, mesh.num_points) or len(packed.steps) != len(specs):
        raise _damaged(case_id, f"{residuals.shape} numbers stand for {columns} columns of {mesh.num_points} points")
    if not (np.isfinite(packed.steps).all() and (packed.steps >= 0).all() and int(residuals.max()) <= _MAX_STEPS):
        raise _damaged(case_id, "a step or a number is impossible")
    signed = residuals.astype(np.int64)
    whole = _restore(mesh.point_indices, np.where(signed % 2, -(signed + 1) // 2, signed // 2).T)
    fields, first = {}, 0
    for spec, step in zip(specs, packed.steps.tolist(), strict=True):
        values = whole[:, first : first + spec.num_components] * step + origin_of(spec)
        first += spec.num_components
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float32)
        fields[spec.name] = rounded if spec.components else rounded[:, 0]
    points = np.stack([packed.planes[axis][mesh.point_indices[:, axis]] for axis in range(3)], axis=1)
    return Case(case_id, points, mesh.cells, fields, attributes)


def _damaged(case_id: str, what: str) -> StoreError:
    return StoreError(f"packed case {case_id}: {what}; fetch the piece again, or pack the data set again")


def _mask(packed: PackedCase, case_id: str) -> NDArray[np.bool_]:
    shape = [len(planes) - 1 for planes in packed.planes]
    if min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
        raise _damaged(case_id, f"its grid of {' × '.join(map(str, shape))} boxes is impossible")
    if len(packed.occupied) != -(-math.prod(shape) // 8):
        raise _damaged(case_id, f"{len(packed.occupied):,} bytes don't hold a bit for each of its boxes")
    if not all(np.isfinite(planes).all() and (np.diff(planes) > 0).all() for planes in packed.planes):
        raise _damaged(case_id, "the planes of its grid aren't in order")
    bits = np.unpackbits(np.frombuffer(packed.occupied, np.uint8), count=math.prod(shape))
    mask: NDArray[np.bool_] = bits.reshape(shape).astype(bool)
    if not mask.any():
        raise _damaged(case_id, "it has no cells")
    return mask


def _mesh(mask: NDArray[np.bool_]) -> VoxelMesh:
    return mesh_of_mask(mask, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass
class _Row:
    """A row of grid vertices along x: which are points, [nx], and the predicted quantised values, [nx, columns]."""

    there: NDArray[np.bool_]
    prediction: NDArray[np.int64]
    position: tuple[int, int]


def _rows(indices: NDArray[np.int64], grid: NDArray[np.int64]) -> Iterator[_Row]:
    """Rows in the order in which they are predicted; the caller fills the grid, [nz, ny, nx, columns], row by row.

    The prediction is the row below plus the row behind less the one both below and behind, where all three exist; else
    the row below, the row behind, or zero.
    """
    there = np.zeros(grid.shape[:3], dtype=bool)
    there[indices[:, 2], indices[:, 1], indices[:, 0]] = True
    filled: NDArray[np.bool_] = np.any(there, axis=2)
    for z, y in zip(*np.nonzero(filled), strict=True):
        below, behind = z > 0 and filled[z - 1, y], y > 0 and filled[z, y - 1]
        if below and behind and filled[z - 1, y - 1]:
            prediction = grid[z - 1, y] + grid[z, y - 1] - grid[z - 1, y - 1]
        elif below or behind:
            prediction = grid[z - 1, y] if below else grid[z, y - 1]
        else:
            prediction = np.zeros_like(grid[z, y])
        yield _Row(there[z, y], prediction, (int(z), int(y)))


def _grid(indices: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    x, y, z = (indices.max(axis=0) + 1).tolist()
    return np.zeros((z, y, x, columns), dtype=np.int64)


def _residuals(indices: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.int64]:
    """Residuals of the predictions, [N, columns]; a vertex without a point takes that of its left neighbour."""
    grid = _grid(indices, whole.shape[1])
    grid[indices[:, 2], indices[:, 1], indices[:, 0]] = whole
    residuals = np.zeros_like(grid)
    for row in _rows(indices, grid):
        off = grid[row.position] - row.prediction
        latest = np.maximum.accumulate(np.where(row.there, np.arange(len(off)), -1))
        carried = np.where((latest >= 0)[:, None], off[latest], 0)
        residuals[row.position] = np.diff(carried, axis=0, prepend=0)
        grid[row.position] = row.prediction + carried
    return residuals[indices[:, 2], indices[:, 1], indices[:, 0]]


def _restore(indices: NDArray[np.int64], residuals: NDArray[np.int64]) -> NDArray[np.int64]:
    """The inverse of `_residuals`."""
    grid = _grid(indices, residuals.shape[1])
    differences = np.zeros_like(grid)
    differences[indices[:, 2], indices[:, 1], indices[:, 0]] = residuals
    for row in _rows(indices, grid):
        grid[row.position] = row.prediction + np.cumsum(differences[row.position], axis=0)
    return grid[indices[:, 2], indices[:, 1], indices[:, 0]]


def origin_of(spec: FieldSpec) -> float:
    """Value of a field where the build left no trace: the one that is restored exactly."""
    return _ORIGINS.get(spec.name, 0.0)


def known_fields(names: tuple[str, ...]) -> tuple[FieldSpec, ...]:
    """Specifications of fields of points by name.

    Raises:
        KeyError: If one is unknown or belongs to cells.
    """
    specs = tuple(FIELDS[name] for name in names)
    if wrong := [spec.name for spec in specs if spec.location != "point"]:
        raise KeyError(wrong[0])
    return specs
