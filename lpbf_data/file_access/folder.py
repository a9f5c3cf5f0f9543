"""`DatasetFolder`: the files of a data set in a local folder, a Hugging Face repository, or a URL that fsspec reads."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

import fsspec

from lpbf_data.errors import MissingFileError, UnreachableError, UsageError
from lpbf_data.file_access.names import checked_name
from lpbf_data.file_access.retries import TRANSIENT_STATUSES, RetriesExhaustedError, retry, status_of
from lpbf_data.os_errors import read_error

T = TypeVar("T")

_PERMANENT: Final = (
    FileNotFoundError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    ImportError,
    MemoryError,
    TypeError,
    AttributeError,
    NameError,
    NotImplementedError,
    RecursionError,
    AssertionError,
    SyntaxError,
)
"""Errors that a retry doesn't cure: missing files and rights, no memory, no package, and programming errors."""

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_URL: Final = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([^/]+))?/?")


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a data set on the Hugging Face hub, "user/name"."""
    return _HUB_ID.fullmatch(name) is not None


class Files(Protocol):
    """Read access to files by their names relative to the data set."""

    is_remote: bool

    @property
    def identity(self) -> str:
        """A text that distinguishes this data set from another one whose manifest has the same bytes."""

    def local_path(self, relative: str) -> Path | None:
        """Local path of a file; None where there is no local copy."""

    def read(self, relative: str) -> bytes:
        """The content of a small file; remote implementations may keep a local copy."""

    def read_range(self, relative: str, start: int, stop: int | None) -> bytes:
        """Some bytes of a file; up to its end where stop is None, and from its end where start is negative."""

    def names(self, folder: str) -> list[str]:
        """Relative names of the files directly in a folder."""

    def zarr_store(self, relative: str) -> Any:
        """A Zarr group, as a store or path that zarr opens."""


class DatasetFolder:
    """The files of a data set by their relative names. Pickles without open files and connections.

    Args:
        name: A local folder; else a URL that fsspec knows, such as "s3://bucket/lpbf"; else an id of the Hugging Face
            hub, such as "vedantpuri/LPBF_FLARE".
        revision: Branch, tag or commit of a repository of the hub.
        cache_dir: Where huggingface_hub keeps files; its default when None.
        token: Token for the hub; the saved one when None.
        offline: Use only what lies on this machine; as HF_HUB_OFFLINE says when None.

    Raises:
        UsageError: If there is no such folder, or the name can't be understood.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        offline: bool | None = None,
    ) -> None:
        self.name = str(name)
        self.files: Files
        hub_url = _HUB_URL.fullmatch(self.name)
        if Path(self.name).is_dir():
            self.files = LocalFiles(Path(self.name))
        elif hub_url or ("://" not in self.name and not isinstance(name, Path) and is_hub_id(self.name)):
            from lpbf_data.file_access.hub import HubFiles  # huggingface_hub is loaded by those who use it

            repository, url_revision = (hub_url[1], hub_url[2]) if hub_url else (self.name, None)
            self.files = HubFiles(
                repository,
                revision=revision or url_revision,
                cache_dir=None if cache_dir is None else Path(cache_dir).expanduser().absolute(),
                token=token,
                offline=offline,
            )
        elif "://" in self.name:
            self.files = UrlFiles(self.name)
        else:
            raise UsageError(
                f"{self.name} is no folder of a data set; build one with python -m pipelines.build --src …"
            )

    @property
    def is_remote(self) -> bool:
        """Whether reading needs a network."""
        return self.files.is_remote

    @property
    def local(self) -> Path | None:
        """The folder, where it is a local one."""
        return self.files.root if isinstance(self.files, LocalFiles) else None

    def read(self, relative: str) -> bytes:
        """Content of a file.

        Raises:
            MissingFileError: If there is no such file.
            StoreError: If it can't be read.
        """
        return self.files.read(relative)


def _missing(name: str, relative: str) -> MissingFileError:
    return MissingFileError(f"{name}/{relative} is missing; verify the data set, fetch it again or build it again")


class LocalFiles:
    """A folder on this machine.

    Args:
        root: The folder; a relative path is resolved at once, since the working folder may change later.
    """

    is_remote = False
    identity = ""

    def __init__(self, root: Path) -> None:
        # Absolute, since programs change their working folder after opening a data set (hydra does).
        self.root = root.absolute()

    def local_path(self, relative: str) -> Path | None:
        """Path of a file."""
        return self.root / checked_name(relative)

    def read(self, relative: str) -> bytes:
        """Content of a file."""
        return self.read_range(relative, 0, None)

    def read_range(self, relative: str, start: int, stop: int | None) -> bytes:
        """Some bytes of a file."""
        path = self.root / checked_name(relative)
        try:
            with path.open("rb") as file:
                file.seek(start, os.SEEK_SET if start >= 0 else os.SEEK_END)
                return file.read() if stop is None else file.read(stop - start)
        except FileNotFoundError as error:
            raise _missing(str(self.root), relative) from error
        except OSError as error:
            raise read_error(f"{self.root}/{relative}", error, f" can't be read: {error}") from error

    def names(self, folder: str) -> list[str]:
        """Relative names of the files in a folder."""
        within = self.root / checked_name(folder)
        return sorted(f"{folder}/{path.name}" for path in within.glob("*") if path.is_file())

    def zarr_store(self, relative: str) -> Any:
        """A Zarr group."""
        return self.root / checked_name(relative)


class UrlFiles:
    """Anything that fsspec reads. Every read is repeated within the limits of [retries][lpbf_data.file_access.retries].

    Args:
        url: URL of the data set.

    Raises:
        UsageError: If fsspec can't open the URL.
    """

    is_remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.identity = self.url
        self._system()

    def _system(self) -> tuple[Any, str]:
        # fsspec keeps one file system for each process and thread: asking again after a fork gives a new one.
        try:
            system, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"can't open {self.url}: {error}") from error
        return system, root

    def _try(self, relative: str, action: Callable[[Any, str], T]) -> T:
        """Do something with a file, with retries.

        Raises:
            MissingFileError: If there is no such file.
            UnreachableError: If the server, the network or the operating system refuses it.
            StoreError: If it can't be read for another reason.
        """
        checked_name(relative)
        system, root = self._system()
        what = f"{self.url}/{relative}"
        try:
            return retry(lambda: action(system, f"{root}/{relative}"), self.url, _is_transient)
        except FileNotFoundError as error:
            raise _missing(self.url, relative) from error
        except RetriesExhaustedError as error:
            raise UnreachableError(f"{what} can't be read now: {error.summary}; {error.advice}") from error
        except Exception as error:  # every file system has errors of its own
            raise read_error(what, error, f" can't be read: {error or type(error).__name__}") from error

    def local_path(self, relative: str) -> Path | None:  # noqa: ARG002
        """None: files of a URL have no local copy."""
        return None

    def read(self, relative: str) -> bytes:
        """Content of a file."""
        return self._try(relative, lambda system, path: cast("bytes", system.cat_file(path)))

    def read_range(self, relative: str, start: int, stop: int | None) -> bytes:
        """Some bytes of a file."""
        return self._try(relative, lambda system, path: cast("bytes", system.cat_file(path, start=start, end=stop)))

    def names(self, folder: str) -> list[str]:
        """Relative names of the files in a folder."""
        return sorted(f"{folder}/{name}" for name, is_folder in self.entries(folder).items() if not is_folder)

    def entries(self, folder: str) -> dict[str, bool]:
        """Names of what lies directly in a folder, and whether each is a folder."""
        try:
            listed = self._try(folder, lambda system, path: system.ls(path, detail=True))
        except MissingFileError:
            return {}
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] == "directory" for entry in listed}

    def zarr_store(self, relative: str) -> Any:
        """A Zarr group."""
        from lpbf_data.file_access.remote_zarr import RemoteZarr  # zarr is loaded by those who use it

        return RemoteZarr(self, relative)


def _is_transient(error: Exception) -> bool:
    """Whether a retry may succeed. Every file system has errors of its own: unknown ones count as transient."""
    if isinstance(error, _PERMANENT):
        return False
    status = status_of(error)
    return status is None or status in TRANSIENT_STATUSES
