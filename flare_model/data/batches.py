"""The batches that a model is trained and judged on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flare_model.data.non_finite import describe_non_finite
from flare_model.data.point_fields import PointField, stack_fields
from flare_model.data.point_ranks import PointRanks
from lpbf_data.errors import CaseError, FailureReason
from lpbf_data.serving.collating import RaggedBatch


@dataclass(frozen=True)
class Batch:
    """Cases joined along their points, in physical units.

    Attributes:
        points: Points in mm, [ΣN, 3].
        features: Input features, [ΣN, F]; None where there are none.
        targets: Targets, [ΣN, T].
        offsets: First point of each case and the end of the last, [B + 1]; on the host, so that reading it waits for
            no device. A filled batch (`filled`) has one mesh more, which is no case.
        case_ids: Case ids.
    """

    points: Tensor
    features: Tensor | None
    targets: Tensor
    offsets: Tensor
    case_ids: tuple[str, ...]

    @classmethod
    def of(cls, ragged: RaggedBatch, targets: Sequence[PointField], features: Sequence[PointField]) -> Batch:
        """Pick targets and features from a batch of a loader.

        Raises:
            CaseError: If a coordinate, target or feature isn't finite.
        """
        fields = ragged.fields
        stacked = stack_fields(fields, features) if features else None
        batch = cls(ragged.pos, stacked, stack_fields(fields, targets), ragged.offsets.cpu(), ragged.case_ids)
        batch._check_finite(targets)
        return batch

    def _check_finite(self, targets: Sequence[PointField]) -> None:
        advice = "build the data set again from sound results"
        names = ", ".join(target.name for target in targets)
        stacked = self.targets if self.features is None else torch.cat([self.targets, self.features], dim=1)
        if bool(self.points.isfinite().all()) and bool(stacked.isfinite().all()):
            return
        for case_id, (first, last) in zip(self.case_ids, pairwise(self.offsets.tolist()), strict=True):
            for values, subject in (
                (self.points, "coordinates aren't finite numbers"),
                (stacked, f"a value of {names} or a feature is not a finite number"),
            ):
                if said := describe_non_finite(values[first:last].numpy(force=True)):
                    raise CaseError(FailureReason.NON_FINITE, f"{subject}: {said}; {advice}", case_id=case_id)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case_ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; the offsets stay on the host."""
        return self._changed(lambda values: values.to(device, non_blocking=True), self.offsets)

    def on(self, device: torch.device | str) -> Batch:
        """A copy of the batch on a device, offsets included."""
        return self._changed(lambda values: values.to(device, copy=True), self.offsets.to(device, copy=True))

    def _changed(self, change: Callable[[Tensor], Tensor], offsets: Tensor) -> Batch:
        """A batch whose values at points are changed."""
        features = None if self.features is None else change(self.features)
        return replace(
            self, points=change(self.points), features=features, targets=change(self.targets), offsets=offsets
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """All its tensors."""
        return tuple(t for t in (self.points, self.features, self.targets, self.offsets) if t is not None)

    def shared(self, ranks: PointRanks) -> Batch:
        """This process's points, where several share the points of every case; it may have none of some cases.

        Args:
            ranks: The processes that share the points.
        """
        share = ranks.share(self.offsets)
        return self._changed(share.of, share.offsets)

    def filled(self, multiple: int) -> Batch:
        """The batch with one more mesh, so that the points are a multiple of a number.

        CUDA graphs are recorded once for each size: fewer sizes, fewer graphs. The added points are a mesh of their
        own, on which by the contract no other mesh depends, and which is no case. A filled batch is returned as it is.

        Args:
            multiple: What the number of points becomes a multiple of.
        """
        if len(self.offsets) > len(self) + 1:
            return self
        extra = multiple - len(self.points) % multiple
        return self._changed(
            lambda values: torch.cat([values, values.new_zeros(extra, values.shape[1])]),
            torch.cat([self.offsets, self.offsets[-1:] + extra]),
        )


def grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Batches in groups for one step of the optimiser; the last group may be smaller."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
