"""Data sets of laser powder bed fusion: cases, their storage formats, and data sets and loaders for training.

    >>> from lpbf_data import load_dataset, make_loader  # doctest: +SKIP
    >>> train = load_dataset("lpbf/", split="train")  # doctest: +SKIP
    >>> for batch in make_loader("lpbf/", "train", batch_size=4, shuffle=True):  # doctest: +SKIP
    ...     print(batch.pos.shape, batch.y.shape, batch.offsets)

NumPy and torch are imported with the first use of a case or a data set, not with the package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from lpbf_data.errors import CaseError, LpbfError, SchemaError, StoreError, UsageError

if TYPE_CHECKING:
    from lpbf_data.analysis import open_zarr
    from lpbf_data.case.case import Case
    from lpbf_data.serving.collating import RaggedBatch, collate_ragged
    from lpbf_data.serving.datasets import CaseDataset, CaseStream, load_dataset
    from lpbf_data.serving.loader import Loader
    from lpbf_data.serving.make_loader import make_loader
    from lpbf_data.serving.node_budget_sampler import NodeBudgetSampler

__all__ = [
    "Case",
    "CaseDataset",
    "CaseError",
    "CaseStream",
    "Loader",
    "LpbfError",
    "NodeBudgetSampler",
    "RaggedBatch",
    "SchemaError",
    "StoreError",
    "UsageError",
    "collate_ragged",
    "load_dataset",
    "make_loader",
    "open_zarr",
]

# Imported with their first use: they need NumPy, most of them torch, and open_zarr needs xarray.
_LAZY: Final = {
    "Case": "case.case",
    "CaseDataset": "serving.datasets",
    "CaseStream": "serving.datasets",
    "Loader": "serving.loader",
    "NodeBudgetSampler": "serving.node_budget_sampler",
    "RaggedBatch": "serving.collating",
    "collate_ragged": "serving.collating",
    "load_dataset": "serving.datasets",
    "make_loader": "serving.make_loader",
    "open_zarr": "analysis",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"lpbf_data.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
