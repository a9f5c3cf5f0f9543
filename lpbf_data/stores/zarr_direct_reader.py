"""Direct reader of spans of a local sharded Zarr array: read the inner chunks, compare checksums, decompress, copy.

zarr-python plans every read anew, which costs more than decoding where a case is some 25,000 points in seven arrays.
This reader knows one layout, the one that [zarr_parts][lpbf_data.stores.zarr_parts] writes: Zarr format 3, one shard
an array, `sharding_indexed` with the index at the end, blosc, crc32c. Arrays of any other layout are read by
zarr-python. The tests compare the values of both.

Source: Zarr core specification, version 3, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import StoreError
from lpbf_data.os_errors import read_error

if sys.platform != "win32":
    import resource

_CRC_BYTES: Final = 4
_MAX_OPEN: Final = 1024  # arrays that a process keeps open; a quarter of what it may open where that is less
_MAX_DESCRIPTORS: Final = 4096
_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "float32": np.dtype("<f4"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
}


class _OpenFiles:
    """Limit on the shards that this process keeps open: a share of what the operating system allows it.

    A shard beyond it is opened for every read, which takes some microseconds on a local disk.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def take(self) -> bool:
        """Count one more file, if the limit allows it; returns whether it may be kept open."""
        with self._lock:
            if self._count >= min(_MAX_OPEN, descriptors_allowed() // 4):
                return False
            self._count += 1
            return True

    def release(self) -> None:
        """Count one file less."""
        with self._lock:
            self._count -= 1

    def renew_lock(self) -> None:
        """Make a new lock in a forked process, where the thread that might hold the old one doesn't exist."""
        self._lock = threading.Lock()


def descriptors_allowed() -> int:
    """Files that this process may have open, 4,096 at most: that is enough for everything here."""
    if os.name == "nt":
        return _MAX_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(_MAX_DESCRIPTORS, soft)


_open_files = _OpenFiles()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_files.renew_lock)


def _close(descriptor: int) -> None:
    os.close(descriptor)
    _open_files.release()


class SpanReader:
    """Reads spans along the last dimension of one array, from stored chunks that a subclass provides.

    Args:
        name: Name of the array in error messages.
        layout: What its metadata says.
    """

    _index: NDArray[np.uint64]

    def __init__(self, name: str, layout: ShardLayout) -> None:
        self.name = name
        self._layout = layout

    @property
    def components(self) -> int:
        """Size of the first dimension; 1 where there is only one dimension."""
        return self._layout.components

    @property
    def length(self) -> int:
        """Size of the last dimension."""
        return self._layout.length

    def chunks(self, start: int, stop: int) -> range:
        """Numbers of the inner chunks that hold a span."""
        length = self._layout.chunk_length
        return range(start // length, (stop - 1) // length + 1)

    def stored(self, chunks: range) -> Sequence[NDArray[np.uint8]]:
        """Stored bytes of consecutive chunks."""
        raise NotImplementedError

    def read(self, start: int, stop: int, components: slice = slice(None)) -> NDArray[Any]:
        """Values of a span, point by point.

        Args:
            start: First position.
            stop: One past the last position.
            components: Which components.

        Returns:
            [stop - start, components], owned by the caller.

        Raises:
            StoreError: If a chunk is missing, cut or altered.
        """
        length = self._layout.chunk_length
        rows = range(*components.indices(self.components))
        out = np.empty((stop - start, len(rows)), self._layout.dtype)
        scratch = np.empty((self.components, length), self._layout.dtype)
        numbers = self.chunks(start, stop)
        for number, stored in zip(numbers, self.stored(numbers), strict=True):
            low, high = max(start, number * length), min(stop, (number + 1) * length)
            target = out[low - start : high - start]
            # A whole chunk of the only component has the layout of the result: no detour is needed.
            direct = self.components == 1 and high - low == length
            chunk = target.reshape(1, -1) if direct else scratch
            self._decode(number, stored, chunk)
            if not direct:
                for column, row in enumerate(rows):
                    target[:, column] = chunk[row, low - number * length : high - number * length]
        return out

    def _decode(self, number: int, stored: NDArray[np.uint8], out: NDArray[Any]) -> None:
        if len(stored) != int(self._index[number, 1]) or not _is_intact(stored):
            raise StoreError(f"chunk {number} of {self.name} is cut or altered; verify the data set")
        try:
            numcodecs.blosc.decompress(stored[:-_CRC_BYTES], out)
        except (RuntimeError, ValueError) as error:
            raise StoreError(f"chunk {number} of {self.name}: {error}; verify the data set") from error


def decoded_index(data: NDArray[np.uint8], layout: ShardLayout, end: int, name: str) -> NDArray[np.uint64]:
    """Offset and size of each inner chunk, [chunks, 2].

    Args:
        data: The end of the shard, as long as its index should be.
        layout: What the metadata of the array says.
        end: Size of the shard, or a bound of it.
        name: Name of the array in error messages.

    Raises:
        StoreError: If it is cut or altered, or points outside the shard.
    """
    if len(data) != layout.index_bytes or not _is_intact(data):
        raise StoreError(f"the shard index of {name} is cut or altered; verify the data set")
    index = data[:-_CRC_BYTES].view("<u8").reshape(-1, 2)
    if (index > end).any() or (index.sum(axis=1) > end).any():
        raise StoreError(f"the shard index of {name} points outside its file; verify the data set")
    return index


class ShardedArray(SpanReader):
    """Reads spans of a local array.

    Args:
        folder: Folder of the array.
        layout: What its metadata says.

    Raises:
        StoreError: If its shard is missing, cut or altered.
    """

    def __init__(self, folder: Path, layout: ShardLayout) -> None:
        super().__init__(str(folder), layout)
        self._path = folder / layout.shard_name
        self._kept: int | None = None
        self._state = (0, 0, 0)
        self._keep_open()
        with self._opened() as file:
            stat = os.fstat(file)
            self._state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            self._index = self._read_index(file)

    def _keep_open(self) -> None:
        """Open the file for as long as this array lives, unless the process has enough open."""
        if not _open_files.take():
            return
        try:
            self._kept = self._open()
        except BaseException:
            _open_files.release()
            raise
        weakref.finalize(self, _close, self._kept)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise StoreError(f"{self._path} is missing; verify the data set, or build it again") from error
        except OSError as error:
            raise read_error(str(self._path), error, f" can't be opened: {error}") from error

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The open file: the one that is kept, or one for this read."""
        if self._kept is not None:
            yield self._kept
            return
        file = self._open()
        try:
            stat = os.fstat(file)
            if self._state[0] and self._state != (stat.st_ino, stat.st_size, stat.st_mtime_ns):
                raise StoreError(f"{self._path} was replaced while it was read; open the data set again")
            yield file
        finally:
            os.close(file)

    def _read_bytes(self, file: int, offset: int, size: int) -> NDArray[np.uint8]:
        try:
            return np.frombuffer(os.pread(file, size, offset), np.uint8)
        except OSError as error:
            raise read_error(str(self._path), error, f" can't be read: {error}") from error

    def _read_index(self, file: int) -> NDArray[np.uint64]:
        """Offset and size of each inner chunk, [chunks, 2]."""
        size, end = self._layout.index_bytes, os.fstat(file).st_size
        return decoded_index(self._read_bytes(file, max(end - size, 0), size), self._layout, end, self.name)

    def stored(self, chunks: range) -> list[NDArray[np.uint8]]:
        """Stored bytes of consecutive chunks, in one read where they lie one after the other."""
        if not chunks:
            return []
        spans = [(int(offset), int(size)) for offset, size in self._index[chunks.start : chunks.stop]]
        begin, end = spans[0][0], spans[-1][0] + spans[-1][1]
        with self._opened() as file:
            if end - begin != sum(size for _, size in spans):
                return [self._read_bytes(file, offset, size) for offset, size in spans]
            whole = self._read_bytes(file, begin, end - begin)
        return [whole[offset - begin : offset - begin + size] for offset, size in spans]


def _is_intact(data: NDArray[np.uint8]) -> bool:
    """Whether data ends in the CRC-32C of what comes before; an empty array isn't intact, though its checksum is 0."""
    return len(data) > _CRC_BYTES and int(google_crc32c.value(data[:-_CRC_BYTES])) == int.from_bytes(
        data[-_CRC_BYTES:].tobytes(), "little"
    )


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """What the metadata of an array says, where it is the layout that this reader knows.

    Attributes:
        dimensions: One or two.
        components: Size of the first dimension of two.
        length: Size of the last dimension.
        chunk_length: Positions in an inner chunk.
        num_chunks: Inner chunks of the shard.
        dtype: Type of the values.
    """

    dimensions: int
    components: int
    length: int
    chunk_length: int
    num_chunks: int
    dtype: np.dtype[Any]

    @property
    def index_bytes(self) -> int:
        """Size of the index at the end of the shard, with its checksum."""
        return 16 * self.num_chunks + _CRC_BYTES

    @property
    def shard_name(self) -> str:
        """Name of the shard in the folder of the array."""
        return "/".join(["c", *["0"] * self.dimensions])


def layout_of(metadata: dict[str, Any]) -> ShardLayout | None:
    """What `zarr.json` says; None where the array is laid out in another way."""
    shape = tuple(metadata["shape"])
    outer = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    if [codec["name"] for codec in metadata["codecs"]] != ["sharding_indexed"]:
        return None
    sharding = metadata["codecs"][0]["configuration"]
    inner = tuple(sharding["chunk_shape"])
    known = (
        [codec["name"] for codec in sharding["codecs"]] == ["bytes", "blosc", "crc32c"]
        and [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"]
        and sharding["codecs"][0].get("configuration") == {"endian": "little"}
        and sharding.get("index_location", "end") == "end"
        and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        and metadata["data_type"] in _TYPES
        and len(shape) in (1, 2)
        and inner[:-1] == outer[:-1] == shape[:-1]
        and outer[-1] >= shape[-1]
        and outer[-1] % inner[-1] == 0
    )
    if not known:
        return None
    dtype = _TYPES[metadata["data_type"]]
    return ShardLayout(len(shape), math.prod(shape[:-1]), shape[-1], inner[-1], outer[-1] // inner[-1], dtype)


def open_sharded_array(folder: Path) -> ShardedArray | None:
    """Open an array for direct reading; None where it has another layout than the one this reader knows.

    Args:
        folder: Folder of the array.

    Raises:
        StoreError: If it is missing, cut or altered.
    """
    if not hasattr(os, "pread"):  # Windows
        return None
    try:
        layout = layout_of(json.loads((folder / "zarr.json").read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise read_error(f"{folder}/zarr.json", error, f" can't be read: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StoreError(f"{folder}/zarr.json can't be understood ({error}); verify the data set") from error
    return None if layout is None else ShardedArray(folder, layout)
