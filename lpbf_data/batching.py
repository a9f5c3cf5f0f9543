"""A published import path of [lpbf_data.serving.collating][lpbf_data.serving.collating], for programs that name it.

New programs write `from lpbf_data import collate_ragged`.
"""

from __future__ import annotations

from lpbf_data.serving.collating import (
    RaggedBatch,
    SharedMemoryError,
    collate_pyg,
    collate_ragged,
    join_ragged,
)

__all__ = [
    "RaggedBatch",
    "SharedMemoryError",
    "collate_pyg",
    "collate_ragged",
    "join_ragged",
]
