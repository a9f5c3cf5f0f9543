"""The published import path of [lpbf_data.serving.transforms][lpbf_data.serving.transforms]."""

from __future__ import annotations

from lpbf_data.serving.transforms import (
    BUILD_VOLUME,
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
