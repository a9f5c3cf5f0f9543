"""Several parts in one batch, joined along the points without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class RaggedBatch:
    """Cases joined along their points.

    Attributes:
        pos: Points in mm, [ΣN, 3].
        y: Target, [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1] int64.
        case_ids: Case ids.
        fields: Further fields, [ΣN, components].
    """

    pos: Tensor
    y: Tensor
    offsets: Tensor
    case_ids: tuple[str, ...]
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case_ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> RaggedBatch:
        """The same batch on another device."""
        moved = {name: values.to(device, non_blocking=non_blocking) for name, values in self.fields.items()}
        pos, y, offsets = (t.to(device, non_blocking=non_blocking) for t in (self.pos, self.y, self.offsets))
        return RaggedBatch(pos, y, offsets, self.case_ids, moved)

    def pin_memory(self) -> RaggedBatch:
        """The same batch in page-locked memory; a DataLoader calls it."""
        pinned = {name: values.pin_memory() for name, values in self.fields.items()}
        return RaggedBatch(self.pos.pin_memory(), self.y.pin_memory(), self.offsets.pin_memory(), self.case_ids, pinned)


def collate_ragged(samples: Sequence[Mapping[str, object]]) -> RaggedBatch:
    """Join samples in the format "torch".

    Args:
        samples: Dicts of tensors, as `load_dataset(…, format="torch")` gives them.
    """

    def join(name: str) -> Tensor:
        return torch.cat([sample[name] for sample in samples])  # type: ignore[misc]

    sizes = [len(sample["pos"]) for sample in samples]  # type: ignore[arg-type]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    apart = ("pos", "y", "case_id", "cells", "edge_index")
    fields = {name: join(name) for name in samples[0] if name not in apart}
    return RaggedBatch(join("pos"), join("y"), offsets, tuple(str(s["case_id"]) for s in samples), fields)
