"""A remote Zarr group as a Zarr store that reads through the same requests as other files, with their retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final, Protocol

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from lpbf_data.errors import MissingFileError

_SMALL: Final = 1 << 16


class _Files(Protocol):
    def read_range(self, relative: str, start: int, stop: int | None) -> bytes: ...

    def entries(self, folder: str) -> dict[str, bool]: ...


class RemoteZarr(Store):  # noqa: PLW1641 (no store of zarr has a hash)
    """A read-only Zarr store of a remote group.

    Args:
        files: The files of the data set.
        folder: Folder of the group among them.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, files: _Files, folder: str) -> None:
        super().__init__(read_only=True)
        self._files = files
        self._folder = folder
        self._kept: dict[tuple[str, int], bytes] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteZarr) and (self._files, self._folder) == (other._files, other._folder)

    def __repr__(self) -> str:
        return f"RemoteZarr({self._folder!r})"

    def with_read_only(self, read_only: bool = False) -> Store:  # noqa: FBT001, FBT002 (zarr's signature)
        """The same; it can't be written to."""
        if not read_only:
            raise ValueError("a group on a server can't be written to")
        return self

    def fetch(self, key: str, start: int, stop: int | None) -> bytes:
        """Some bytes of a key; up to its end where stop is None, and from its end where start is negative."""
        return self._files.read_range(f"{self._folder}/{key}", start, stop)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Content of a key or some of it; None where there is none."""
        start, stop = _limits(byte_range)
        # Descriptions of arrays and indices of shards, some kilobytes each, are asked for again with every case.
        small = key.endswith("zarr.json") or start < 0
        data = self._kept.get((key, start)) if small else None
        if data is None:
            try:
                data = await asyncio.to_thread(self._files.read_range, f"{self._folder}/{key}", start, stop)
            except MissingFileError:
                return None
        if small and len(data) <= _SMALL:
            self._kept[key, start] = data
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Some bytes of some keys."""
        return list(await asyncio.gather(*(self.get(key, prototype, span) for key, span in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        folder, _, name = f"{self._folder}/{key}".rpartition("/")
        return (await asyncio.to_thread(self._files.entries, folder)).get(name) is False

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a prefix."""
        for name in await asyncio.to_thread(self._files.entries, f"{self._folder}/{prefix}".rstrip("/")):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Keys below a prefix."""
        folder = prefix.rstrip("/")
        for name, is_folder in (
            await asyncio.to_thread(self._files.entries, f"{self._folder}/{folder}".rstrip("/"))
        ).items():
            path = f"{folder}/{name}".lstrip("/")
            if not is_folder:
                yield path
                continue
            async for below in self.list_prefix(path):
                yield below

    def list(self) -> AsyncIterator[str]:
        """All keys."""
        return self.list_prefix("")

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refused."""
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Refused."""
        self._check_writable()


def _limits(byte_range: ByteRequest | None) -> tuple[int, int | None]:
    """First byte, negative from the end, and one past the last."""
    if byte_range is None:
        return 0, None
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, None
    assert isinstance(byte_range, SuffixByteRequest)
    return -byte_range.suffix, None
