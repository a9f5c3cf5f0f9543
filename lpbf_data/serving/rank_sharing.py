"""Distribution of the cases of an epoch over ranks and batches, by number of cases or by a budget of points.

Steps take cases from the order of an epoch one after the other: in each step every rank gets its share, and the steps
before it have consumed a prefix of the order and nothing else. So one number, how many cases were consumed, is the
position of a run, which can be resumed with another number of ranks or workers, other batch sizes, or a
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
        consumed: How many cases of the epoch's order the step consumes, over all ranks; less than the sum of the shares
            where "pad" repeats cases.
    """

    shares: tuple[tuple[int, ...], ...]
    consumed: int


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
        """Check that no single case exceeds the budget of points.

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
        """The remaining steps of an epoch.

        Args:
            order: Order of the epoch.
            sizes: Points of each case.
            position: How many cases of the order were consumed before.
        """
        count = len(order)
        while position < count:
            taken = self._next(order, sizes, position)
            if taken is None:
                return
            yield taken
            position += taken.consumed

    def whole_steps(self, count: int) -> tuple[int, int]:
        """Steps of an epoch that give each rank `batch_size` cases, and cases of each; none with a budget of points.

        Args:
            count: Cases of the epoch.
        """
        if self.max_points is not None or self.batch_size is None:
            return 0, 0
        cases = self.ranks * self.batch_size
        return count // cases, cases

    def num_steps(self, rank: int, order: NDArray[np.int64], sizes: NDArray[np.int64]) -> int:
        """Number of steps in an epoch in which a rank has cases.

        Args:
            rank: The rank.
            order: Order of the epoch, [cases].
            sizes: Points of each case, [cases].
        """
        if self.max_points is not None:
            return sum(1 for step in self.steps(order, sizes) if step.shares[rank])
        whole, cases = self.whole_steps(len(order))
        left = len(order) - whole * cases
        if self.uneven == "drop":
            return whole + (left >= self.ranks)
        return whole + (left > (0 if self.uneven == "pad" else rank))

    def _next(self, order: NDArray[np.int64], sizes: NDArray[np.int64], position: int) -> Step | None:
        left = len(order) - position
        if self.max_points is not None and left >= self.ranks:
            return self._within_budget(order, sizes, position)
        if self.batch_size is None or left < self.ranks * self.batch_size:
            return self._last(order, position)
        consumed = self.ranks * self.batch_size
        cases = order[position : position + consumed].reshape(self.ranks, self.batch_size)
        return Step(tuple(map(tuple, cases.tolist())), consumed)

    def _last(self, order: NDArray[np.int64], position: int) -> Step | None:
        """The last step, of the cases that don't fill the batches of all ranks; None where none is left."""
        cases = _even_out(order[position:], order, self.ranks, self.uneven)
        if len(cases) == 0:
            return None
        shares = np.array_split(cases, self.ranks)
        return Step(tuple(tuple(share.tolist()) for share in shares), min(len(cases), len(order) - position))

    def _within_budget(self, order: NDArray[np.int64], sizes: NDArray[np.int64], position: int) -> Step:
        """As many of the next cases as fit, each given to the rank with the fewest points so far.

        Every rank gets at least one, since there are at least as many cases left as ranks.
        """
        assert self.max_points is not None
        max_cases = self.batch_size or len(order)
        shares: list[list[int]] = [[] for _ in range(self.ranks)]
        loads = [(0, rank) for rank in range(self.ranks)]
        consumed = 0
        for number in range(position, len(order)):  # reads no more of a long order than the step needs
            case = int(order[number])
            # A rank with all the cases it may have leaves the heap; the step ends with the first case that doesn't fit.
            while loads and len(shares[loads[0][1]]) >= max_cases:
                heapq.heappop(loads)
            if not loads or loads[0][0] + int(sizes[case]) > self.max_points:
                break
            load, rank = loads[0]
            shares[rank].append(case)
            heapq.heapreplace(loads, (load + int(sizes[case]), rank))
            consumed += 1
        return Step(tuple(map(tuple, shares)), consumed)


def positions_of_rank(count: int, base: int, rank: int, ranks: int, uneven: Uneven) -> NDArray[np.int64]:
    """Positions in the order of an epoch whose cases a rank gets, case by case in turn.

    Args:
        count: Number of cases.
        base: Position from which on cases are shared out.
        rank: The rank.
        ranks: Number of ranks.
        uneven: What becomes of the last cases.

    Returns:
        [n] int64, ascending but for cases that "pad" repeats.
    """
    return _even_out(np.arange(base, count), np.arange(count), ranks, uneven)[rank::ranks]


def _even_out(rest: NDArray[np.int64], order: NDArray[np.int64], ranks: int, uneven: Uneven) -> NDArray[np.int64]:
    """The remaining cases of an epoch, cut or padded to a multiple of the ranks as `uneven` asks.

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
