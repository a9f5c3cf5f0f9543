"""A part's surface with its fields in few bytes, for the page that shows it in 3D.

Numbers are rounded to a grid between their least and largest value, stored as differences of neighbours (small numbers,
zigzag-coded), laid out as one plane a byte, and deflated, which every browser inflates:

    deflate( length of the head (u32) | head (JSON) | planes of x, y, z | planes of the faces | planes of each column )

The page's reader is `assets/page/surface.js`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

COORDINATE_BITS: Final = 16
"""A thousandth of a millimetre on 60 mm."""

COLUMN_BITS: Final = 12
"""Colours have eight; the value under the cursor is right to a 4,000th of the range."""


def _round(values: NDArray[np.floating[Any]], bits: int) -> tuple[NDArray[np.int64], float, float]:
    """Values as numbers of 2**bits steps, and the values of the first and of the last step."""
    wide = values.astype(np.float64)
    least, largest = float(wide.min()), float(wide.max())
    span = largest - least or 1.0
    return np.rint((wide - least) / span * ((1 << bits) - 1)).astype(np.int64), least, largest


def _planes(differences: NDArray[np.int64]) -> tuple[int, bytes]:
    """Zigzag-coded numbers as planes of bytes, the lowest first; and how many planes."""
    coded = (differences << 1) ^ (differences >> 63)
    count = max(1, (int(coded.max(initial=0)).bit_length() + 7) // 8)
    return count, b"".join((coded >> 8 * i & 255).astype(np.uint8).tobytes() for i in range(count))


def _differences(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.diff(values, prepend=0)


def _face_differences(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """First corner against that of the face before, every other corner against the one before it, [4 F]."""
    return np.concatenate([_differences(faces[:, 0]), *(faces[:, i] - faces[:, i - 1] for i in (1, 2, 3))])


def encode_surface(
    points: NDArray[np.floating[Any]],
    faces: NDArray[np.int64],
    columns: Mapping[str, NDArray[np.floating[Any]]],
) -> bytes:
    """Write a surface.

    Args:
        points: Coordinates in mm, [S, 3].
        faces: Quadrilaterals, [F, 4].
        columns: Column name to values at the points, [S].
    """
    head: dict[str, Any] = {"points": len(points), "faces": len(faces), "axes": [], "columns": []}
    body: list[bytes] = []
    for axis in range(3):
        steps, least, largest = _round(points[:, axis], COORDINATE_BITS)
        count, data = _planes(_differences(steps))
        head["axes"].append({"least": least, "largest": largest, "planes": count})
        body.append(data)
    head["face_planes"], data = _planes(_face_differences(faces))
    body.append(data)
    for name, values in columns.items():
        steps, least, largest = _round(values, COLUMN_BITS)
        count, data = _planes(_differences(steps))
        head["columns"].append({"name": name, "least": least, "largest": largest, "planes": count})
        body.append(data)
    text = json.dumps(head, separators=(",", ":")).encode()
    # Level 9 takes six times as long for half a percent.
    return zlib.compress(struct.pack("<I", len(text)) + text + b"".join(body), 6)
