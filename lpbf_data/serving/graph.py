"""A case as PyTorch Geometric takes it."""

from __future__ import annotations

from typing import Any

from torch_geometric.data import Data


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
