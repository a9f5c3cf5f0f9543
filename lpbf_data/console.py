"""Output of commands: the console, progress, and substitutes for characters that the output's encoding lacks.

Text appears as it is: no markup, emoji or highlighting is read into paths, ids and messages. Without a terminal,
progress is a line at each tenth of the work instead of a bar, of long work at each twentieth.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

from lpbf_data.remarks import Remark, merge_remarks

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

PATIENCE: Final = 5.0
"""Seconds after which a command that answers says that it is still at work."""

_HANDLER: Final = "lpbf_data.stand_in"
_STAND_INS: Final = {
    "…": "...", "·": "*", "×": "x", "µ": "u", "μ": "u", "°": " deg", "±": "+-", "≤": "<=", "≥": ">=", "≈": "~",
    "→": "->", "←": "<-", "↔": "<->", "–": "-", "—": "-", "−": "-", "‑": "-", "‘": "'", "’": "'", "“": '"', "”": '"',
    "„": '"', "«": '"', "»": '"', "•": "*", "Σ": "Sum ", "∞": "inf", "√": "sqrt ", "\N{NO-BREAK SPACE}": " ",
    "\N{NARROW NO-BREAK SPACE}": " ", "\N{THIN SPACE}": " ", "ß": "ss", "█": "#", "✓": "ok", "✗": "x",
}  # fmt: skip
_MAX_REMARK: Final = 240
"""Characters of a remark on one line; the examples of a longer one have lines of their own."""

_LINE_EVERY: Final = 30.0
"""Seconds between lines of progress where the amount of work isn't known."""

_LONG: Final = 60.0
"""Seconds after which long work says more than each tenth: that it began, and each twentieth."""


def _stand_in(sign: str) -> str:
    """ASCII for a character; its code point where nothing is like it, so that different names stay different."""
    if sign in _STAND_INS:
        return _STAND_INS[sign]
    if "\u2500" <= sign <= "\u257f":  # box drawing
        return {"─": "-", "━": "-", "═": "-", "│": "|", "┃": "|", "║": "|"}.get(sign, "+")
    plain = unicodedata.normalize("NFKD", sign).replace("\N{FRACTION SLASH}", "/").encode("ascii", "ignore").decode()
    return plain or sign.encode("ascii", "backslashreplace").decode()


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_stand_in, error.object[error.start : error.end])), error.end


def prepare_streams() -> None:
    """Let stdout and stderr write substitutes for characters that their encoding lacks, instead of raising."""
    codecs.register_error(_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)


def open_console(*, stderr: bool = False, file: IO[str] | None = None, width: int | None = None) -> Console:
    """A console that prints text as it is and leaves the folding of long lines to the terminal.

    Args:
        stderr: Print on stderr, for errors and notes, instead of stdout.
        file: Where to print instead of both.
        width: Columns; those of the terminal by default.
    """
    from rich.console import Console

    class Unbroken(Console):
        """Drops output to a closed pipe (`| head`), so that the command goes on and writes its files."""

        def on_broken_pipe(self) -> None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)

    prepare_streams()
    return Unbroken(file=file, width=width, stderr=stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)


class Progress(Protocol):
    """What a bar and lines of progress have in common."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def update(self, n: int = 1, /) -> Any:
        """Add an amount of work that is done."""

    def set_postfix(self, **figures: Any) -> None:
        """Set the figures that are shown beside the progress."""


class ProgressLines:
    """Progress for logs: lines on stderr.

    There is a line for each tenth of the work. Of long work there is one after the first minute, and one for each
    twentieth that comes a minute or more after the last line. Where the amount of work isn't known, there is a line
    each half minute.

    Args:
        total: The amount of work; None where it isn't known.
        initial: How much was done before.
        desc: What is done.
        unit: What is counted.
        shown: Whether anything is printed.
        after: Seconds before which nothing is printed.
    """

    def __init__(
        self, total: int | None, initial: int, desc: str, unit: str, *, shown: bool, after: float = 0.0
    ) -> None:
        self.total, self.done, self.desc, self.unit = total, initial, desc, unit
        self._shown, self._after = shown, after
        self._figures: dict[str, Any] = {}
        self._started = self._said_at = time.monotonic()
        self._said = initial
        self._tenths, self._twentieths = self._shares()

    def _shares(self) -> tuple[int, int]:
        """Whole tenths and twentieths of the work that are done; 0 where its amount isn't known."""
        return (self.done * 10 // self.total, self.done * 20 // self.total) if self.total else (0, 0)

    def _is_due(self, tenths: int, twentieths: int, since_last: float) -> bool:
        """Whether there is something new to say, some seconds after the last line or the start."""
        if not self.total:
            return since_last >= _LINE_EVERY
        if tenths > self._tenths:
            return True
        is_first = self._said_at == self._started
        return since_last >= _LONG and (is_first or twentieths > self._twentieths)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self.done != self._said and time.monotonic() - self._started >= self._after:
            self._say()

    def update(self, n: int = 1, /) -> None:
        """Add an amount of work that is done; a line is printed where one is due."""
        self.done += n
        (tenths, twentieths), now = self._shares(), time.monotonic()
        if now - self._started >= self._after and self._is_due(tenths, twentieths, now - self._said_at):
            self._tenths, self._twentieths, self._said_at = tenths, twentieths, now
            self._say()

    def set_postfix(self, **figures: Any) -> None:
        """Set the figures that the next lines show."""
        self._figures = figures

    def _say(self) -> None:
        self._said = self.done
        if not self._shown or sys.stderr is None:
            return
        amount = f"{self.done:,} {self.unit}s"
        if self.total:
            amount = f"{self.done:,} of {self.total:,} {self.unit}s ({100 * self.done // self.total} %)"
        figures = "".join(f", {name} {value}" for name, value in self._figures.items())
        seconds = time.monotonic() - self._started
        say(f"{self.desc}: {amount} after {seconds:,.0f} s{figures}")


def progress(
    total: int | None, desc: str, unit: str, *, initial: int = 0, shown: bool = True, after: float = 0.0
) -> Progress:
    """Progress of a piece of work: a bar on a terminal, lines elsewhere (`ProgressLines`).

    Args:
        total: The amount of work; None where it isn't known.
        desc: What is done.
        unit: What is counted, in the singular.
        initial: How much was done before.
        shown: Whether anything is printed.
        after: Seconds before which nothing is printed.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return ProgressLines(total, initial, desc, unit, shown=shown, after=after)
    from tqdm import tqdm

    bar: Progress = tqdm(total=total, initial=initial, desc=desc, unit=unit, disable=not shown, delay=after)
    return bar


def follow(things: Iterable[T], total: int | None, desc: str, unit: str, *, after: float = 0.0) -> Iterator[T]:
    """The same things one by one, with progress.

    Args:
        things: What is worked on.
        total: How many there are; None where it isn't known.
        desc: What is done.
        unit: What is counted, in the singular.
        after: Seconds before which nothing is printed.
    """
    with progress(total, desc, unit, after=after) as shown:
        for thing in things:
            yield thing
            shown.update()


@contextlib.contextmanager
def say_while_waiting(desc: str, *, after: float = PATIENCE) -> Iterator[None]:
    """Say on stderr that one piece of work goes on, and how long so far, for a block that can't count what it does.

    Args:
        desc: What is done.
        after: Seconds until the first line; each further one comes when the time has doubled, or after a minute.
    """
    ended, started = threading.Event(), time.monotonic()

    def tell() -> None:
        pause = after
        while not ended.wait(pause):
            pause = time.monotonic() - started
            say(f"{desc}: {pause:,.0f} s so far")
            pause = min(pause, _LONG)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def print_remarks(remarks: Iterable[Remark], console: Console) -> None:
    """Print what was left out, changed, guessed or repaired, as every command does when it is done.

    Each kind is one line; where that would be very long, its examples follow on indented lines of their own.

    Args:
        remarks: What was remarked; equal ones are printed once, with the number of occurrences.
        console: Where to print.
    """
    for remark in merge_remarks(remarks):
        lines = [f"note: {remark.with_count}"]
        if len(lines[0]) > _MAX_REMARK and remark.examples:
            more = ("…",) if remark.count > len(remark.examples) else ()
            lines = [
                f"note: {replace(remark, examples=()).with_count}:",
                *(f"  {one}" for one in remark.examples + more),
            ]
        for line in lines:
            console.print(line, style=None)


def say(sentence: str) -> None:
    """Print a sentence on stderr as it is."""
    prepare_streams()
    print(sentence, file=sys.stderr, flush=True)
