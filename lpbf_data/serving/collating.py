"""Several parts in one batch, joined along the points without padding."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from lpbf_data.errors import StoreError
from lpbf_data.reading.memory_pool import ARRAY_POOL

MEMORY_ADVICE: Final = "Make /dev/shm larger (docker run --shm-size=2g, or --ipc=host)"
"""What helps where shared memory is full."""

_APART: Final = frozenset({"pos", "y", "case_id", "cells", "edge_index"})


class SharedMemoryError(StoreError):
    """There is no room in shared memory for the batch that a worker sends."""


@dataclass(frozen=True)
class RaggedBatch:
    """Cases joined along their points.

    Attributes:
        pos: Points in mm, [ΣN, 3].
        y: Target, [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1] int64.
        case_ids: Case ids.
        fields: Further fields, [ΣN, components].
        cells: Connectivity, [ΣE, 8] int64, counted through the batch; None unless it was asked for.
        edge_index: Edges, [2, Σ num_edges] int64, counted through the batch; None unless they were asked for.
    """

    pos: Tensor
    y: Tensor
    offsets: Tensor
    case_ids: tuple[str, ...]
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    cells: Tensor | None = None
    edge_index: Tensor | None = None

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case_ids)

    def _map(self, change: Any) -> RaggedBatch:
        """The same batch with every tensor replaced."""
        pos, y, offsets = (change(values) for values in (self.pos, self.y, self.offsets))
        fields = {name: change(values) for name, values in self.fields.items()}
        cells, edges = (None if values is None else change(values) for values in (self.cells, self.edge_index))
        return RaggedBatch(pos, y, offsets, self.case_ids, fields, cells, edges)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> RaggedBatch:
        """The same batch on another device."""
        return self._map(lambda values: values.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RaggedBatch:
        """The same batch in page-locked memory; a DataLoader calls it."""
        return self._map(lambda values: values.pin_memory())


def collate_ragged(samples: Sequence[Any]) -> RaggedBatch:
    """Join samples along their points; in a worker of a DataLoader, in shared memory.

    Args:
        samples: Dicts of tensors, as `load_dataset(…, format="torch")` gives them, or of arrays; or PyG data.

    Raises:
        KeyError: If a sample has no points or no target.
        SharedMemoryError: If a worker finds no room in shared memory. (Found later, when the batch is sent, it
            would let the DataLoader wait for ever.)
    """
    batch = join_ragged([sample if isinstance(sample, Mapping) else sample.to_dict() for sample in samples])
    if get_worker_info() is None:
        return batch
    try:
        return batch._map(lambda values: values.share_memory_())
    except RuntimeError as error:
        raise SharedMemoryError(
            f"a worker finds no room in shared memory for the batch of {', '.join(batch.case_ids)} ({error}). "
            f"{MEMORY_ADVICE}, or use num_workers=0"
        ) from error


def join_ragged(samples: Sequence[Mapping[str, Any]]) -> RaggedBatch:
    """Join samples in the format "torch", in memory of this process.

    Args:
        samples: Dicts of tensors or of arrays.

    Raises:
        KeyError: If a sample has no points or no target.
    """
    first = samples[0]
    offsets = [0, *itertools.accumulate(len(sample["pos"]) for sample in samples)]

    def join(name: str) -> Tensor:
        return _join([sample[name] for sample in samples])

    def join_shifted(name: str, axis: int) -> Tensor:
        return _join([s[name] + start for s, start in zip(samples, offsets, strict=False)], axis)

    return RaggedBatch(
        pos=join("pos"),
        y=join("y"),
        offsets=torch.tensor(offsets),
        case_ids=tuple(str(sample["case_id"]) for sample in samples),
        fields={name: join(name) for name in first if name not in _APART},
        cells=join_shifted("cells", 0) if "cells" in first else None,
        edge_index=join_shifted("edge_index", 1) if "edge_index" in first else None,
    )


def _join(parts: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors or arrays, concatenated; always a copy."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts), dim=axis)
    return torch.from_numpy(ARRAY_POOL.join(parts, axis))


def collate_pyg(samples: Sequence[Any]) -> Any:
    """Join samples to a `torch_geometric.data.Batch`.

    Args:
        samples: Dicts of tensors, or PyG data.

    Returns:
        A batch with `batch` and `ptr`, and with indices counted through it.
    """
    from torch_geometric.data import Batch

    from lpbf_data.serving.graph import CaseData

    return Batch.from_data_list([s if isinstance(s, CaseData) else CaseData(**s) for s in samples])
