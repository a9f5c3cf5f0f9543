"""In which order cases are served, in which batches, and to whom.

The order of an epoch is a permutation of all cases, drawn from (seed, epoch) alone. Steps take cases from it one after
the other: in each step every rank gets its share, and the steps before it have handed out a beginning of the order and
nothing else. So one number, how many cases were handed out, says where training stands, and it can go on from there
with another number of ranks or workers, other batch sizes, or a budget of points instead of a number of cases.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import UsageError
from lpbf_data.serving.ranks import check_rank, check_seed, rank_among_callers, warn_of_missing_group

Uneven = Literal["drop", "pad", "keep"]
"""What becomes of the last cases of an epoch, fewer than there are ranks, that can't be shared out evenly.

"drop" leaves them out and "pad" adds cases from the beginning of the epoch, so that all ranks make the same number of
steps and no collective operation hangs. "keep" serves each case exactly once; some ranks may make a step less.
"""


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
        cases = order[position:]
        each, extra = divmod(len(cases), self.ranks)
        if self.uneven == "drop":
            cases = cases[: each * self.ranks]
        elif self.uneven == "pad" and extra:
            cases = np.concatenate([cases, np.resize(order, self.ranks - extra)])
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


class NodeBudgetSampler:
    """Batches of at most so many points, balanced over ranks; for `DataLoader(batch_sampler=…)`.

    Args:
        sizes: Points of each case, `dataset.sizes`.
        max_points: Points a batch at most.
        batch_size: Cases a batch at most; any number by default.
        shuffle: Draw a new permutation of all cases for each epoch.
        seed: Seed of the permutations.
        rank: Whose batches; as torch.distributed says by default whenever a loop begins, and all where accelerate
            shares them out.
        world_size: Number of ranks; as torch.distributed says by default.
        uneven: What becomes of the last cases of an epoch; see [Uneven][lpbf_data.serving.sampling.Uneven].

    Raises:
        UsageError: If a case has more points than the budget, or a number is out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int] | NDArray[np.int64],
        max_points: int,
        *,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Uneven = "drop",
    ) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self._ranks = check_rank(rank, world_size)
        self._shares = Sharing(1, batch_size, max_points, uneven)
        self._shares.check_sizes(self.sizes)
        self.shuffle = shuffle
        self.seed = check_seed(seed)
        self.epoch = 0
        self._begun = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration; those after it follow one another."""
        self.epoch, self._begun = epoch, False

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of this rank, as lists of numbers of cases; of the next epoch with every loop."""
        self.epoch, self._begun = self.epoch + self._begun, True
        rank, ranks = rank_among_callers(self._ranks)
        if self._ranks is None:
            warn_of_missing_group((rank, ranks))
        for step in replace(self._shares, ranks=ranks).steps(self._order(), self.sizes):
            if step.shares[rank]:
                yield list(step.shares[rank])

    def _order(self) -> NDArray[np.int64]:
        return epoch_order(len(self.sizes), shuffle=self.shuffle, seed=self.seed, epoch=self.epoch)

    def __len__(self) -> int:
        """Number of batches of this rank in the epoch that was chosen."""
        rank, ranks = rank_among_callers(self._ranks)
        return replace(self._shares, ranks=ranks).num_steps(rank, self._order(), self.sizes)
