"""How the simulator names itself in what it writes, so that nobody takes its results for NetFabb's."""

from __future__ import annotations

import importlib.metadata
from typing import Final

VERSION: Final = importlib.metadata.version("lpbf-flare")

GENERATOR: Final = f"lpbf-flare simulate {VERSION}"
"""In file descriptions and in a line of its own in every log."""

OWN_SOLVER: Final = "-lpbf"
"""How the solver version of a run ends that this project simulated."""

SOLVER_VERSION: Final = f"{VERSION}{OWN_SOLVER}"
"""In the place of NetFabb's version, from where it gets into manifests and cards."""
