"""What a simulated part is, how it lies on disk, and how it is served.

    >>> from lpbf_data import load_dataset  # doctest: +SKIP
    >>> train = load_dataset("lpbf/", split="train")  # doctest: +SKIP

torch is loaded with the first use of a data set, not with the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lpbf_data.case import Case
from lpbf_data.errors import CaseError, LpbfError, SchemaError, StoreError, UsageError

if TYPE_CHECKING:
    from lpbf_data.datasets import CaseDataset, CaseStream, load_dataset

__all__ = [
    "Case",
    "CaseDataset",
    "CaseError",
    "CaseStream",
    "LpbfError",
    "SchemaError",
    "StoreError",
    "UsageError",
    "load_dataset",
]

_NEEDS_TORCH = ("CaseDataset", "CaseStream", "load_dataset")


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        from lpbf_data import datasets

        return getattr(datasets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
