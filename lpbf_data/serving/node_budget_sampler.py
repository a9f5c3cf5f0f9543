"""`NodeBudgetSampler`: batches within a budget of points for a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lpbf_data.serving.epoch_order import epoch_order
from lpbf_data.serving.process_rank import check_rank, check_seed, effective_rank, warn_of_missing_group
from lpbf_data.serving.rank_sharing import Sharing, Uneven


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
        uneven: What becomes of the last cases of an epoch; see [Uneven][lpbf_data.serving.rank_sharing.Uneven].

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
        self._begun = self._warned_of_ranks = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration; those after it follow one another."""
        self.epoch, self._begun = epoch, False

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of this rank, as lists of numbers of cases; of the next epoch with every loop."""
        self.epoch, self._begun = self.epoch + self._begun, True
        rank, ranks = effective_rank(self._ranks)
        if self._ranks is None and not self._warned_of_ranks:
            self._warned_of_ranks = True
            warn_of_missing_group((rank, ranks))
        for step in replace(self._shares, ranks=ranks).steps(self._order(), self.sizes):
            if step.shares[rank]:
                yield list(step.shares[rank])

    def _order(self) -> NDArray[np.int64]:
        return epoch_order(len(self.sizes), shuffle=self.shuffle, seed=self.seed, epoch=self.epoch)

    def __len__(self) -> int:
        """Number of batches of this rank in the epoch that was chosen."""
        rank, ranks = effective_rank(self._ranks)
        return replace(self._shares, ranks=ranks).num_steps(rank, self._order(), self.sizes)
