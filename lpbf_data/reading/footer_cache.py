"""Cache of the footers of remote shards on the local disk: otherwise each worker of each run would fetch them."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import google_crc32c

from lpbf_data.durable import write_durably

_CRC_BYTES = 4


class FooterCache:
    """Cached footers of Parquet shards, each under a key, with a CRC-32C against damage.

    A cache that can't be read or written does nothing and raises nothing.

    Args:
        folder: Folder of the cache; made with the first footer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def get(self, key: str) -> bytes | None:
        """The footer under a key; None where there is none, or it is damaged."""
        with contextlib.suppress(OSError):
            data = self._path(key).read_bytes()
            # The checksum of no bytes is 0, so an empty file, or one of four zero bytes, would seem intact.
            if len(data) > _CRC_BYTES and google_crc32c.value(data[_CRC_BYTES:]) == int.from_bytes(
                data[:_CRC_BYTES], "little"
            ):
                return data[_CRC_BYTES:]
        return None

    def drop(self, key: str) -> None:
        """Remove the footer under a key."""
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def put(self, key: str, data: bytes) -> None:
        """Store a footer under a key.

        Args:
            key: What identifies the shard: name, size and checksum.
            data: The end of the shard, from the footer on or earlier.
        """
        with contextlib.suppress(OSError):
            write_durably(self._path(key), google_crc32c.value(data).to_bytes(_CRC_BYTES, "little") + data)
