"""A Hugging Face hub on this machine: as much of its HTTP interface as saving and loading a model needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "0" * 39 + "1"


class Hub(ThreadingHTTPServer):
    """Keeps files in memory: `repositories` maps a repository's id to its paths and their contents."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            return self._answer({"url": f"{self.server.url}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[match[1]][entry["value"]["path"]] = content
            url = f"{self.server.url}/{match[1]}/commit/{SHA}"
            return self._answer({"commitUrl": url, "commitOid": SHA, "success": True})
        return self._answer({"error": "not here"}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+))?", path):
            files = self.server.repositories.get(match[1])
            if files is not None and match[2] == "tree":
                entries = [
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in files.items()
                ]
                return self._answer(entries)
            if files is not None:
                siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                about = {
                    "id": match[1],
                    "modelId": match[1],
                    "sha": SHA,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
                return self._answer(about)
        if match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            content = self.server.repositories.get(match[1], {}).get(match[3])
            if content is not None:
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self._answer(content, ETag=etag, X_Repo_Commit=SHA)
            return self._answer(b"", 404, X_Error_Code="EntryNotFound")
        return self._answer(b"", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815 (the name that http.server calls)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Yield a hub that runs until the end of the `with` block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
