"""Colours of fields: palettes of matplotlib, the same in the 3D view and in pictures."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SIGNED_PALETTE: Final = "coolwarm"
"""For fields with a meaningful zero: its colour is neutral."""

PLAIN_PALETTE: Final = "viridis"
"""For every other field; equal steps look equal, to colour-blind eyes too."""


def palette(name: str) -> NDArray[np.uint8]:
    """256 colours of a palette of matplotlib, [256, 3]."""
    import matplotlib as mpl

    colours = mpl.colormaps[name](np.linspace(0, 1, 256))[:, :3]
    rounded: NDArray[np.uint8] = np.rint(np.asarray(colours) * 255).astype(np.uint8)
    return rounded
