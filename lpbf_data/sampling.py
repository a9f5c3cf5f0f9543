"""In which order cases are served, and to whom.

The order of an epoch is a permutation drawn from (seed, epoch) alone; consumers (ranks times workers) take turns in
it. So it doesn't depend on how many there are, and together they see every case exactly once.
"""

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
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int64)


def share_of(order: NDArray[np.int64], consumer: int, consumers: int) -> NDArray[np.int64]:
    """The cases that one consumer takes: every `consumers`-th, from its own number on."""
    return order[consumer::consumers]
