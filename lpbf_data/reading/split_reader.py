"""Reading the cases of a split, in any order, from whichever layout is there and wherever it lies."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.case import Case
from lpbf_data.case.point_schema import PointSchema
from lpbf_data.case.schema import FieldSpec
from lpbf_data.errors import CaseError, SchemaError, StoreError, UnreachableError, UsageError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.os_errors import read_error
from lpbf_data.reading.catalog import CaseAddress, read_catalog, read_manifest
from lpbf_data.reading.footer_cache import FooterCache
from lpbf_data.reading.remote_shard import RemoteShard
from lpbf_data.stores.npz import NPZ_FIELDS, NpzCase
from lpbf_data.stores.parquet import ParquetShard, columns_of
from lpbf_data.stores.selection import Arrays, Selection, check_arrays, finish_arrays
from lpbf_data.stores.zarr_direct_reader import descriptors_allowed
from lpbf_data.stores.zarr_parts import ZarrPart

__all__ = ["SplitReader", "read_manifest"]

_OPEN_SHARDS: Final = 128
"""Shards kept open, 0.6 MB of footers each: a shuffled epoch comes back to every shard, and reopening costs 0.5 ms.

Fewer where the process may open few files: each of several splits takes an eighth of them at most.
"""

_READ_AHEAD: Final = 8 << 20

Shard = ParquetShard | ZarrPart | RemoteShard


class SplitReader:
    """Random access to the cases of one split. Pickles without open files, so that workers open their own.

    Args:
        folder: The data set.
        split: Its split.
        footers: Cache of the footers of remote shards, if any.

    Raises:
        UsageError: If the data set has no such split.
        StoreError: If there is neither a manifest nor an index.
    """

    def __init__(self, folder: DatasetFolder, split: str, footers: FooterCache | None = None) -> None:
        self.folder = folder
        self._footers = footers
        self.split = split
        self.catalog = read_catalog(folder, split)
        self.addresses = self.catalog.addresses
        self._rows_of = Counter(address.shard for address in self.addresses)
        self._stamps: dict[str, str] = {}
        self._reset()

    def _reset(self) -> None:
        """Drop open shards and the lock, which lets one thread read at a time."""
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_stamps": {}}
        self._reset()

    def _read_lock(self) -> threading.Lock:
        if self._process != os.getpid():  # a fork: what the parent has open, and locked, is the parent's
            self._reset()
        return self._lock

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.addresses)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of points of each case."""
        return np.array([address.num_points for address in self.addresses], dtype=np.int64)

    @property
    def points(self) -> PointSchema | None:
        """Schema of a point set; None for a data set of printed parts."""
        return self.catalog.points

    @property
    def field_specs(self) -> tuple[FieldSpec, ...]:
        """Fields that the data set stores."""
        if self.points is not None:
            return self.points.fields
        if self.catalog.layout == "npz":
            return NPZ_FIELDS
        with self._read_lock():
            return self._shard(self.addresses[0]).field_specs

    def _shard(self, address: CaseAddress) -> Shard:
        name = address.shard
        if name not in self._open:
            self._open[name] = self._open_shard(address)
            if len(self._open) > min(_OPEN_SHARDS, descriptors_allowed() // 8):
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def _open_shard(self, address: CaseAddress) -> Shard:
        files, name = self.folder.files, address.shard
        label = f"{self.folder.name}/{name}"
        if self.catalog.layout == "zarr":
            return ZarrPart(files.zarr_store(name), name=label)
        path = files.local_path(name)
        if path is not None:
            return ParquetShard(path, name=label)
        checksum = self.catalog.checksums[name]
        return RemoteShard(files, name, address.shard_bytes, self._rows_of[name], self._footers, checksum)

    def read(self, index: int, specs: Sequence[FieldSpec]) -> Case:
        """One case.

        Args:
            index: Its number in the split.
            specs: Fields to read.

        Raises:
            StoreError: If the shard is missing, cut or altered, or holds another case than the manifest says.
            UsageError: If the cases of the data set are points without cells.
        """
        if self.points is not None:
            raise UsageError(f"cases of {self.folder.name} are points without cells; read their arrays (load_dataset)")
        selection = Selection(tuple(specs), target=False)
        arrays = self.read_arrays(index, selection)
        fields = {s.name: arrays[s.name] if s.components else arrays[s.name][:, 0] for s in specs}
        return Case(self.addresses[index].case_id, arrays["pos"], arrays["cells"], fields)

    def read_arrays(self, index: int, selection: Selection) -> Arrays:
        """The selected arrays of one case, checked; some may be read-only.

        Args:
            index: Its number in the split.
            selection: What to read.

        Raises:
            StoreError: If it can't be read or isn't what it should be; the text names shard, row and case.
        """
        return self.read_many([index], selection)[0]

    def read_many(self, indices: Sequence[int], selection: Selection) -> list[Arrays]:
        """The selected arrays of some cases of one shard; those of a remote shard are fetched together.

        Args:
            indices: Their numbers in the split, all in one shard.
            selection: What to read.

        Returns:
            Arrays of the first case and of those after it, up to the first that can't be read.

        Raises:
            StoreError: If the first case can't be read or isn't what it should be; names shard, row and case.
        """
        with self._read_lock():
            store = self._fetch(indices, selection)
            try:
                found = [self._read_one(indices[0], store, selection)]
                with contextlib.suppress(StoreError):  # they are errors of their own cases, once these are asked for
                    for index in indices[1:]:
                        found.append(self._read_one(index, store, selection))  # noqa: PERF401 (those before an error)
            finally:
                if isinstance(store, ZarrPart):
                    store.drop_fetched()
        return found

    def _fetch(self, indices: Sequence[int], selection: Selection) -> ParquetShard | ZarrPart | None:
        """The shard of some cases, or what is needed of it; None where every case is a file."""
        if self.catalog.layout == "npz":
            return None
        first = self.addresses[indices[0]]
        with _WrapErrors(self.folder.name, first):
            shard = self._shard(first)
            rows = [self.addresses[index].row for index in indices]
            if isinstance(shard, RemoteShard):
                return shard.fetch(rows, ["case_id", *columns_of(selection)])
            if isinstance(shard, ZarrPart):
                shard.fetch(rows, selection)
            return shard

    def _read_one(self, index: int, store: ParquetShard | ZarrPart | None, selection: Selection) -> Arrays:
        address = self.addresses[index]
        with _WrapErrors(self.folder.name, address):
            if store is None:
                arrays, cells = self._open_npz(address).read_arrays(selection)
            else:
                if not 0 <= address.row < len(store):
                    raise StoreError(f"the shard has {len(store)} rows; build the data set again")
                stored = store.case_id(address.row)
                if stored != address.case_id:
                    raise StoreError(f"it holds case {stored}; build the data set again")
                arrays, cells = store.read_arrays(address.row, selection)
            check_arrays(arrays, cells, address.num_points)
            return finish_arrays(arrays, cells, selection)

    def _open_npz(self, address: CaseAddress) -> NpzCase:
        content = self.folder.files.read_range(address.shard, 0, None)
        return NpzCase(content, address.num_points, f"{self.folder.name}/{address.shard}")

    def neighbours(self, index: int) -> list[int]:
        """Cases around this one in its shard that are worth fetching with it: 8 MB if remote, none if local.

        Args:
            index: Number of a case in the split.
        """
        shard = self._open.get(self.addresses[index].shard)
        # The first case of a shard is fetched alone: it should arrive soon, and its neighbours may never be read.
        if shard is None or isinstance(shard, ParquetShard) or not shard.has_row(self.addresses[index].row):
            return []
        if isinstance(shard, ZarrPart) and not shard.is_remote:
            return []
        size = shard.row_bytes(self.addresses[index].row)
        found: list[int] = []
        for direction, end in ((1, len(self.addresses)), (-1, -1)):
            for other in range(index + direction, end, direction):
                if self.addresses[other].shard != self.addresses[index].shard:
                    break
                if not shard.has_row(self.addresses[other].row):
                    continue  # an error of that case alone
                size += shard.row_bytes(self.addresses[other].row)
                if size > _READ_AHEAD:
                    return found
                found.append(other)
        return found

    def stamp(self, index: int) -> str:
        """State of the files that a case of a local data set lies in: sizes and times of change; else nothing.

        Args:
            index: Its number in the split.

        Raises:
            StoreError: If a file is missing.
        """
        root, name = self.folder.local, self.addresses[index].shard
        if root is None:
            return ""
        if name not in self._stamps:
            with _WrapErrors(self.folder.name, self.addresses[index]):
                self._stamps[name] = _stamp_of(root / name)
        return self._stamps[name]

    def select_fields(self, names: Sequence[str] | str | None) -> tuple[FieldSpec, ...]:
        """Specifications of the fields asked for, or of the one; all stored ones by default.

        Raises:
            UsageError: If one isn't stored.
        """
        stored = self.field_specs
        if names is None or names == "all":
            return stored
        names = [names] if isinstance(names, str) else names
        if missing := [name for name in names if name not in {spec.name for spec in stored}]:
            known = ", ".join(spec.name for spec in stored)
            raise UsageError(f"{self.folder.name} has no field {missing[0]!r}; it has: {known}")
        by_name = {spec.name: spec for spec in stored}
        return tuple(by_name[name] for name in dict.fromkeys(names))


def _stamp_of(path: Path) -> str:
    try:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        states = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    except OSError as error:
        raise read_error("it", error, f" can't be read ({error}); verify the data set, or build it again") from error
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


class _WrapErrors:
    """Context manager: adds shard, row and case to the message of an error."""

    def __init__(self, name: str, address: CaseAddress) -> None:
        self._name = name
        self._address = address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (StoreError, SchemaError, CaseError)):
            at = self._address
            subject = f"case {at.case_id} (shard {self._name}/{at.shard}, row {at.row})"
            kind = UnreachableError if isinstance(error, UnreachableError) else StoreError
            raise kind(f"{subject}: {error}") from error
