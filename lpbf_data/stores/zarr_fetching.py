"""Remote Zarr parts: the chunks that some cases need, fetched in few large requests, several arrays at a time.

It reads the same layout as the [direct reader][lpbf_data.stores.zarr_direct_reader]; arrays of another layout are left
to zarr-python, which fetches chunk by chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import MissingFileError, StoreError, UnreachableError
from lpbf_data.file_access.ranges import merge_ranges
from lpbf_data.stores.zarr_direct_reader import ShardLayout, SpanReader, decoded_index, layout_of

_AT_ONCE: Final = 8
"""Arrays that are fetched at the same time."""
_BOUND: Final = 1 << 62
"""No shard is larger; how large it is isn't asked."""
_SHORT_GAP: Final = 1 << 16
"""Bytes between two chunks that are fetched rather than spent a request on: gaps in a shard are other cases."""

Span = tuple[int, int]


class RemoteGroup(Protocol):
    """A Zarr group whose keys are read by ranges."""

    def fetch(self, key: str, start: int, stop: int | None) -> bytes:
        """Some bytes of a key; from its end where start is negative."""


@contextmanager
def _defer_damage() -> Iterator[None]:
    """Ignore damage, which raises once the damaged case is read; an unreachable server raises at once."""
    try:
        yield
    except UnreachableError:
        raise
    except StoreError:
        pass


class FetchedArray(SpanReader):
    """Reads spans of a remote array.

    Args:
        group: The group.
        array: Name of the array in it.
        name: Name of the array in error messages.
        layout: What its metadata says.

    Raises:
        StoreError: If its shard is missing, cut or altered.
    """

    def __init__(self, group: RemoteGroup, array: str, name: str, layout: ShardLayout) -> None:
        super().__init__(name, layout)
        self._group = group
        self._key = f"{array}/{layout.shard_name}"
        tail = self._bytes(-layout.index_bytes, None)
        self._index = decoded_index(tail, layout, _BOUND, name)
        self._kept: dict[int, NDArray[np.uint8]] = {}

    def _bytes(self, start: int, stop: int | None) -> NDArray[np.uint8]:
        """A range of the array's file, fetched."""
        return np.frombuffer(self._group.fetch(self._key, start, stop), np.uint8)

    def size_of(self, span: Span) -> int:
        """Stored bytes of the chunks that hold a span."""
        numbers = self.chunks(*span)
        return int(self._index[numbers.start : numbers.stop, 1].sum())

    def fetch(self, spans: Iterable[Span]) -> None:
        """Fetch the chunks of some spans, and keep them; damaged ones raise once a case that needs them is read.

        Raises:
            UnreachableError: If they can't be fetched now.
        """
        numbers = sorted({number for span in spans for number in self.chunks(*span)} - self._kept.keys())
        ranges = {number: (int(self._index[number, 0]), int(self._index[number].sum())) for number in numbers}
        for start, stop in merge_ranges(ranges.values(), gap=_SHORT_GAP):
            with _defer_damage():
                data = self._bytes(start, stop)
                within = {n: span for n, span in ranges.items() if start <= span[0] and span[1] <= stop}
                self._kept |= {n: data[begin - start : end - start] for n, (begin, end) in within.items()}

    def drop_fetched(self) -> None:
        """Keep no chunks."""
        self._kept = {}

    def stored(self, chunks: range) -> Sequence[NDArray[np.uint8]]:
        """Stored bytes of consecutive chunks: those that were fetched, else by a request each."""
        ranges = [(int(self._index[n, 0]), int(self._index[n].sum())) for n in chunks]
        found = [self._kept.get(number) for number in chunks]
        return [self._bytes(*span) if data is None else data for data, span in zip(found, ranges, strict=True)]


class FetchedPart:
    """The arrays of a remote part, opened when they are first read.

    Args:
        group: The part.
        name: Name of the part in error messages.
    """

    def __init__(self, group: RemoteGroup, name: str) -> None:
        self._group = group
        self._name = name
        self._arrays: dict[str, FetchedArray | None] = {}

    def attributes(self) -> Mapping[str, Any]:
        """Attributes of the group."""
        found: Mapping[str, Any] = json.loads(self._group.fetch("zarr.json", 0, None))["attributes"]
        return found

    def array(self, name: str) -> FetchedArray | None:
        """An array; None where it isn't there, or has another layout than the one that is read here."""
        if name not in self._arrays:
            self._arrays[name] = self._open(name)
        return self._arrays[name]

    def _open(self, name: str) -> FetchedArray | None:
        """An array by its name; None where there is none, or none that can be read in this way."""
        try:
            layout = layout_of(json.loads(self._group.fetch(f"{name}/zarr.json", 0, None)))
        except MissingFileError:
            return None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            what = f"{self._name}/{name}/zarr.json"
            raise StoreError(f"{what} can't be understood ({error}); verify the data set") from error
        return None if layout is None else FetchedArray(self._group, name, f"{self._name}/{name}", layout)

    def fetch(self, spans: Mapping[str, Sequence[Span]]) -> None:
        """Fetch what some spans of some arrays need, all arrays at once.

        Raises:
            UnreachableError: If it can't be fetched now. Damaged chunks raise when they are read.
        """

        def fetch_one(name: str) -> None:
            with _defer_damage():
                array = self.array(name)
                if array is not None:
                    array.fetch(spans[name])

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lpbf-fetch") as threads:
            list(threads.map(fetch_one, spans))

    def drop_fetched(self) -> None:
        """Keep no chunks."""
        for array in self._arrays.values():
            if array is not None:
                array.drop_fetched()

    def bytes_of(self, spans: Mapping[str, Span]) -> int:
        """Stored bytes of a span of each array that was read already; others don't count."""
        known = {name: self._arrays.get(name) for name in spans}
        return sum(array.size_of(spans[name]) for name, array in known.items() if array is not None)
