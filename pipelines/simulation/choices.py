"""Words that options of a simulation may be, without what acts on them: the command line knows them at once."""

from __future__ import annotations

from typing import Literal

EncodingName = Literal["binary", "ascii"]
CalibrationName = Literal["measured", "netfabb"]
Naming = Literal["batch", "interactive"]
DrawName = Literal["published", "balanced"]
Results = Literal["whole", "lean"]
