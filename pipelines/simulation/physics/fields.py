"""What is derived from stress at a node: von Mises stress, principal stresses and their directions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def von_mises(stress: NDArray[np.float64]) -> NDArray[np.float64]:
    """Von Mises stress, [n].

    Args:
        stress: Components xx, yy, zz, xy, xz, yz, [n, 6].

    >>> von_mises(np.array([[3.0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]])).round(4).tolist()
    [3.0, 1.7321]
    """
    xx, yy, zz, xy, xz, yz = stress.T
    normal = (xx - yy) ** 2 + (yy - zz) ** 2 + (zz - xx) ** 2
    return np.asarray(np.sqrt(normal / 2 + 3 * (xy**2 + xz**2 + yz**2)))


def principal_stresses(stress: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal stresses, largest first, and their directions.

    Args:
        stress: Components xx, yy, zz, xy, xz, yz, [n, 6].

    Returns:
        Values [n, 3], and vectors [n, 3, 3]: `[:, k]` belongs to value k. As NetFabb writes them, their length isn't 1
        but their component of largest size is.
    """
    xx, yy, zz, xy, xz, yz = stress.T
    tensor = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)
    values, columns = np.linalg.eigh(tensor)
    vectors = np.transpose(columns[:, :, ::-1], (0, 2, 1))
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=2)[..., None], axis=2)
    return values[:, ::-1], vectors / largest
