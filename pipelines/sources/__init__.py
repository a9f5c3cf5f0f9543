"""Where results come from: finding cases in folders, archives and object stores, and opening their files.

It tells which files belong to which case, and ignores hidden ones; it doesn't read what is in them.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`find_cases`, which scripts for earlier versions import from here."""
    if name == "find_cases":
        from pipelines.sources.finding import find_cases

        return find_cases
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
