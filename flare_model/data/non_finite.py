"""Description of points and features that aren't finite, before a model spreads them over all points of a mesh."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def describe_non_finite(values: NDArray[Any], exists: NDArray[np.bool_] | None = None) -> str:
    """How many points have numbers that aren't finite, and which is the first, for an error message.

    Args:
        values: Numbers of each point, [..., F].
        exists: True where there is a point, [...]; everywhere by default.

    Returns:
        Such as "2 of 40 points are not finite, the first is number 7 (nan, 0, 0)", which counts from 0; empty where
        all are finite.
    """
    broken = ~np.isfinite(values).all(axis=-1)
    count = broken.size
    if exists is not None:
        broken, count = broken & exists, int(exists.sum())
    if not broken.any():
        return ""
    wrong = int(broken.sum())
    first = np.unravel_index(int(broken.argmax()), broken.shape)
    shown = ", ".join(f"{number:g}" for number in values[first].tolist())
    number = " of mesh ".join(str(int(i)) for i in reversed(first))
    verb = "is" if wrong == 1 else "are"
    return f"{wrong:,} of {count:,} points {verb} not finite, the first is number {number} ({shown})"
