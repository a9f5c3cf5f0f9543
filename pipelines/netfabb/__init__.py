"""What NetFabb leaves behind, as a case: its result files, the solver's log, the points of a build.

NetFabb's conventions are kept here: names, units, order of tensor components, what a log says of success.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`NetfabbRun`, which scripts for earlier versions import from here."""
    if name == "NetfabbRun":
        from pipelines.netfabb.run import NetfabbRun

        return NetfabbRun
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
