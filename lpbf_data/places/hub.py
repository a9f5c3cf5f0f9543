"""Data sets on the Hugging Face hub: small files through its cache, shards by byte ranges.

Names, revisions, tokens, the cache folder, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub, which
does the talking. Files that its cache holds already (after `hf download`, say) are read from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from lpbf_data.errors import MissingFileError, StoreError, UsageError

_KIND: Final = "dataset"
_SECONDS: Final = 30.0
_EXPIRED: Final = (401, 403, 404, 410)
_BACKOFF: Final[dict[str, Any]] = {"max_retries": 6, "base_wait_time": 0.25, "max_wait_time": 8.0}


class HubFiles:
    """A data set repository of the hub.

    Args:
        repository: Its id, "user/name".
        revision: Branch, tag or commit; the main branch when None. The commit is fixed with the first read.
        cache_dir: Where huggingface_hub keeps files.
        token: Token for the hub; the saved one when None.
        offline: Use only what lies on this machine; as HF_HUB_OFFLINE says when None.
    """

    is_remote = True

    def __init__(
        self,
        repository: str,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        offline: bool | None = None,
    ) -> None:
        self.repository = repository
        self.revision = revision
        self.cache_dir = None if cache_dir is None else str(cache_dir)
        self.token = token
        self.endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        self.offline = constants.is_offline_mode() if offline is None else offline
        self._commit: str | None = None
        self._places: dict[str, str] = {}

    @property
    def commit(self) -> str:
        """The commit that is read from.

        Raises:
            UsageError: If there is no such repository or revision.
            StoreError: If the hub can't be reached and this machine has no copy.
        """
        if self._commit is None:
            with self._telling("its commit"):
                self._commit = self._find_commit()
        return self._commit

    def _find_commit(self) -> str:
        if not self.offline:
            api = HfApi(endpoint=self.endpoint, token=self.token)
            return str(api.dataset_info(self.repository, revision=self.revision).sha)
        return self._snapshot().name

    def _snapshot(self) -> Path:
        """Folder of the files that huggingface_hub's cache holds of this revision."""
        found = snapshot_download(
            self.repository,
            repo_type=_KIND,
            revision=self._commit or self.revision,
            cache_dir=self.cache_dir,
            local_files_only=True,
        )
        return Path(found)

    @property
    def identity(self) -> str:
        """Repository and commit."""
        return f"{self.repository}@{self.commit}"

    def local_path(self, relative: str) -> Path | None:
        """Where huggingface_hub's cache has a file, if it does."""
        found = try_to_load_from_cache(
            self.repository, relative, cache_dir=self.cache_dir, revision=self._commit or self.revision, repo_type=_KIND
        )
        return Path(found) if isinstance(found, str) else None

    def read(self, relative: str) -> bytes:
        """Content of a file, which is kept in huggingface_hub's cache."""
        with self._telling(relative):
            found = hf_hub_download(
                self.repository,
                relative,
                repo_type=_KIND,
                revision=self._commit or self.revision,
                cache_dir=self.cache_dir,
                token=self.token,
                endpoint=self.endpoint,
                local_files_only=self.offline,
            )
        # …/snapshots/<commit>/<relative>
        self._commit = Path(found).parents[relative.count("/")].name
        return Path(found).read_bytes()

    def read_range(self, relative: str, start: int, stop: int | None) -> bytes:
        """Some bytes of a file, by one request where its place is known."""
        path = self.local_path(relative)
        if path is not None:
            with path.open("rb") as file:
                file.seek(start)
                return file.read() if stop is None else file.read(stop - start)
        with self._telling(relative):
            if self.offline:
                raise OfflineModeIsEnabled("offline mode is on")
            whole = (start, stop) == (0, None)
            span = {} if whole else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
            response = self._request(relative, span)
            hf_raise_for_status(response)
        return self._body(relative, response, start, stop)

    def _body(self, relative: str, response: httpx2.Response, start: int, stop: int | None) -> bytes:
        """The bytes that were asked for; a server that ignores ranges sends all."""
        data = bytes(response.content)
        if response.status_code == httpx2.codes.OK:
            data = data[start:stop]
        if stop is not None and len(data) != stop - start:
            raise StoreError(
                f"{self.repository}/{relative}: {len(data)} bytes came where {stop - start} were asked for; "
                "the file is shorter than the manifest says"
            )
        return data

    def _request(self, relative: str, headers: dict[str, str]) -> httpx2.Response:
        """Get a file from where the hub said it lies, or ask the hub first; large files lie on other servers."""
        home = hf_hub_url(self.repository, relative, repo_type=_KIND, revision=self.commit, endpoint=self.endpoint)
        place = self._places.pop(relative, None)
        if place is not None:
            response = self._get(place, headers, home)
            if response.status_code not in _EXPIRED:
                self._places[relative] = place
                return response
        response = self._get(home, headers, home)
        if response.is_redirect:
            place = urljoin(home, response.headers["Location"])
            response = self._get(place, headers, home)
            self._places[relative] = place
        return response

    def _get(self, url: str, headers: dict[str, str], home: str) -> httpx2.Response:
        """One request, tried again with growing pauses. The token goes to the hub alone."""
        ours = urlsplit(url)[:2] == urlsplit(home)[:2]
        known = build_hf_headers(token=self.token if ours else False, library_name="lpbf_data")
        headers = known | headers | {"Accept-Encoding": "identity"}
        return http_backoff("GET", url, headers=headers, follow_redirects=False, timeout=_SECONDS, **_BACKOFF)

    def names(self, folder: str) -> list[str]:
        """Relative names of the files in a folder."""
        if self.offline:
            with self._telling(folder):
                root = self._snapshot()
            return sorted(f"{folder}/{path.name}" for path in (root / folder).glob("*"))
        api = HfApi(endpoint=self.endpoint, token=self.token)
        with self._telling(folder):
            try:
                tree = list(api.list_repo_tree(self.repository, folder, repo_type=_KIND, revision=self.commit))
            except EntryNotFoundError:
                return []
        return sorted(entry.path for entry in tree)

    def zarr_store(self, relative: str) -> Any:
        """A Zarr group, through huggingface_hub's file system."""
        from zarr.storage import FsspecStore

        url = f"hf://datasets/{self.repository}@{self.commit}/{relative}"
        options = {"endpoint": self.endpoint, "token": self.token}
        return FsspecStore.from_url(url, storage_options=options, read_only=True)

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Turn what huggingface_hub raises into one sentence that says what was tried and what to do."""
        place = f"the data set {self.repository} on {self.endpoint}"
        try:
            yield
        except RepositoryNotFoundError as error:
            raise UsageError(
                f"no folder {self.repository} lies here, and {place} isn't there, or isn't open to you: check the "
                "name, accept its conditions on its page, or give a token"
            ) from error
        except RevisionNotFoundError as error:
            raise UsageError(f"{place} has no revision {self.revision}") from error
        except HFValidationError as error:
            raise UsageError(f"no folder {self.repository} lies here, and it is no hub id: {error}") from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise StoreError(self._unreachable(what, error)) from error
        except EntryNotFoundError as error:
            commit = self._commit or self.revision or "main"
            raise MissingFileError(f"{place}, commit {commit}, has no {what}") from error
        except HfHubHTTPError as error:
            raise StoreError(f"{place}: {what} can't be read: {error}") from error
        except httpx2.HTTPError as error:
            raise StoreError(self._unreachable(what, error)) from error

    def _unreachable(self, what: str, error: Exception) -> str:
        tried = "offline mode is on" if self.offline else f"{self.endpoint} can't be reached ({_innermost(error)})"
        return (
            f"{what} of the data set {self.repository} is needed: {tried}, and huggingface_hub's cache "
            f"{self.cache_dir or constants.HF_HUB_CACHE} doesn't have it. Where there is a network, "
            f"`hf download {self.repository} --repo-type dataset --local-dir lpbf` makes a local copy: load that folder"
        )


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0]
