"""Tasks for a separate process, in a module of their own, so that it imports little each time it is started."""

from __future__ import annotations

import os

from lpbf_data.errors import CaseError, FailureReason


def double_or_end(number: int) -> int:
    """Twice a number; but 3 ends the process, and 4 raises."""
    if number == 3:
        os._exit(9)
    if number == 4:
        raise CaseError(FailureReason.MISSING_FILE, "four is gone", path="4")
    print("what a task prints is no answer")
    return 2 * number
