"""All cases of a split kept on the device: batches are gathered and turned there, and no step waits for the host.

The batches are the same as the loader's, number for number: same order, same position, same random symmetries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.data.point_fields import PointField
from flare_model.data.splits import Split
from flare_model.training.settings import Settings
from lpbf_data.errors import UsageError
from lpbf_data.serving.batch_source import BatchRequest
from lpbf_data.serving.collating import join_ragged
from lpbf_data.serving.transforms import RandomSymmetry

_SYMMETRIES = 8
"""Symmetries of a square build plate: mirrored along x or not, along y or not, x and y exchanged or not."""


class ResidentCases:
    """All cases of a split on a device.

    Args:
        split: The split; its values are read once.
        targets: What is predicted.
        features: Input features.
        device: Where they are kept: 4 bytes for each number of each point.
        seed: Seed of the random symmetries, the same as the loader's.
        symmetries: Show each case under one of the symmetries of a square build plate, drawn as the loader draws.

    Raises:
        UsageError: If the device has no room.
        CaseError: If a value isn't finite.
        StoreError: If a case can't be read.
    """

    def __init__(
        self,
        split: Split,
        targets: Sequence[PointField],
        features: Sequence[PointField],
        device: torch.device,
        *,
        seed: int,
        symmetries: bool,
    ) -> None:
        self._samples, self._seed, self._symmetries = split.dataset.samples, seed, symmetries
        self._num_features, self._device = sum(f.width for f in features), device
        self._coordinates = 3 if split.point_schema is None else len(split.point_schema.coordinates)
        self._fields = list(dict.fromkeys(["pos", *(target.field for target in (*features, *targets))]))
        sizes = np.asarray(self._samples.sizes, dtype=np.int64)
        self._sizes, self._starts = sizes, np.concatenate([[0], np.cumsum(sizes)[:-1]])
        try:
            self._values = self._read(targets, features)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"the device has no room for the {int(sizes.sum()):,} points of the split {split.name}; leave out "
                "--resident"
            ) from error
        self._sources, self._signs = self._symmetry_tables(targets, features)

    @classmethod
    def of(cls, split: Split, settings: Settings, device: torch.device, *, symmetries: bool = False) -> ResidentCases:
        """The cases of a split for a run.

        Args:
            split: The split.
            settings: Settings of the run: its targets, features and seed.
            device: Where the cases are kept.
            symmetries: As above.

        Raises:
            UsageError: As above.
        """
        return cls(split, settings.targets, settings.features, device, seed=settings.seed, symmetries=symmetries)

    def _read(self, targets: Sequence[PointField], features: Sequence[PointField]) -> Tensor:
        """Every number of every point, [ΣN, K], on the device."""
        first = self._samples.view(0)
        self._widths = {name: first[name].reshape(len(first["pos"]), -1).shape[1] for name in self._fields}
        rows = np.empty((int(self._sizes.sum()), sum(self._widths.values())), np.float32)
        for index, (start, size) in enumerate(zip(self._starts, self._sizes, strict=True)):
            view = self._samples.view(index)
            row, column = rows[start : start + size], 0
            for name, width in self._widths.items():
                row[:, column : column + width] = view[name].reshape(size, width)
                column += width
            if index == 0 or not np.isfinite(row).all():
                Batch.of(join_ragged([{"y": view["pos"], **view}]), targets, features)  # It says what isn't finite.
        return torch.from_numpy(rows).to(self._device)

    def _symmetry_tables(self, targets: Sequence[PointField], features: Sequence[PointField]) -> tuple[Tensor, Tensor]:
        """For each symmetry the source column and the sign of every number of a point, both [8, d + F + T].

        Without symmetries they are [1, d + F + T], the identity.
        """
        last = np.cumsum(list(self._widths.values())).tolist()
        numbers = {
            name: torch.arange(end - width, end) for (name, width), end in zip(self._widths.items(), last, strict=True)
        }
        columns = [(f.field, c) for f in (*features, *targets) for c in f.components]
        sources, signs = [], []
        if not self._symmetries:
            identity = torch.stack([*numbers["pos"], *(numbers[name][c] for name, c in columns)])[None]
            return identity.to(self._device), torch.ones_like(identity, dtype=torch.float32).to(self._device)
        for number in range(_SYMMETRIES):
            # Each number from 1 on shows where its column went, and by its sign whether it was mirrored.
            probe: dict[str, Any] = {name: 1.0 + of[None] for name, of in numbers.items()}
            turned = RandomSymmetry().apply(
                probe, mirror_x=bool(number & 1), mirror_y=bool(number & 2), exchange=bool(number & 4)
            )
            picked = torch.stack([*turned["pos"][0], *(turned[name][0, c] for name, c in columns)])
            sources.append(picked.abs().round().long() - 1)
            signs.append(picked.sign())
        return torch.stack(sources).to(self._device), torch.stack(signs).to(self._device)

    def batch(self, request: BatchRequest) -> Batch:
        """The batch that the loader would return.

        Args:
            request: Which cases, in which epoch.
        """
        cases = np.array(request.cases)
        sizes = self._sizes[cases]
        offsets = np.zeros(len(cases) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        values = self._gather(sizes, self._starts[cases] - offsets[:-1], self._drawn_for(request.epoch, cases))
        widths = [self._coordinates, self._num_features, values.shape[1] - self._coordinates - self._num_features]
        points, features, truth = torch.split(values, widths, dim=1)
        names = tuple(map(self._samples.case_id, request.cases))
        return Batch(points, features if self._num_features else None, truth, torch.from_numpy(offsets), names)

    def _gather(self, sizes: NDArray[np.int64], shifts: NDArray[np.int64], drawn: NDArray[np.int64] | None) -> Tensor:
        """The numbers of the points of some cases, turned, [n, d + F + T].

        Args:
            sizes: Points of each case.
            shifts: From the rows of each case in the result to its rows among all.
            drawn: Numbers of the symmetries; None where cases stay as they are.
        """
        # One small copy to the device: a larger one would wait for the steps that are still computed.
        rows = [sizes, shifts, *([] if drawn is None else [drawn])]
        packed = torch.from_numpy(np.stack(rows)).to(self._device, non_blocking=True)
        count = int(sizes.sum())
        of_points = packed[1:, torch.repeat_interleave(packed[0], output_size=count)]
        taken = self._values[torch.arange(count, device=self._device).add_(of_points[0])]
        if drawn is None:
            return taken[:, self._sources[0]]
        return taken.gather(1, self._sources[of_points[1]]).mul_(self._signs[of_points[1]])

    def _drawn_for(self, epoch: int, cases: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Numbers of the symmetries that cases are shown under, each drawn as the loader draws it."""
        if not self._symmetries:
            return None
        drawn = [np.random.default_rng([self._seed, epoch, case]).integers(2, size=3) for case in cases.tolist()]
        numbers: NDArray[np.int64] = np.stack(drawn) @ np.array([1, 2, 4])
        return numbers
