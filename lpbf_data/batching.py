"""The published import path of [lpbf_data.serving.batching][lpbf_data.serving.batching]."""

from __future__ import annotations

from lpbf_data.serving.batching import (
    RaggedBatch,
    collate_pyg,
    collate_ragged,
)

__all__ = [
    "RaggedBatch",
    "collate_pyg",
    "collate_ragged",
]
