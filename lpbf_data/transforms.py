"""The published import path of [lpbf_data.serving.transforms][lpbf_data.serving.transforms]."""

from __future__ import annotations

from lpbf_data.case.schema import BUILD_VOLUME
from lpbf_data.serving.transforms import (
    AddHexEdges,
    Compose,
    RandomSymmetry,
    ScalePoints,
    Standardise,
    SubsamplePoints,
)

__all__ = [
    "BUILD_VOLUME",
    "AddHexEdges",
    "Compose",
    "RandomSymmetry",
    "ScalePoints",
    "Standardise",
    "SubsamplePoints",
]
