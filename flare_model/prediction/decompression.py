"""Limits on decompression of mesh files: compressed VTU and HDF5 can expand to a thousand times their size."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import meshio.vtu._vtu as meshio_vtu

from lpbf_data.errors import StoreError

MAX_EXPANSION: Final = 256 * 2**20
"""Bytes that a file may expand to in addition to ten times its size."""

_HDF_NAME: Final = re.compile(rb"([^<>:\"'\s]+):/")


def check_hdf(path: Path) -> None:
    """Check the HDF5 files that an XDMF file names.

    Args:
        path: The XDMF file.

    Raises:
        StoreError: If their arrays are larger than ten times the files and a bound.
        OSError: If one isn't there or isn't HDF5.
    """
    import h5py

    total, size = 0, path.stat().st_size
    names = {found.decode("utf-8", "replace") for found in _HDF_NAME.findall(path.read_bytes())}
    for file in sorted(path.parent / name for name in names):
        if not file.is_file():
            continue  # an address, or missing: meshio says so
        size += file.stat().st_size
        with h5py.File(file, "r") as opened:
            arrays: list[int] = []
            opened.visititems(lambda _, item, found=arrays: found.append(getattr(item, "nbytes", 0)))
            total += sum(arrays)
    if total > 10 * size + MAX_EXPANSION:
        raise StoreError(f"{path} unfolds to {total / 2**20:,.0f} MiB; at most ten times its size and 256 MiB are read")


@contextmanager
def bounded_vtu(path: Path) -> Iterator[None]:
    """Let meshio decompress the arrays of a VTU file up to a bound.

    Args:
        path: The file.

    Raises:
        StoreError: If it expands to more than ten times its size and a bound.
    """
    left = [10 * path.stat().st_size + MAX_EXPANSION]

    def bounded(decompressor: Any, data: bytes) -> bytes:
        decompressed: bytes = decompressor.decompress(data, left[0] + 1)
        left[0] -= len(decompressed)
        if left[0] < 0:
            raise StoreError(f"{path} unfolds to more than ten times its size and 256 MiB; save it without compression")
        return decompressed

    before = meshio_vtu.zlib, meshio_vtu.lzma
    lzma = before[1]
    meshio_vtu.zlib = SimpleNamespace(decompress=lambda data: bounded(zlib.decompressobj(), data))
    if lzma is not None:
        meshio_vtu.lzma = SimpleNamespace(decompress=lambda data: bounded(lzma.LZMADecompressor(), data))
    try:
        yield
    finally:
        meshio_vtu.zlib, meshio_vtu.lzma = before
