"""The tensors of the cases of a split: from memory, from the cache, or decoded from the shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lpbf_data.reading.cache import CachedCases
from lpbf_data.reading.memory_pool import ARRAY_POOL
from lpbf_data.reading.split_reader import SplitReader
from lpbf_data.stores.selection import Arrays, Selection

Tensors = dict[str, torch.Tensor]


class CaseTensors:
    """Tensors of the cases of a split. Pickles without open files.

    Args:
        reader: The split.
        selection: What to read of each case.
        cache: Where decoded cases are kept, if anywhere.
    """

    def __init__(self, reader: SplitReader, selection: Selection, cache: CachedCases | None = None) -> None:
        self.reader = reader
        self.selection = selection
        self.cache = cache
        self._memory: _Memory | None = None

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.reader)

    def views(self, index: int) -> Arrays:
        """Arrays of a case that must not be written to: they may be those of the cache.

        Args:
            index: Its number in the split.

        Raises:
            StoreError: If it can't be read.
        """
        return self._find(index)[0]

    def sample(self, index: int) -> Tensors:
        """Tensors of a case that belong to the caller.

        Args:
            index: Its number in the split.

        Raises:
            StoreError: If it can't be read.
        """
        arrays, shared = self._find(index)
        return as_tensors({name: ARRAY_POOL.copy(values) for name, values in arrays.items()} if shared else arrays)

    def _find(self, index: int) -> tuple[Arrays, bool]:
        """Arrays of a case, and whether others look at the same memory."""
        if self._memory is not None:
            return self._memory[index], True
        if self.cache is None:
            return tensor_arrays(self.reader.read_arrays(index, self.selection)), False
        stamp = self.reader.stamp(index)
        found = self.cache.get(index, stamp)
        return self._decode(index, stamp) if found is None else (found, True)

    def _decode(self, index: int, stamp: str) -> tuple[Arrays, bool]:
        """Decode a case for the cache, and with it what is worth fetching along."""
        assert self.cache is not None
        # Neighbours in a remote shard are fetched together: a process that waits for one shouldn't fetch it too.
        remote = self.reader.folder.is_remote
        with self.cache.lock(self.reader.addresses[index].shard if remote else index):
            found = self.cache.get(index, stamp)  # another process may have been faster
            if found is not None:
                return found, True
            along = self.reader.neighbours(index) if self.cache.writable else []
            wanted = [index, *(other for other in along if other not in self.cache)]
            decoded = [tensor_arrays(arrays) for arrays in self.reader.read_many(wanted, self.selection)]
            for other, arrays in zip(wanted, decoded, strict=False):
                self.cache.put(other, arrays, self.reader.stamp(other))
        return decoded[0], False

    def load_into_memory(self) -> None:
        """Read every case now and keep it.

        Raises:
            StoreError: If a case can't be read.
        """
        if self._memory is None:
            self._memory = _Memory([self.views(index) for index in range(len(self))])

    def share_memory(self) -> None:
        """Put what is kept in memory where worker processes see it too."""
        if self._memory is not None:
            self._memory.share()


class _Memory:
    """All cases, joined name by name: a handful of large blocks of memory instead of many thousand small ones."""

    def __init__(self, cases: list[Arrays]) -> None:
        self._shapes = [{name: values.shape for name, values in case.items()} for case in cases]
        names = list(cases[0])
        self._starts = {name: np.cumsum([0, *(case[name].size for case in cases)]).tolist() for name in names}
        self._blocks = {name: np.concatenate([case.pop(name).reshape(-1) for case in cases]) for name in names}

    def __getitem__(self, index: int) -> Arrays:
        return {name: self._view(name, index, shape) for name, shape in self._shapes[index].items()}

    def _view(self, name: str, index: int, shape: tuple[int, ...]) -> NDArray[Any]:
        starts = self._starts[name]
        return self._blocks[name][starts[index] : starts[index + 1]].reshape(shape)

    def share(self) -> None:
        # Pickled for a spawned worker, an array is copied, and a tensor in shared memory isn't.
        self._shared = {
            name: torch.from_numpy(block).share_memory_()  # type: ignore[no-untyped-call]
            for name, block in self._blocks.items()
        }
        self._blocks = {name: block.numpy() for name, block in self._shared.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_blocks"} | (
            {} if hasattr(self, "_shared") else {"_blocks": self._blocks}
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if hasattr(self, "_shared"):
            self._blocks = {name: block.numpy() for name, block in self._shared.items()}


def tensor_arrays(arrays: Arrays) -> Arrays:
    """Arrays in the types of tensors (torch indexes with 64-bit integers), each in memory of its own."""
    return {
        name: _owned(values.astype(np.int64) if values.dtype.kind == "i" else values) for name, values in arrays.items()
    }


def _owned(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.flags.writeable and values.flags.c_contiguous and values.base is None else values.copy("C")


def as_tensors(arrays: Arrays) -> Tensors:
    """Arrays as tensors, without a copy."""
    return {name: torch.from_numpy(values) for name, values in arrays.items()}
