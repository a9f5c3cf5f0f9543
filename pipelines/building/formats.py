"""Forms that a data set is stored in; known to the command line without what reads and writes them."""

from __future__ import annotations

from typing import Final

FORMATS: Final = ("parquet", "zarr")
