"""Reads surfaces of the 3D view as its page does; tests compare their writer and the page's own reader with it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpbf_data.viewer.surface_codec import COLUMN_BITS, COORDINATE_BITS


@dataclass(frozen=True)
class ShownSurface:
    """A surface as the page shows it.

    Attributes:
        points: Coordinates in mm, [S, 3] float64.
        faces: Quadrilaterals, counter-clockwise seen from outside, [F, 4] int64.
        columns: Column name to values at the points, [S] float64.
    """

    points: NDArray[np.float64]
    faces: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float64]]


def decode_surface(data: bytes) -> ShownSurface:
    """Read what `encode_surface` wrote, as the page does."""
    raw = zlib.decompress(data)
    (length,) = struct.unpack_from("<I", raw)
    head = json.loads(raw[4 : 4 + length])
    position = 4 + length

    def read(count: int, planes: int) -> NDArray[np.int64]:
        nonlocal position
        block = np.frombuffer(raw, np.uint8, count * planes, position).reshape(planes, count)
        position += count * planes
        coded = (block.astype(np.int64) << (8 * np.arange(planes))[:, None]).sum(axis=0)
        values: NDArray[np.int64] = (coded >> 1) ^ -(coded & 1)
        return values

    def rounded(entry: dict[str, Any], bits: int) -> NDArray[np.float64]:
        steps = np.cumsum(read(head["points"], entry["planes"])) / ((1 << bits) - 1)
        values: NDArray[np.float64] = entry["least"] + steps * (entry["largest"] - entry["least"])
        return values

    points = np.stack([rounded(entry, COORDINATE_BITS) for entry in head["axes"]], axis=1)
    corners = read(4 * head["faces"], head["face_planes"]).reshape(4, head["faces"])
    corners[0] = np.cumsum(corners[0])
    columns = {entry["name"]: rounded(entry, COLUMN_BITS) for entry in head["columns"]}
    return ShownSurface(points, np.cumsum(corners, axis=0).T, columns)
