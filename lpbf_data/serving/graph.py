"""`Case` to `torch_geometric.data.Data`: the only place where mesh terms become `pos`, `edge_index` and `y`."""

from __future__ import annotations

from typing import Any

from torch_geometric.data import Data

from lpbf_data.case.case import Case
from lpbf_data.case.schema import FIELDS
from lpbf_data.reading.tensors import as_tensors, tensor_arrays
from lpbf_data.stores.selection import TARGET_FIELD, Selection, arrays_of_case


def case_to_tensors(case: Case, *, edges: bool = False, cells: bool = True) -> dict[str, Any]:
    """A case as tensors, named as in PyG.

    Args:
        case: The case.
        edges: Derive `edge_index` from the cells.
        cells: Give the cells.

    Returns:
        `pos` [N, 3] in mm; `y` [N, 1], the Z displacement in mm, where displacement is there; every field of the case,
        [N, components]; `cells` [E, 8] int64; `edge_index` [2, num_edges] int64; `case_id`.
    """
    fields = tuple(FIELDS[name] for name in case.fields)
    selection = Selection(fields, target=TARGET_FIELD in case.fields, cells=cells, edges=edges)
    return {**as_tensors(tensor_arrays(arrays_of_case(case, selection))), "case_id": case.case_id}


class CaseData(Data):  # type: ignore[misc]
    """One case as PyG data; batching shifts `cells` as it shifts `edge_index`."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """How much an attribute grows from case to case in a batch."""
        if key == "point_index":  # numbers of points in the whole part, of which a subset was drawn: they name no node
            return 0
        return self.num_nodes if key == "cells" else super().__inc__(key, value, *args, **kwargs)

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Along which dimension an attribute is joined in a batch."""
        return 0 if key in ("cells", "point_index") else super().__cat_dim__(key, value, *args, **kwargs)


def case_to_data(case: Case, *, edges: bool = False, cells: bool = True) -> CaseData:
    """A case as PyG data; see `case_to_tensors`."""
    return CaseData(**case_to_tensors(case, edges=edges, cells=cells))
