"""The server of the local page, in a process of its own."""

from __future__ import annotations

import http.client
import os
import re
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.forked import SECONDS, Program, command


def _serve(temporary: str, *words: str) -> None:
    tempfile.tempdir = temporary  # Python chose this folder before the process was forked
    command("flare_model.serve", *words)


class Server:
    """A server that predicts with a checkpoint, on a free port, until the end of the `with` block.

    Args:
        model: The checkpoint.
        folder: Its working folder; its temporary files are in a folder below.
        words: More arguments of the command.
    """

    def __init__(self, model: Path, folder: Path, *words: str) -> None:
        self.folder = folder / "temporary"
        self.folder.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name != "HOME"}
        asked = ("--port", "0", "--checkpoint", str(model), *words)
        self.program = Program(
            _serve, folder / "said.txt", str(self.folder), *asked, environment=environment, folder=folder
        )  # fmt: skip

    def __enter__(self) -> Self:
        limit = time.monotonic() + SECONDS
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/ shows the page", self.program.text())):
            assert self.program.running(), self.program.text()
            assert time.monotonic() < limit, self.program.text()
            time.sleep(0.02)
        self.port = int(found[1])
        assert len([*self.folder.glob("lpbf-serve-*")]) == 1
        self.address = f"http://127.0.0.1:{self.port}/"
        return self

    def __exit__(self, *_: object) -> None:
        if self.program.running():
            self.program.send(signal.SIGTERM)
        self.program.end(60)

    def send(
        self, path: str, body: bytes | None = None, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, f"/{path}", body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def uploads(self) -> list[Path]:
        """Files in its folder of uploads, without the lock."""
        return [path for path in self.folder.glob("lpbf-serve-*/*") if path.name != "in_use.lock"]
