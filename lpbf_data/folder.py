"""Where a data set lies: a folder on this machine, or any place that fsspec can read."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

import fsspec

from lpbf_data.errors import StoreError, UsageError


class DatasetFolder:
    """Read access to the files of a data set by their relative names. Pickles without open files.

    Args:
        name: A local folder, or a URL that fsspec knows, such as "s3://bucket/lpbf".

    Raises:
        UsageError: If there is no such folder.
    """

    def __init__(self, name: str | Path) -> None:
        self.name = str(name)
        self.local: Path | None = None
        if "://" in self.name:
            try:
                self._system, self._root = fsspec.core.url_to_fs(self.name)
            except (ImportError, ValueError) as error:
                raise UsageError(f"can't open {self.name}: {error}") from error
            return
        self.local = Path(self.name)
        if not self.local.is_dir():
            raise UsageError(
                f"{self.name} is no folder of a data set; build one with python -m pipelines.build --src …"
            )

    def open(self, relative: str) -> Path | IO[bytes]:
        """A file of the data set: its path when it is local, an open binary file otherwise.

        Raises:
            StoreError: If it is missing or can't be read.
        """
        if self.local is not None:
            return self.local / relative
        try:
            return cast("IO[bytes]", self._system.open(f"{self._root}/{relative}", "rb"))
        except OSError as error:
            raise StoreError(f"{self.name}/{relative} can't be read: {error}") from error

    def read(self, relative: str) -> bytes:
        """Content of a file.

        Raises:
            StoreError: If it is missing or can't be read.
        """
        try:
            if self.local is not None:
                return (self.local / relative).read_bytes()
            return cast("bytes", self._system.cat_file(f"{self._root}/{relative}"))
        except OSError as error:
            raise StoreError(f"{self.name}/{relative} can't be read: {error}") from error

    def zarr_store(self, relative: str) -> Any:
        """A Zarr group of the data set, as something that zarr opens."""
        if self.local is not None:
            return self.local / relative
        return f"{self.name.rstrip('/')}/{relative}"
