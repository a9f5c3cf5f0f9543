"""Builds that start without importing anything: each is forked from a process that has imported all that builds need.

A build that is killed at a random moment spends most of its short life in imports otherwise, where a kill tells
nothing. The process that forks has no threads, so that whatever it forks is as if started anew.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

STARTER = """
import json, os, signal, sys

import distributed, matplotlib.figure, pandas, pyarrow.parquet, zarr
import pipelines.build, pipelines.building.commit, pipelines.building.groups, pipelines.building.shards
import pipelines.building.stages, pipelines.reporting.documents, pipelines.reporting.gallery_pictures
import pipelines.reporting.report_page

for line in sys.stdin:
    words, said = json.loads(line)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        for number, path in enumerate((os.devnull, os.devnull, said)):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        sys.argv = ["pipelines.build", *words]
        sys.stdin = open(0, closefd=False)
        pipelines.build.main()
        sys.exit(0)
    try:
        os.setpgid(child, child)
    except (PermissionError, ProcessLookupError):  # It has done so itself, or is gone.
        pass
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Builds:
    """Runs one build after the other, each with the words of its command line."""

    def __init__(self, said: Path) -> None:
        """Start the process that forks.

        Args:
            said: Where what a build says to its standard error goes.
        """
        self.said = said
        self._starter = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._starter.kill()
        self._starter.communicate()

    def run(self, words: Sequence[str], seconds: float | None = None) -> int | None:
        """The exit status of a build; None where it, and all that it started, were killed after some seconds."""
        assert self._starter.stdin is not None
        assert self._starter.stdout is not None
        self._starter.stdin.write(json.dumps([list(words), str(self.said)]).encode() + b"\n")
        group = int(self._starter.stdout.readline())
        if select.select([self._starter.stdout], [], [], seconds)[0]:
            return int(self._starter.stdout.readline())
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._starter.stdout.readline()
        return None
