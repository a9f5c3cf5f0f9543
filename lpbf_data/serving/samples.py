"""`CaseSamples`: makes samples (dicts of tensors, or PyG data) of the tensors of cases."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.schema import FIELDS
from lpbf_data.case.statistics import FieldStatistics, total
from lpbf_data.errors import UsageError
from lpbf_data.reading.split_reader import read_manifest
from lpbf_data.reading.tensors import CaseTensors
from lpbf_data.stores.selection import TARGET_COLUMN

SampleFormat = Literal["pyg", "torch"]
Transform = Callable[..., Any]


class CaseSamples:
    """Samples of the cases of a split, by their numbers. Pickles without open files.

    Args:
        tensors: Where their tensors come from.
        format: "pyg" for `torch_geometric.data.Data`, "torch" for a dict of tensors.
        transform: Applied to every sample. One that has a true attribute `random` is called with a
            `numpy.random.Generator` as second argument.

    Raises:
        UsageError: If the transform is for printed parts alone, and the cases are none.
    """

    def __init__(
        self,
        tensors: CaseTensors,
        format: SampleFormat = "pyg",  # noqa: A002 (the word that users of `datasets` know)
        transform: Transform | None = None,
    ) -> None:
        if tensors.reader.points is not None and getattr(transform, "of_parts", False):
            name = tensors.reader.folder.name
            raise UsageError(f"a transform is for printed parts alone, and {name} holds {tensors.reader.points.name}")
        self.tensors = tensors
        self.format = format
        self.transform = transform

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.tensors)

    def case_id(self, index: int) -> str:
        """Id of a case."""
        return self.tensors.reader.addresses[index].case_id

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Points of each case."""
        return self.tensors.reader.sizes

    def sample(self, index: int, *, seed: int = 0, epoch: int | Sequence[int] = 0) -> Any:
        """One sample, the caller's own.

        Args:
            index: Number of the case in the split.
            seed: Together with the epoch and the case decides what a random transform draws.
            epoch: Number of the epoch; or several numbers, where the epoch isn't known, that differ between draws.

        Raises:
            StoreError: If the case can't be read.
            Exception: Whatever the transform raises, with a note that names the case.
        """
        sample: Any = {**self.tensors.sample(index), "case_id": self.case_id(index)}
        if self.format == "pyg":
            from lpbf_data.serving.graph import (
                CaseData,  # torch_geometric takes seconds to import; not everybody needs it
            )

            sample = CaseData(**sample)
        if self.transform is None:
            return sample
        try:
            if getattr(self.transform, "random", False):
                return self.transform(sample, np.random.default_rng([seed, *np.atleast_1d(epoch).tolist(), index]))
            return self.transform(sample)
        except Exception as error:
            error.add_note(f"when case {self.case_id(index)} was transformed")
            raise

    def view(self, index: int) -> dict[str, Any]:
        """The arrays of a case and its id, not to be written to and without the transform."""
        return {**self.tensors.views(index), "case_id": self.case_id(index)}

    def digest(self, indices: Iterable[int]) -> str:
        """Hash of which cases these are, in which order, of which data."""
        numbers = np.fromiter(indices, dtype=np.int64)
        reader = self.tensors.reader
        hashed = hashlib.sha256(f"{reader.catalog.digest}\0{reader.split}\0".encode())
        hashed.update(numbers.tobytes())
        return hashed.hexdigest()[:16]

    def statistics(self, indices: Iterable[int]) -> dict[str, FieldStatistics]:
        """Statistics of each column over some cases, from the manifest; from the values where there is none.

        Args:
            indices: Numbers of the cases.

        Returns:
            Column name, say "displacement_z", to statistics. Without a manifest only selected columns are there.
        """
        reader = self.tensors.reader
        if reader.catalog.layout != "npz":
            return read_manifest(reader.folder).statistics([self.case_id(index) for index in indices])
        parts = [self._measure(index) for index in indices]
        columns = set(parts[0]).intersection(*parts) if parts else set()
        return {column: total(part[column] for part in parts) for column in sorted(columns)}

    def feature_statistics(self, indices: Iterable[int]) -> dict[str, FieldStatistics]:
        """Statistics of each column of the features of the shape, over some cases, from the values.

        Args:
            indices: Numbers of the cases.
        """
        parts: dict[str, list[FieldStatistics]] = {}
        if not self.tensors.selection.features:
            return {}  # no case has to be read for that
        for index in indices:
            views = self.tensors.views(index)
            for spec in self.tensors.selection.features:
                for number, column in enumerate(spec.columns):
                    parts.setdefault(column, []).append(FieldStatistics.of(views[spec.name][:, number]))
        return {column: total(found) for column, found in parts.items()}

    def _measure(self, index: int) -> dict[str, FieldStatistics]:
        """Statistics of the selected columns of one case."""
        views, found = self.tensors.views(index), {}
        if "y" in views:
            found[TARGET_COLUMN] = FieldStatistics.of(views["y"])
        for spec in self.tensors.selection.fields:
            values = views[spec.name]
            found |= {name: FieldStatistics.of(values[:, i]) for i, name in enumerate(FIELDS[spec.name].columns)}
        return found
