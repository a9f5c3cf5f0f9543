"""A process of its own for work that may hang: where there are no workers, and the user's process must stay.

A case that hangs in native code can hold the interpreter, so that no thread of its process gets a turn; only the end of
the process ends it. The process takes pickled tasks from a pipe and is started anew when it ends; the journal of
attempts tells whose fault it was.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import IO, Any, Final, Self, TypeVar

from lpbf_data.errors import UsageError

Task = TypeVar("Task")
Result = TypeVar("Result")

MAX_ENDS: Final = 20
"""Processes that may end while they work on one task before the build gives up."""

_LOOKS: Final = 0.5  # seconds between two checks that the parent still exists
_replaceable = False


def is_replaceable() -> bool:
    """Whether this process is one that its parent starts anew when it ends."""
    return _replaceable


class CaseProcess:
    """Runs functions over tasks in one process beside this one; both must pickle."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order of the tasks.

        Args:
            function: What to do.
            tasks: One argument each.

        Raises:
            UsageError: If one process after the other ends while it works on a task.
            Exception: Whatever the function raises.
        """
        for task in tasks:
            for _ in range(MAX_ENDS):
                answer = self._ask(pickle.dumps((function, task)))
                if answer is not None:
                    break
            else:
                raise UsageError(f"{MAX_ENDS} processes ended while they worked on a task")
            done, value = answer
            if not done:
                raise value
            yield value

    def _ask(self, question: bytes) -> tuple[bool, Any] | None:
        """What the process answers; None when it ended instead."""
        if self._process is None:
            self._process = _start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, question)
            answer = _receive(process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._stop()
            return None
        result: tuple[bool, Any] = pickle.loads(answer)  # noqa: S301 (from our own process)
        return result

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()  # it may hang; what it wrote is whole, or lies aside
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _start() -> subprocess.Popen[bytes]:
    own = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", "from pipelines.building.case_process import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"PYTHONPATH": own},
    )


def _send(pipe: IO[bytes], data: bytes) -> None:
    left = memoryview(len(data).to_bytes(8, "little") + data)
    while left:
        left = left[pipe.write(left) :]


def _receive(pipe: IO[bytes]) -> bytes | None:
    """A message; None when the other side is gone."""
    size = _read(pipe, 8)
    return None if size is None else _read(pipe, int.from_bytes(size, "little"))


def _read(pipe: IO[bytes], size: int) -> bytes | None:
    pieces = bytearray()
    while len(pieces) < size:
        piece = pipe.read(min(size - len(pieces), 2**20))
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, in the middle of a task too."""
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os._exit(1)


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until there are no more questions.

    Args:
        questions: Pickled functions and tasks.
        answers: Takes whether it worked, and the result or the error.
    """
    global _replaceable  # noqa: PLW0603 (a property of the process)
    _replaceable = True
    while (question := _receive(questions)) is not None:
        function, task = pickle.loads(question)  # noqa: S301 (from our own parent)
        try:
            answer = pickle.dumps((True, function(task)))
        except Exception as error:  # noqa: BLE001 (raised again by the parent)
            answer = pickle.dumps((False, error))
        _send(answers, answer)


def main() -> None:
    """Serve the parent; interrupts of the terminal are ignored, since the parent handles them."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "getppid") and os.name == "posix":
        threading.Thread(target=_end_with, args=(os.getppid(),), name="parent", daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what tasks print doesn't get among the answers
    questions = os.fdopen(os.dup(0), "rb", buffering=0)
    serve(questions, answers)
