"""Which rank gets which cases, and how many of them make a batch: by their number or a budget of points.

Steps take cases from the order of an epoch one after the other: in each step every rank gets its share, and the steps
before it have handed out a beginning of the order and nothing else. So one number, how many cases were handed out, says
where training stands, and it can go on from there with another number of ranks or workers, other batch sizes, or a
budget of points instead of a number of cases.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import UsageError

Uneven = Literal["drop", "pad", "keep"]
"""What becomes of the last cases of an epoch, fewer than there are ranks, that can't be shared out evenly.

"drop" leaves them out and "pad" adds cases from the beginning of the epoch, so that all ranks make the same number of
steps and no collective operation hangs. "keep" serves each case exactly once; some ranks may make a step less.
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of all ranks.

    Attributes:
        shares: Cases of each rank, as numbers in the split.
        handed: How many cases of the order the step uses up.
    """

    shares: tuple[tuple[int, ...], ...]
    handed: int


@dataclass(frozen=True, slots=True)
class Sharing:
    """How cases are shared out.

    Attributes:
        ranks: Number of ranks.
        batch_size: Cases a rank and step; with a budget of points the largest number of them, or None for any.
        max_points: Points a rank and step at most; None for batches of a fixed number of cases.
        uneven: What becomes of the last cases.

    Raises:
        UsageError: If a number isn't positive, or there is neither a batch size nor a budget.
    """

    ranks: int = 1
    batch_size: int | None = 1
    max_points: int | None = None
    uneven: Uneven = "drop"

    def __post_init__(self) -> None:
        for name in ("ranks", "batch_size", "max_points"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be positive, not {value}")
        if self.batch_size is None and self.max_points is None:
            raise UsageError("a batch needs a size: give batch_size, max_points, or both")
        if self.uneven not in get_args(Uneven):
            raise UsageError(f"unknown uneven={self.uneven!r}; known are: {', '.join(get_args(Uneven))}")

    def check_sizes(self, sizes: NDArray[np.int64]) -> None:
        """Refuse a budget that a single case exceeds.

        Args:
            sizes: Points of each case.

        Raises:
            UsageError: If there is such a case.
        """
        if self.max_points is not None and len(sizes) and int(sizes.max()) > self.max_points:
            raise UsageError(
                f"max_points={self.max_points} is less than the {int(sizes.max())} points of case number "
                f"{int(sizes.argmax())}; raise it"
            )

    def steps(self, order: NDArray[np.int64], sizes: NDArray[np.int64], position: int = 0) -> Iterator[Step]:
        """The steps of what is left of an epoch.

        Args:
            order: Order of the epoch.
            sizes: Points of each case.
            position: How many cases of it were handed out before.
        """
        count = len(order)
        while position < count:
            taken = self._next(order, sizes, position)
            if taken is None:
                return
            yield taken
            position += taken.handed

    def num_steps(self, rank: int, order: NDArray[np.int64], sizes: NDArray[np.int64]) -> int:
        """Number of steps in an epoch in which a rank has cases."""
        if self.max_points is not None:
            return sum(1 for step in self.steps(order, sizes) if step.shares[rank])
        assert self.batch_size is not None
        whole, left = divmod(len(order), self.ranks * self.batch_size)
        if self.uneven == "drop":
            return whole + (left >= self.ranks)
        return whole + (left > (0 if self.uneven == "pad" else rank))

    def _next(self, order: NDArray[np.int64], sizes: NDArray[np.int64], position: int) -> Step | None:
        left = len(order) - position
        if self.max_points is not None and left >= self.ranks:
            return self._within_budget(order, sizes, position)
        if self.batch_size is None or left < self.ranks * self.batch_size:
            return self._last(order, position)
        handed = self.ranks * self.batch_size
        cases = order[position : position + handed].reshape(self.ranks, self.batch_size)
        return Step(tuple(map(tuple, cases.tolist())), handed)

    def _last(self, order: NDArray[np.int64], position: int) -> Step | None:
        """What is left when it doesn't fill the batches of all ranks."""
        cases = _evened(order[position:], order, self.ranks, self.uneven)
        if len(cases) == 0:
            return None
        shares = np.array_split(cases, self.ranks)
        return Step(tuple(tuple(share.tolist()) for share in shares), min(len(cases), len(order) - position))

    def _within_budget(self, order: NDArray[np.int64], sizes: NDArray[np.int64], position: int) -> Step:
        """As many of the next cases as fit, each given to the rank with the fewest points so far.

        Every rank gets at least one, since there are at least as many cases left as ranks.
        """
        assert self.max_points is not None
        most = self.batch_size or len(order)
        shares: list[list[int]] = [[] for _ in range(self.ranks)]
        loads = [(0, rank) for rank in range(self.ranks)]
        handed = 0
        for place in range(position, len(order)):  # of a long order, only what the step takes is looked at
            case = int(order[place])
            # A rank with all the cases it may have leaves the heap; the step ends with the first case that doesn't fit.
            while loads and len(shares[loads[0][1]]) >= most:
                heapq.heappop(loads)
            if not loads or loads[0][0] + int(sizes[case]) > self.max_points:
                break
            load, rank = loads[0]
            shares[rank].append(case)
            heapq.heapreplace(loads, (load + int(sizes[case]), rank))
            handed += 1
        return Step(tuple(map(tuple, shares)), handed)


def turns_of_rank(count: int, base: int, rank: int, ranks: int, uneven: Uneven) -> NDArray[np.int64]:
    """Places in the order of an epoch that a rank takes from a position on."""
    return _evened(np.arange(base, count), np.arange(count), ranks, uneven)[rank::ranks]


def _evened(rest: NDArray[np.int64], order: NDArray[np.int64], ranks: int, uneven: Uneven) -> NDArray[np.int64]:
    """The last cases of an epoch as they are shared out: without, or filled up for, what can't be shared evenly.

    Args:
        rest: What is left of the order.
        order: Order of the epoch, from whose beginning "pad" takes.
        ranks: Number of ranks.
        uneven: What becomes of the last cases.
    """
    extra = len(rest) % ranks
    if uneven == "drop":
        return rest[: len(rest) - extra]
    if uneven == "pad" and extra:
        return np.concatenate([rest, np.resize(order, ranks - extra)])
    return rest
