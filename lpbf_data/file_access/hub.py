"""Data sets on the Hugging Face hub: small files through its cache, shards by byte ranges.

Names, revisions, tokens, the cache folder, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub, whose
session is used. Files that its cache holds already (after `hf download`, say) are read from there. Requests
are made here and not by its functions, because these wait for as long as a server asks them to, or don't repeat at all:
here every one of them, for a commit, a listing, a file or a range, is repeated within the limits of
[retries][lpbf_data.file_access.retries].
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

import httpx2
from huggingface_hub import constants, get_session, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id

from lpbf_data.durable import write_durably
from lpbf_data.errors import MissingFileError, StoreError, UnreachableError, UsageError
from lpbf_data.file_access.folder import LocalFiles
from lpbf_data.file_access.names import checked_name
from lpbf_data.file_access.retries import TRANSIENT_STATUSES, RetriesExhaustedError, retry, status_of

_KIND: Final = "dataset"
_MAIN: Final = "main"
_SECONDS: Final = 30.0  # after which a request without an answer fails
_EXPIRED: Final = (401, 403, 404, 410)  # statuses of a download URL that isn't valid any more
_REDIRECTS: Final = 5
_PAGES: Final = 1_000
"""Of a listing at most; the hub's hold a thousand names each."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class HubWarning(UserWarning):
    """The hub can't be used as it was meant to be."""


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
        self.cache_dir = None if cache_dir is None else str(Path(cache_dir).expanduser().absolute())
        self.token = token
        self.endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        self.offline = constants.is_offline_mode() if offline is None else offline
        self._commit: str | None = None
        self._download_urls: dict[str, str] = {}

    @property
    def commit(self) -> str:
        """The commit that is read from.

        Raises:
            UsageError: If there is no such repository or revision.
            StoreError: If the hub can't be reached and this machine has no copy.
        """
        if self._commit is None:
            with self._wrap_errors("the commit"):
                validate_repo_id(self.repository)
                self._commit = self._find_commit()
        return self._commit

    def _find_commit(self) -> str:
        if self.offline:
            return self._snapshot().name
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            response = self._get_api(self._api("revision", self.revision or _MAIN))
        except RetriesExhaustedError as error:
            try:
                commit = self._snapshot().name
            except LocalEntryNotFoundError:
                raise error from None
            warnings.warn(
                f"{self.endpoint} can't be reached ({error.summary}): of the data set {self.repository} this machine's "
                f"copy is read, commit {commit}, which may not be the newest",
                HubWarning,
                stacklevel=2,
            )
            return commit
        commit = str(_json_of(response).get("sha"))
        if not _COMMIT.fullmatch(commit):
            raise StoreError(f"{self.endpoint} gives no commit of {self.repository}; is it a Hugging Face hub?")
        return commit

    def _api(self, verb: str, *parts: str) -> str:
        """URL of an endpoint of the hub's API for this repository."""
        rest = "/".join(quote(part, safe="/" if number else "") for number, part in enumerate(parts))
        return f"{self.endpoint}/api/datasets/{self.repository}/{verb}/{rest}"

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
        """Path of a file in huggingface_hub's cache; None where the cache lacks it."""
        name = checked_name(relative)
        found = try_to_load_from_cache(
            self.repository, name, cache_dir=self.cache_dir, revision=self._commit or self.revision, repo_type=_KIND
        )
        return Path(found) if isinstance(found, str) else None

    def read(self, relative: str) -> bytes:
        """Content of a file, which is kept in huggingface_hub's cache."""
        commit = self.commit
        path = self.local_path(relative)
        if path is not None:
            return LocalFiles(path.parent).read(path.name)
        data = self.read_range(relative, 0, None)
        self._keep(relative, commit, data)
        return data

    def _keep(self, relative: str, commit: str, data: bytes) -> None:
        """Put a file into huggingface_hub's cache, in its layout without symbolic links."""
        name = checked_name(relative)
        folder = repo_folder_name(repo_id=self.repository, repo_type=_KIND)
        root = Path(self.cache_dir or constants.HF_HUB_CACHE) / folder
        try:
            write_durably(root / "snapshots" / commit / name, data)
            if self.revision != commit:
                write_durably(root / "refs" / checked_name(self.revision or _MAIN), commit.encode())
        except OSError as error:
            warnings.warn(
                f"huggingface_hub's cache can't be written to ({error}): {relative} of {self.repository} is fetched "
                "again each time, and isn't there in offline mode; choose another folder with cache_dir=…",
                HubWarning,
                stacklevel=2,
            )

    def read_range(self, relative: str, start: int, stop: int | None) -> bytes:
        """Some bytes of a file, by one request where its download URL is known."""
        path = self.local_path(relative)
        if path is not None:
            return LocalFiles(path.parent).read_range(path.name, start, stop)
        with self._wrap_errors(relative):
            if self.offline:
                raise OfflineModeIsEnabled("offline mode is on")
            span = f"{start}-{'' if stop is None else stop - 1}" if start >= 0 else str(start)
            response = self._request(relative, {} if (start, stop) == (0, None) else {"Range": f"bytes={span}"})
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
        """Get a file from its known download URL, or by way of the hub, which redirects for large files."""
        home = hf_hub_url(self.repository, relative, repo_type=_KIND, revision=self.commit, endpoint=self.endpoint)
        known_url = self._download_urls.pop(relative, None)
        if known_url is not None:
            response = self._get(known_url, headers)
            if response.status_code not in _EXPIRED:
                self._download_urls[relative] = known_url
                return response
        return self._follow(home, headers, relative)

    def _follow(self, url: str, headers: dict[str, str], relative: str | None = None) -> httpx2.Response:
        """Get a URL, following redirects; the URL that a file ends up at is remembered."""
        response = self._get(url, headers)
        for _ in range(_REDIRECTS):
            if not response.is_redirect:
                break
            url = urljoin(url, response.headers["Location"])
            response = self._get(url, headers)
            if relative is not None and not response.is_redirect:
                self._download_urls[relative] = url
        return response

    def _get_api(self, url: str) -> httpx2.Response:
        """Get a response of the hub's API.

        Raises:
            HfHubHTTPError: If its status is an error.
        """
        response = self._follow(url, {})
        hf_raise_for_status(response)
        return response

    def _get(self, url: str, headers: dict[str, str]) -> httpx2.Response:
        """One request, with retries. The token is sent to the hub alone."""
        ours = urlsplit(url)[:2] == urlsplit(self.endpoint)[:2]
        known = build_hf_headers(token=self.token if ours else False, library_name="lpbf_data")
        sent = known | headers | {"Accept-Encoding": "identity"}

        def request() -> httpx2.Response:
            response = get_session().request("GET", url, headers=sent, follow_redirects=False, timeout=_SECONDS)
            if response.status_code in TRANSIENT_STATUSES:
                hf_raise_for_status(response)
            return response

        return retry(request, self.endpoint if ours else "{}://{}".format(*urlsplit(url)[:2]), _is_transient)

    def entries(self, folder: str) -> dict[str, bool]:
        """Names of what lies directly in a folder, and whether each is a folder."""
        if self.offline:
            with self._wrap_errors(folder):
                root = self._snapshot()
            return {path.name: path.is_dir() for path in (root / checked_name(folder)).glob("*")}
        found: dict[str, bool] = {}
        with self._wrap_errors(folder):
            url: str | None = self._api("tree", self.commit, checked_name(folder))
            listed: set[str] = set()
            while url is not None:
                if url in listed or len(listed) == _PAGES:
                    raise StoreError(
                        f"{self.endpoint} lists {folder or 'the files'} of {self.repository} without an end "
                        f"({len(listed):,} pages so far); try again later, or take another copy of the data set"
                    )
                listed.add(url)
                try:
                    response = self._get_api(url)
                except EntryNotFoundError:
                    return {}
                found |= _entries_of(_json_of(response))
                following = response.links.get("next", {}).get("url")
                url = None if following is None else urljoin(url, following)
        return found

    def names(self, folder: str) -> list[str]:
        """Relative names of the files in a folder."""
        return sorted(f"{folder}/{name}" for name, is_folder in self.entries(folder).items() if not is_folder)

    def zarr_store(self, relative: str) -> Any:
        """A Zarr group."""
        from lpbf_data.file_access.remote_zarr import RemoteZarr  # zarr is loaded by those who use it

        return RemoteZarr(self, relative)

    @contextmanager
    def _wrap_errors(self, what: str) -> Iterator[None]:
        """Raise errors of huggingface_hub as this package's, in a sentence that says what was tried and what to do.

        The errors of its connections are left out of the traceback: the sentence names what went wrong.
        """
        subject = f"the data set {self.repository} on {self.endpoint}"
        try:
            yield
        except RepositoryNotFoundError:
            raise UsageError(
                f"no folder {self.repository} lies here, and {subject} isn't there, or isn't open to you: check the "
                "name, accept its conditions on its page, or give a token"
            ) from None
        except RevisionNotFoundError:
            raise UsageError(f"{subject} has no revision {self.revision}") from None
        except HFValidationError as error:
            raise UsageError(f"no folder {self.repository} lies here, and it is no hub id: {error}") from None
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise StoreError(self._unreachable(what, str(error))) from None
        except EntryNotFoundError:
            commit = self._commit or self.revision or "main"
            raise MissingFileError(f"{subject}, commit {commit}, has no {what}") from None
        except RetriesExhaustedError as error:
            if status_of(error.last) is None:
                raise UnreachableError(self._unreachable(what, error.summary)) from None
            raise UnreachableError(f"{subject}: {what} can't be read now: {error.summary}; {error.advice}") from None
        except HfHubHTTPError as error:
            raise StoreError(f"{subject}: {what} can't be read: {error}") from None
        except httpx2.HTTPError as error:
            raise UnreachableError(self._unreachable(what, f"{type(error).__name__}: {error}")) from None

    def _unreachable(self, what: str, reason: str) -> str:
        tried = "offline mode is on" if self.offline else f"{self.endpoint} can't be reached ({reason})"
        return (
            f"{what} of the data set {self.repository} is needed: {tried}, and huggingface_hub's cache "
            f"{self.cache_dir or constants.HF_HUB_CACHE} doesn't have it. Where there is a network, "
            f"`hf download {self.repository} --repo-type dataset --local-dir lpbf` makes a local copy: load that folder"
        )


def _is_transient(error: Exception) -> bool:
    """Whether a retry may succeed: the server was busy, or the connection failed."""
    return isinstance(error, httpx2.TransportError) or status_of(error) in TRANSIENT_STATUSES


def _json_of(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        url = urlsplit(str(response.url))
        raise StoreError(
            f"{url.scheme}://{url.netloc} answers with something that isn't JSON; is it a Hugging Face hub?"
        ) from error


def _entries_of(tree: Any) -> dict[str, bool]:
    """Names, and whether each is a folder, of what the hub's API lists.

    Raises:
        StoreError: If it lists something else.
    """
    try:
        return {str(entry["path"]).rpartition("/")[2]: entry["type"] == "directory" for entry in tree}
    except (KeyError, TypeError) as error:
        raise StoreError(f"the hub lists files in a way that isn't known ({error})") from error
