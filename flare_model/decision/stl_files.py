"""Surfaces as binary STL files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from lpbf_data.durable import write_durably
from lpbf_data.geometry.closed_surface import Surface

_RECORD: Final = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def write_stl(path: Path, surface: Surface) -> None:
    """Write a surface in mm; the file appears whole.

    Args:
        path: The file.
        surface: The surface.
    """
    corners = surface.vertices[surface.triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    records = np.zeros(len(corners), _RECORD)
    records["normal"] = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    records["corners"] = corners
    head = b"lengths in mm".ljust(80, b" ") + np.uint32(len(corners)).tobytes()
    write_durably(path, head + records.tobytes())
