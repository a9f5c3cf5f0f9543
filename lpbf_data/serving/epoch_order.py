"""In which order the cases of an epoch are served: a permutation drawn from (seed, epoch) alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def epoch_order(count: int, *, shuffle: bool, seed: int, epoch: int) -> NDArray[np.int64]:
    """Order of the cases in an epoch.

    Args:
        count: Number of cases.
        shuffle: Draw a permutation; otherwise the stored order.
        seed: Seed of the permutations.
        epoch: Number of the epoch.

    Returns:
        [count] int64, each number from 0 to count - 1 once.

    >>> sorted(epoch_order(5, shuffle=True, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4]
    """
    if not shuffle:
        return np.arange(count, dtype=np.int64)
    # The bits of a NumPy bit generator stay the same from version to version; how `permutation` uses them may not.
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(count), kind="stable")
