"""Orders of the six components of a symmetric tensor (EnSight, VTK), and how to recognise the order from the data.

The project keeps them as xx, yy, zz, xy, xz, yz ([SYMMETRIC_TENSOR][lpbf_data.case.schema.SYMMETRIC_TENSOR]), in
every store and in Python. Others exchange the last two. Only the order of the components changes: engineering shear
strains (γ, twice the tensor's component) stay engineering shear strains.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TensorOrder = tuple[str, str, str, str, str, str]

ENSIGHT_ORDER: Final[TensorOrder] = ("xx", "yy", "zz", "xy", "xz", "yz")
"""EnSight User Manual 10.2, section 9.1: 11, 22, 33, 12, 13, 23."""

VTK_ORDER: Final[TensorOrder] = ("xx", "yy", "zz", "xy", "yz", "xz")
"""VTK and its files; VTK's EnSight readers turn the manual's order into it. NetFabb writes EnSight files in it too."""

_MAX_POINTS: Final = 4096  # points that are compared: those where the two orders differ most
_MIN_DIFFERENCE: Final = 2e-5  # of the largest principal stress; text files round to 5e-7
_MAX_ERROR_RATIO: Final = 0.2  # of the error of the right order over that of the other one
_MAX_ERROR: Final = 0.01  # of the largest principal stress


def reorder(values: NDArray[Any], given: TensorOrder, wanted: TensorOrder) -> NDArray[Any]:
    """Components in another order.

    Args:
        values: [N, 6].
        given: Their order.
        wanted: The order to give them in.

    Returns:
        [N, 6], the same array where nothing changes.

    >>> reorder(np.arange(6)[None], VTK_ORDER, ENSIGHT_ORDER).tolist()
    [[0, 1, 2, 3, 5, 4]]
    """
    if given == wanted:
        return values
    return np.ascontiguousarray(values[:, [given.index(name) for name in wanted]])


def as_matrices(values: NDArray[Any], order: TensorOrder) -> NDArray[np.float64]:
    """Tensors as symmetric matrices, [N, 3, 3] float64.

    Args:
        values: [N, 6], shear components of the tensor (not engineering strains).
        order: Their order.
    """
    full = np.empty((len(values), 3, 3))
    for column, (i, j) in enumerate(tuple(map("xyz".index, name)) for name in order):
        full[:, i, j] = full[:, j, i] = values[:, column]
    return full


def order_by_principal_values(values: NDArray[Any], principal: NDArray[Any]) -> TensorOrder | None:
    """The order of components in which tensors have given principal values.

    Args:
        values: Tensors as they were written, [N, 6].
        principal: Their principal values in any order, [N, 3].

    Returns:
        The order; None where both orders give the same principal values, so that it can't be recognised.

    Raises:
        ValueError: If neither gives them: the two arrays don't describe one state.
    """
    values, principal = np.asarray(values, np.float64), np.sort(np.asarray(principal, np.float64), axis=1)
    scale = float(np.abs(principal).max(initial=0.0))
    # The two orders differ in the determinant alone, by this much.
    difference = np.abs((values[:, 1] - values[:, 0]) * (values[:, 5] ** 2 - values[:, 4] ** 2))
    chosen = np.arange(len(values))
    if len(values) > _MAX_POINTS:
        chosen = np.argpartition(difference, -_MAX_POINTS)[-_MAX_POINTS:]
    error = {
        order: float(np.abs(np.linalg.eigvalsh(as_matrices(values[chosen], order)) - principal[chosen]).max(initial=0))
        for order in (ENSIGHT_ORDER, VTK_ORDER)
    }
    best = min(error, key=lambda order: error[order])
    worst = max(error.values())
    if worst <= _MIN_DIFFERENCE * scale:
        return None
    if error[best] > min(_MAX_ERROR_RATIO * worst, _MAX_ERROR * scale):
        raise ValueError(
            f"the tensors' principal values differ from those beside them by up to {error[best]:.3g} in either order"
        )
    return best
