"""`Case` to `torch_geometric.data.Data`: the only place where mesh terms become `pos`, `edge_index` and `y`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from lpbf_data.case import Case
from lpbf_data.mesh import hex_edges

TARGET_FIELD = "displacement"


def case_to_tensors(case: Case, *, edges: bool = False, cells: bool = True) -> dict[str, Any]:
    """A case as tensors, named as in PyG.

    Args:
        case: The case.
        edges: Derive `edge_index` from the cells.
        cells: Give the cells.

    Returns:
        `pos` [N, 3] in mm; `y` [N, 1], the Z displacement in mm, where displacement is there; every field of the case,
        [N, components]; `cells` [E, 8]; `edge_index` [2, num_edges]; `case_id`.
    """
    tensors: dict[str, Any] = {"pos": _tensor(case.points)}
    if TARGET_FIELD in case.fields:
        tensors["y"] = _tensor(case.fields[TARGET_FIELD][:, 2:3])
    for name, values in case.fields.items():
        tensors[name] = _tensor(values.reshape(len(values), -1))
    if cells:
        tensors["cells"] = _tensor(case.cells).long()
    if edges:
        tensors["edge_index"] = torch.from_numpy(hex_edges(case.cells))
    tensors["case_id"] = case.case_id
    return tensors


def _tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
    # Arrays read from shards are read-only views; a tensor must own what it may write to.
    return torch.from_numpy(np.array(values, order="C"))


class CaseData(Data):  # type: ignore[misc]
    """One case as PyG data; batching shifts `cells` as it shifts `edge_index`."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """How much an attribute grows from case to case in a batch."""
        return self.num_nodes if key == "cells" else super().__inc__(key, value, *args, **kwargs)

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Along which dimension an attribute is joined in a batch."""
        return 0 if key == "cells" else super().__cat_dim__(key, value, *args, **kwargs)


def case_to_data(case: Case, *, edges: bool = False, cells: bool = True) -> CaseData:
    """A case as PyG data; see `case_to_tensors`."""
    return CaseData(**case_to_tensors(case, edges=edges, cells=cells))
