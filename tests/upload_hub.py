"""A small Hugging Face hub on the loopback interface that accepts uploads: as much of it as publishing needs."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class UploadHub:
    """State of the hub, which tests read and change: uploaded files and blobs, and faults.

    Attributes:
        files: Path to content of all committed files.
        deleted: Paths that commits deleted.
        sent: Uploaded blobs by SHA-256.
        times_sent: How often each blob was uploaded, by SHA-256.
        fail_blobs: Number of next uploads of blobs that are answered by closing the connection.
        take_blobs: Number of blobs after which further ones are refused.
        refuse: Whether every request is refused for lack of rights.
        cards: Data set cards that clients sent to be validated.
        commits: Number of commits.
        url: Address of the hub.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.deleted: list[str] = []
        self.sent: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.times_sent: dict[str, int] = {}
        self.fail_blobs = 0
        self.take_blobs = 1_000_000
        self.refuse = False
        self.cards: list[str] = []
        self.commits = 0
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON answer of a request."""
        if self.refuse:
            return 403, {"error": "you may not write here"}
        if path.startswith("/api/repos/create"):
            return 200, {"url": f"{self.url}/datasets/u/lpbf", "name": "u/lpbf"}
        if path.startswith("/api/validate-yaml"):
            self.cards.append(json.loads(body)["content"])
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] > 5000 else "regular"} for f in asked]
            return 200, {"files": [mode | {"shouldIgnore": False} for mode in modes]}
        if path.endswith("/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._blob(o) for o in json.loads(body)["objects"]]}
        if path.startswith("/put/"):
            digest = hashlib.sha256(body).hexdigest()
            assert path == f"/put/{digest}"
            with self._lock:
                if len(self.sent) >= self.take_blobs:
                    return 403, {"error": "no more today"}
                self.times_sent[digest] = self.times_sent.get(digest, 0) + 1
                self.sent[digest] = body
            return 200, {}
        if "/commit/" in path:
            self._commit(body)
            return 200, {"commitUrl": f"{self.url}/datasets/u/lpbf/commit/1", "commitOid": "a" * 40, "success": True}
        if "/tree/" in path:
            return 200, [{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in self.files.items()]
        if "/revision/" in path or path.startswith("/api/datasets/"):
            return 200, {"id": "u/lpbf", "sha": "b" * 40, "siblings": [{"rfilename": p} for p in self.files]}
        return 200, {}

    def _blob(self, asked: dict[str, Any]) -> dict[str, Any]:
        blob = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] in self.sent:
            return blob  # no action: the hub has it
        actions = {kind: {"href": f"{self.url}/{verb}/{asked['oid']}", "header": {}} for kind, verb in
                   (("upload", "put"), ("verify", "verify"))}  # fmt: skip
        return blob | {"actions": actions}

    def _commit(self, body: bytes) -> None:
        self.commits += 1
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.files[value["path"]] = self.sent[value["oid"]]
            elif operation["key"] == "deletedFile":
                self.deleted.append(value["path"])
                self.files.pop(value["path"], None)


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """Serve a hub until the block ends."""
    hub = UploadHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.path.startswith("/put/") and hub.fail_blobs > 0:
                hub.fail_blobs -= 1
                self.close_connection = True
                self.connection.close()
                return
            status, answer = hub.answer(self.command, self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = _serve  # noqa: N815 (names that the server looks for)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
