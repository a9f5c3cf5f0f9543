"""`Catalog`: the cases of a split and where each is stored, from a build's manifest or the published layout's index."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from lpbf_data.case.point_schema import PointSchema
from lpbf_data.errors import MissingFileError, SchemaError, StoreError, UnreachableError, UsageError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.stores.known_faults import warn_of_known_fault
from lpbf_data.stores.manifest import MANIFEST_NAME, Manifest, decode_manifest
from lpbf_data.stores.npz import find_index, read_index

Layout = Literal["parquet", "zarr", "npz"]

_BUILD_WORKSPACE: Final = ".build"  # where a build keeps what it needs to go on


@dataclass(frozen=True, slots=True)
class CaseAddress:
    """Where a case of a split is stored.

    Attributes:
        case_id: Its id.
        shard: The file or part that holds it.
        row: Its number there.
        num_points: Its number of points.
        shard_bytes: Size of the shard, where it is one of a build.
    """

    case_id: str
    shard: str
    row: int
    num_points: int
    shard_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Catalog:
    """The cases of a split.

    Attributes:
        layout: "parquet" or "zarr" for a data set of this project, "npz" for the one that is published today.
        addresses: Its cases.
        digest: Hash of what decides the contents: of the manifest; of index, repository and commit; or, for npz files
            in a local folder, of index, and size and time of change of each file of the split. To read their contents
            would take minutes; a copy that doesn't keep the times counts as another data set.
        checksums: SHA-256 of each shard, where the manifest has one.
        points: Schema of a point set; None for a data set of printed parts.
    """

    layout: Layout
    addresses: tuple[CaseAddress, ...]
    digest: str
    checksums: Mapping[str, str | None] = field(default_factory=dict)
    points: PointSchema | None = None


def read_manifest(folder: DatasetFolder) -> Manifest:
    """The manifest of a data set.

    Args:
        folder: The files of the data set.

    Raises:
        MissingFileError: If there is none: a build is at work, was interrupted, or never ran.
        UnreachableError: If the operating system, the network or a server refuses it.
        StoreError: If it can't be read.
        SchemaError: If it follows a newer schema.
    """
    try:
        return decode_manifest(folder.read(MANIFEST_NAME))
    except MissingFileError as error:
        raise MissingFileError(f"{folder.name} has no {MANIFEST_NAME}{_what_lies_there(folder)}") from error
    except UnreachableError as error:
        raise UnreachableError(f"{folder.name}: {error}") from None  # one traceback, the sentence says why
    except (StoreError, SchemaError) as error:
        raise type(error)(f"{folder.name}: {error}") from error


def read_points(name: str | Path) -> PointSchema | None:
    """Schema of a point set; None for a data set of printed parts.

    Args:
        name: The data set.

    Returns:
        The schema; also None for a data set that is missing or can't be read: opening a split of it raises the error.
    """
    try:
        return read_manifest(DatasetFolder(name)).points
    except (StoreError, UsageError):
        return None


def _what_lies_there(folder: DatasetFolder) -> str:
    if folder.local is None:
        return ""
    if (folder.local / _BUILD_WORKSPACE).exists():
        return "; a build is at work there or was interrupted: run it again"
    return f", so it is no data set; where it holds results, python -m pipelines.build --src {folder.name} makes one"


def read_catalog(folder: DatasetFolder, split: str) -> Catalog:
    """The cases of a split, in the order of shard and row, or of the index.

    Args:
        folder: The files of the data set.
        split: Name of the split.

    Raises:
        UsageError: If the data set has no such split.
        StoreError: If there is neither a manifest nor an index, or it can't be read.
    """
    try:
        manifest = read_manifest(folder)
    except UnreachableError:
        raise  # the manifest may exist, though it can't be read now
    except StoreError as no_manifest:
        index = _find_index(folder, no_manifest)
        _check_split(folder, split, tuple(index))
        return _catalog_of_index(folder, index[split], no_manifest)
    _check_split(folder, split, manifest.splits)
    warn_of_known_fault(folder.name, manifest, stacklevel=4)  # the caller of load_dataset
    return _catalog_of_manifest(manifest, split)


def _find_index(folder: DatasetFolder, no_manifest: StoreError) -> dict[str, tuple[str, ...]]:
    """The index files of the published layout; the manifest's error stands if there are none either."""
    unreadable = not isinstance(no_manifest, MissingFileError)
    if unreadable and not folder.is_remote:
        raise no_manifest
    try:
        index = find_index(folder)
    except UnreachableError:
        raise
    except StoreError:
        raise no_manifest from None
    if not index:
        raise no_manifest
    return index


def _check_split(folder: DatasetFolder, split: str, known: Sequence[str]) -> None:
    if split not in known:
        listed = ", ".join(known) or "none: no case was kept"
        raise UsageError(f"{folder.name} has no split {split!r}; it has: {listed}")


def _catalog_of_manifest(manifest: Manifest, split: str) -> Catalog:
    rows = manifest.of_split(split)
    layout: Layout = "parquet" if rows["parquet_file"].null_count == 0 else "zarr"
    shard = "parquet_file" if layout == "parquet" else "zarr_part"
    columns = (rows[name].to_pylist() for name in ("case_id", shard, "row", "num_points", f"{layout}_bytes"))
    addresses = tuple(CaseAddress(*row) for row in zip(*columns, strict=True))
    checksums = dict(zip(rows[shard].to_pylist(), rows[f"{layout}_sha256"].to_pylist(), strict=True))
    if manifest.points is not None:
        _check_points(manifest.points, layout, addresses)
    return Catalog(layout, addresses, str(manifest.digest), checksums, manifest.points)


def _check_points(points: PointSchema, layout: Layout, addresses: Sequence[CaseAddress]) -> None:
    """Refuse cases that aren't what the data set says of itself."""
    if layout != "parquet":
        raise SchemaError(
            f"{MANIFEST_NAME} names no Parquet shards for points without cells; convert the data set again"
        )
    for address in addresses:
        if refused := points.refuse_size(address.num_points):
            raise SchemaError(f"{MANIFEST_NAME}: case {address.case_id}: {refused}; convert the data set again")


def _catalog_of_index(folder: DatasetFolder, names: tuple[str, ...], no_manifest: StoreError) -> Catalog:
    try:
        rows = read_index(folder, names)
    except UnreachableError:
        raise
    except StoreError as error:
        if isinstance(no_manifest, MissingFileError):
            raise
        raise no_manifest from error  # the manifest may exist, and these files be its shards
    addresses = tuple(CaseAddress(row.case_id, row.file, 0, row.num_points) for row in rows)
    content = [folder.files.identity]
    content += [f"{row.case_id}\0{row.file}\0{row.num_points}\0{_state_of(folder, row.file)}" for row in rows]
    return Catalog("npz", addresses, hashlib.sha256("\n".join(content).encode()).hexdigest())


def _state_of(folder: DatasetFolder, file: str) -> str:
    """Size and time of change of a file in a local folder; empty for a remote or missing one."""
    if folder.local is None:
        return ""
    try:
        found = (folder.local / file).stat()
    except OSError:
        return ""  # reading the case says what is wrong with it
    return f"{found.st_size} {found.st_mtime_ns}"
