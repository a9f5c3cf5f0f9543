"""Numbers as Fortran prints them: `1.0D-02` in double precision, `1.2-101` where the exponent has three digits."""

from __future__ import annotations

import re
from typing import Final

_FORTRAN: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[dDqQeE]([+-]?\d+)|([+-]\d{3}))?")
_EXPONENTS: Final = re.compile(rb"(?<=[0-9.])(?:[dDqQ](?=[+-]?[0-9])|(?=[+-][0-9]{3}(?![0-9.])))")


def parse_number(text: str) -> float:
    """A number, in the usual way or as Fortran prints it.

    Raises:
        ValueError: If it is none.

    >>> parse_number("1.0D-02"), parse_number("-1.2-101"), parse_number("3")
    (0.01, -1.2e-101, 3.0)
    """
    try:
        if "_" in text:  # which Python skips between digits
            raise ValueError(f"{text!r} is no number")
        return float(text)
    except ValueError:
        match = _FORTRAN.fullmatch(text.strip())
        if match is None:
            raise
        return float(f"{match[1]}E{match[2] or match[3] or 0}")


def with_usual_exponents(text: bytes) -> bytes:
    """Text whose numbers have exponents with an E.

    >>> with_usual_exponents(b"1.0D-02 1.2-101 -5.E+00")
    b'1.0E-02 1.2E-101 -5.E+00'
    """
    return _EXPONENTS.sub(b"E", text)
