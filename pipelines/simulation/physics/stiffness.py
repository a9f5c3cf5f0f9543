"""The stiffness of a part that grows: solvers for the cells that are there, from the bottom up to some height.

Two ways, chosen by what they would cost. `PlaneCholesky` eliminates the nodes of one level after the other; a
new layer extends the factor that is there already, so a whole build costs one factorisation. `Multigrid` is for levels
too large for dense blocks: conjugate gradients with smoothed aggregation, whose near-nullspace are rigid-body modes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.physics.dense_blocks import HOST, Blocks
from pipelines.simulation.physics.equations import BaseConstraint, Stiffness, plane_starts
from pipelines.simulation.physics.plane_cholesky import PlaneCholesky

_DENSE_RATE: Final = 3e10  # operations per second of the dense kernels on one core
_MAX_BLOCKS: Final = 4e9  # bytes
_GPU_RATE: Final = 1e12
_MAX_GPU_BLOCKS: Final = 8e9
_MULTIGRID_RATE: Final = 4e4
# Degrees of freedom per second, for one hierarchy and two solutions, when the corpora were simulated. It is 1e5 by now,
# but parts stay with the solver that they had.


def make_stiffness(
    mesh: VoxelMesh,
    stiffness: NDArray[np.float64],
    constraint: BaseConstraint,
    layers: int,
    *,
    halves: bool = False,
    blocks: Blocks = HOST,
) -> Stiffness:
    """The cheaper of the two solvers for a part.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24], or of each, [e, 24, 24].
        constraint: What it stands on.
        layers: How often the stiffness will be extended.
        halves: Whether planes of cells will be solved for with half of their stiffness.
        blocks: Where dense blocks lie and are worked on.
    """
    size = 3.0 * np.diff(plane_starts(mesh.point_levels))
    size[0] = 3.0 * constraint.size
    dense = float((1 / 3 * size**3).sum() + (size[:-1] ** 2 * size[1:] + size[:-1] * size[1:] ** 2).sum())
    multigrid = float(size.sum()) * (layers + 1) / 2 / _MULTIGRID_RATE
    memory = blocks.bytes_a_level * float((size**2).sum()) + blocks.bytes_between * float((size[:-1] * size[1:]).sum())
    memory += blocks.bytes_meanwhile * float((size**2).max())
    rate, largest = (_DENSE_RATE, _MAX_BLOCKS) if blocks is HOST else (_GPU_RATE, _MAX_GPU_BLOCKS)
    if dense / rate <= multigrid and memory <= largest:
        return PlaneCholesky(mesh, stiffness, constraint, halves=halves, blocks=blocks)
    from pipelines.simulation.physics.multigrid.solver import Multigrid  # loads Numba

    return Multigrid(mesh, stiffness, constraint)
