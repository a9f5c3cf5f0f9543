"""Footers of shards that lie elsewhere, kept on this machine: otherwise each worker of each run would fetch them."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import google_crc32c

from lpbf_data.durable import write_durably

_CRC_BYTES = 4


class KeptFooters:
    """Ends of files by the names of their contents; never in the way.

    Args:
        folder: Where to keep them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode()).hexdigest()[:32]

    def get(self, name: str) -> bytes | None:
        """What is kept under a name, if it is there and intact."""
        with contextlib.suppress(OSError):
            data = self._path(name).read_bytes()
            # The checksum of nothing is nought, so a file of no bytes, or of four that are nought, would pass.
            if len(data) > _CRC_BYTES and google_crc32c.value(data[_CRC_BYTES:]) == int.from_bytes(
                data[:_CRC_BYTES], "little"
            ):
                return data[_CRC_BYTES:]
        return None

    def drop(self, name: str) -> None:
        """Keep something no longer."""
        with contextlib.suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def put(self, name: str, data: bytes) -> None:
        """Keep something, if that is possible."""
        with contextlib.suppress(OSError):
            write_durably(self._path(name), google_crc32c.value(data).to_bytes(_CRC_BYTES, "little") + data)
