"""Reading the cases of a split, in any order, from whichever format is there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from lpbf_data.case import Case
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.folder import DatasetFolder
from lpbf_data.manifest import MANIFEST_NAME, Manifest, decode_manifest
from lpbf_data.parquet_store import ParquetShard
from lpbf_data.schema import FIELDS, FieldSpec
from lpbf_data.zarr_store import ZarrPart

_OPEN_SHARDS: Final = 16


@dataclass(frozen=True, slots=True)
class CaseAddress:
    """Where a case of a split lies."""

    case_id: str
    shard: str
    row: int
    num_points: int


class SplitReader:
    """Random access to the cases of one split. Pickles without open files, so that workers open their own.

    Args:
        folder: The data set.
        split: Its split.

    Raises:
        UsageError: If the data set has no such split.
        StoreError: If there is no manifest.
    """

    def __init__(self, folder: DatasetFolder, split: str) -> None:
        self.folder = folder
        self.split = split
        manifest = read_manifest(folder)
        if split not in manifest.splits:
            known = ", ".join(manifest.splits) or "none: no case was kept"
            raise UsageError(f"{folder.name} has no split {split!r}; it has: {known}")
        rows = manifest.of_split(split)
        parquet = rows["parquet_file"].null_count == 0
        self._is_parquet = parquet
        shards = rows["parquet_file" if parquet else "zarr_part"].to_pylist()
        columns = (rows[name].to_pylist() for name in ("case_id", "row", "num_points"))
        self.addresses = tuple(
            CaseAddress(case_id, shard, row, points)
            for shard, case_id, row, points in zip(shards, *columns, strict=True)
        )
        self._open: OrderedDict[str, ParquetShard | ZarrPart] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.addresses)

    @property
    def field_specs(self) -> tuple[FieldSpec, ...]:
        """Fields that the data set stores."""
        return self._shard(self.addresses[0].shard).field_specs

    def _shard(self, name: str) -> ParquetShard | ZarrPart:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        label = f"{self.folder.name}/{name}"
        shard: ParquetShard | ZarrPart
        if self._is_parquet:
            shard = ParquetShard(self.folder.open(name), name=label)
        else:
            shard = ZarrPart(self.folder.zarr_store(name), name=label)
        self._open[name] = shard
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return shard

    def read(self, index: int, specs: Sequence[FieldSpec]) -> Case:
        """One case.

        Args:
            index: Its number in the split.
            specs: Fields to read.

        Raises:
            StoreError: If the shard is missing, cut or altered, or holds another case than the manifest says.
            SchemaError: If a field isn't stored.
        """
        address = self.addresses[index]
        case = self._shard(address.shard).read_case(address.row, specs)
        if case.case_id != address.case_id:
            raise StoreError(
                f"{self.folder.name}/{address.shard}, row {address.row} holds case {case.case_id}, the manifest says "
                f"{address.case_id}; build the data set again"
            )
        return case

    def select_fields(self, names: Sequence[str] | None) -> tuple[FieldSpec, ...]:
        """Specifications of the fields asked for; all stored ones by default.

        Raises:
            UsageError: If one isn't stored.
        """
        stored = self.field_specs
        if names is None:
            return stored
        if missing := [name for name in names if name not in {spec.name for spec in stored}]:
            known = ", ".join(spec.name for spec in stored)
            raise UsageError(f"{self.folder.name} has no field {missing[0]!r}; it has: {known}")
        return tuple(FIELDS[name] for name in dict.fromkeys(names))


def read_manifest(folder: DatasetFolder) -> Manifest:
    """The manifest of a data set.

    Raises:
        StoreError: If there is none: a build is at work, was interrupted, or never ran.
    """
    try:
        return decode_manifest(folder.read(MANIFEST_NAME))
    except StoreError as error:
        raise StoreError(
            f"{folder.name} has no readable {MANIFEST_NAME} ({error}); a build may be at work or was interrupted: "
            "run it again"
        ) from error
