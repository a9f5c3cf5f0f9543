"""How large the gallery of a report is; light, since the command line names it."""

from __future__ import annotations

from typing import Final

MAX_PARTS: Final = 300
"""Parts in the gallery unless asked otherwise."""
