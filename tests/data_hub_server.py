"""A Hugging Face hub on the loopback interface, which serves folders as data set repositories, with faults on request.

It answers what `huggingface_hub` and `datasets` send to find, list and download the files of a data set: repository,
tree and paths in the API, and `resolve` with ETags, byte ranges and redirects to another server.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Request:
    """A request that the hub got."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """The hub's state, which tests read and change.

    Attributes:
        repositories: Id to revision to folder; the name "main" must be among the revisions.
        log: Requests in the order of their arrival.
        faults: Faults of the next downloads, one each: an HTTP status, "cut" (the connection breaks in the middle), or
            None.
        refusals: Part of an address to the answers to the next requests there, one each: an HTTP status and headers.
        page_size: Entries of a listing that are sent at a time.
        delay: Seconds before each answer.
        redirect: Whether downloads are redirected to another path, as the hub redirects large files to other servers.
        elsewhere: Address of that other server; empty for this one.
        expired: Number of redirected downloads that are answered by 403, as expired signed addresses are.
        token: Token without which repositories can't be found; None for public ones.
        ignore_ranges: Whether requests for byte ranges are answered with whole files.
        endless: The page that every page of a listing, also the last, names as its next: "the same page" or "another
            page"; empty for a correct listing.
        url: Address of the hub.
    """

    repositories: dict[str, dict[str, Path]]
    log: list[Request] = field(default_factory=list)
    faults: list[int | str | None] = field(default_factory=list)
    refusals: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    page_size: int = 1000
    delay: float = 0.0
    redirect: bool = False
    elsewhere: str = ""
    expired: int = 0
    token: str | None = None
    ignore_ranges: bool = False
    endless: str = ""
    url: str = ""

    def downloads(self) -> list[Request]:
        """The requests in the log that downloaded files, without those for their properties."""
        return [r for r in self.log if r.method == "GET" and ("/resolve/" in r.path or r.path.startswith("/cdn/"))]


def commit_of(repository: str, folder: Path) -> str:
    """The commit of a folder: 40 hexadecimal digits."""
    return hashlib.sha1(f"{repository}\0{folder}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub = self.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.log.append(Request(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        time.sleep(hub.delay)
        for place, answers in hub.refusals.items():
            if place in self.path and answers:
                status, headers = answers.pop(0)
                return self._send(status, b"refused", headers)
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "cdn":
            if hub.expired:
                hub.expired -= 1
                return self._send(403, b"expired")
            return self._download("/".join(parts[1:3]), parts[3], "/".join(parts[4:]), here=True)
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._error(401, "RepoNotFound")
        if parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            return self._api("/".join(parts[2:4]), parts[4:], body)
        if parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            return self._download("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), here=not hub.redirect)
        return self._error(404, "RepoNotFound")

    def _find(self, repository: str, revision: str) -> tuple[str, Path] | None:
        revisions = self.hub.repositories.get(repository)
        if revisions is None:
            self._error(404, "RepoNotFound")
            return None
        for name, folder in revisions.items():
            if revision in (name, commit_of(repository, folder)):
                return commit_of(repository, folder), folder
        self._error(404, "RevisionNotFound")
        return None

    def _api(self, repository: str, rest: list[str], body: bytes) -> None:
        verb, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        found = self._find(repository, revision)
        if found is None:
            return None
        commit, folder = found
        if verb == "revision":
            names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            info = {"_id": commit, "id": repository, "sha": commit, "private": False, "tags": [], "downloads": 0}
            return self._json(info | {"siblings": [{"rfilename": name} for name in names]})
        if verb == "tree":
            return self._tree(folder, "/".join(rest[2:]))
        if verb == "paths-info":
            asked = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
            paths = asked["paths"] if isinstance(asked["paths"], list) else [asked["paths"]]
            return self._json([_entry(folder, folder / path) for path in paths if (folder / path).exists()])
        return self._error(404, "EntryNotFound")

    def _tree(self, folder: Path, path: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        place = folder / path
        if not place.is_dir():
            return self._error(404, "EntryNotFound")
        deep = query.get("recursive", ["false"])[0].lower() == "true"
        found = [_entry(folder, p) for p in sorted(place.rglob("*") if deep else place.iterdir())]
        start, size = int(query.get("start", ["0"])[0]), self.hub.page_size
        address = f"{urlsplit(self.path).path}?start={start + size}&recursive={deep}"
        more = {"Link": f'<{self.hub.url}{address}>; rel="next"'} if start + size < len(found) else {}
        if self.hub.endless:
            address = self.path if self.hub.endless == "the same page" else address
            more = {"Link": f'<{self.hub.url}{address}>; rel="next"'}
        return self._json(found[start : start + size], more)

    def _download(self, repository: str, revision: str, name: str, *, here: bool) -> None:
        found = self._find(repository, revision)
        if found is None:
            return None
        commit, folder = found
        path = folder / name
        if not path.is_file():
            return self._error(404, "EntryNotFound", commit)
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not here:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
            return self._send(
                302, b"", headers | {"Location": f"{self.hub.elsewhere}/cdn/{repository}/{commit}/{name}"}
            )
        fault = self.hub.faults.pop(0) if self.command == "GET" and self.hub.faults else None
        if isinstance(fault, int):
            return self._send(fault, b"fault", {"Retry-After": "0"} if fault == 429 else {})
        span = self.headers.get("Range")
        if span and not self.hub.ignore_ranges:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, stop = int(first or 0), min(int(last) + 1 if last else len(data), len(data))
            if not first:  # a range of the last bytes
                start, stop = max(len(data) - int(last), 0), len(data)
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            return self._send(206, data[start:stop], headers, cut=fault == "cut")
        return self._send(200, data, headers, cut=fault == "cut")

    def _json(self, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _error(self, status: int, code: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self._send(status, code.encode(), headers | ({"X-Repo-Commit": commit} if commit else {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    oid = hashlib.sha1(name.encode()).hexdigest()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": oid, "size": 0}
    return {"type": "file", "path": name, "oid": oid, "size": path.stat().st_size}


@contextmanager
def serve_hub(repositories: dict[str, dict[str, Path]]) -> Iterator[Hub]:
    """Serve repositories until the block ends."""
    hub = Hub(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
