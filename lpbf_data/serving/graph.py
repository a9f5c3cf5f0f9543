"""A case and a data set in the types of PyTorch Geometric (PyG)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data._utils.collate import default_collate_fn_map
from torch_geometric.data import Batch, Data, Dataset

from lpbf_data.serving.datasets import CaseDataset
from lpbf_data.serving.samples import CaseSamples


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


def _collate_cases(cases: Sequence[CaseData], **_: Any) -> Any:
    return Batch.from_data_list(list(cases))


# With this PyTorch's own DataLoader joins cases as PyG's does (documented as option 2 at `default_collate`).
default_collate_fn_map[CaseData] = _collate_cases


class GraphDataset(CaseDataset, Dataset):  # type: ignore[misc]
    """A split with random access that PyG's own tools take as one of theirs.

    Args:
        samples: The cases.
        seed: Seed of random transforms.
    """

    def __init__(self, samples: CaseSamples, seed: int = 0) -> None:
        Dataset.__init__(self, root=None, transform=None)
        CaseDataset.__init__(self, samples, seed)

    def len(self) -> int:
        """Number of cases."""
        return len(self.samples)

    def __getitem__(self, idx: Any) -> Any:
        """A sample, on which what stands in `transform` was called; or the data set of some of the cases.

        Raises:
            IndexError: If there is no such case.
        """
        found = super().__getitem__(idx)
        return found if self.transform is None or isinstance(found, CaseDataset) else self.transform(found)
