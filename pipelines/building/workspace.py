"""The folder that a build works in, `.build` in its output folder: what is measured, staged shards, who is at work.

    .build/lock                  held by the build that works here
    .build/parts/<part>.lock     held by a part of a build that works here
    .build/listings/<key>.json   what an archive holds
    .build/listings/<key>.arrow  where its members lie
    .build/measured/<key>.parquet   records of a group of cases, with the signature of each case's files
    .build/measured/<key>.<hash>.arrow   the build reduced onto each case's points, a record batch per case; the
                                 records name the one that belongs to them
    .build/attempts/<key>        which case of a group is at work, to tell who killed a worker
    .build/shards/<key>.*        finished shards that aren't in the data set yet
    .build/commit.json           a commit that has begun

Nothing in it belongs to the data set. Measured groups are kept: another filter, split or selection of fields reads no
geometry again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lpbf_data.case.record import CaseRecord, SourceRef
from lpbf_data.case.schema import BUILD_FIELDS, SCHEMA_VERSION
from lpbf_data.durable import remove_leftovers, write_durably
from lpbf_data.errors import FailureReason, UsageError
from lpbf_data.stores.manifest import manifest_schema, records_to_table, table_to_records
from pipelines.measuring.convert import Measured

MEASURE_VERSION: Final = 3
"""Raised when measuring changes its results, so that old ones aren't used."""

_TRANSIENT: Final = frozenset(
    {
        FailureReason.UNREADABLE_FILE,
        FailureReason.SOURCE_CHANGED,
        FailureReason.TIME_LIMIT,
        FailureReason.WORKER_KILLED,
        FailureReason.UNEXPECTED_ERROR,
    }
)
"""Failures that may have another cause than the files themselves: such a case is tried again by the next build."""

_REDUCTIONS: Final = pa.schema([pa.field(name, pa.float32()) for name in BUILD_FIELDS])


@dataclass(frozen=True, slots=True)
class MeasuredRef:
    """A measured case and where its reductions lie.

    Attributes:
        record: What was measured.
        group: Name, without suffix, of the file that holds its reductions; empty when it failed.
        index: Number of its record batch there.
    """

    record: CaseRecord
    group: str
    index: int


class Workspace:
    """The folder that a build works in.

    Args:
        root: The folder, made when absent.
        out: Where the data set goes, for messages.
    """

    def __init__(self, root: Path, out: str) -> None:
        self.root = root
        self.out = out
        self.listings = self.root / "listings"
        self.measured = self.root / "measured"
        self.attempts = self.root / "attempts"
        self.shards = self.root / "shards"
        self.parts = self.root / "parts"
        self.documents = self.root / "documents"
        self.commit_journal = self.root / "commit.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder alone; a second build is refused, and so is one beside a part that is at work.

        Raises:
            UsageError: If another build works here.
        """
        self._make_folders()
        with _held(self.root / "lock", self.out):
            for path in sorted(self.parts.glob("*.lock")):
                with _held(path, self.out):
                    pass
            for folder in (self.root, self.listings, self.measured, self.shards, self.documents):
                remove_leftovers(folder)
            self._remove_unnamed_reductions()
            yield

    def _remove_unnamed_reductions(self) -> None:
        """Remove reductions that no records name: a group was measured again, or a writer was killed."""
        named = {_reductions_of(pq.read_schema(path)) for path in self.measured.glob("*.parquet")}
        for path in self.measured.glob("*.arrow"):
            if path.stem not in named:
                path.unlink(missing_ok=True)

    @contextmanager
    def locked_part(self, name: str) -> Iterator[None]:
        """Hold one part of the work; other parts may be at work beside it, a whole build may not.

        Args:
            name: Name of the part.

        Raises:
            UsageError: If a whole build, or the same part, is at work.
        """
        self._make_folders()
        with _held(self.parts / f"{name}.lock", self.out):
            # Another part looks here as well, for a moment; a build stays.
            with _held(self.root / "lock", self.out, patience=10.0):
                pass
            yield

    def _make_folders(self) -> None:
        for folder in (self.listings, self.measured, self.attempts, self.shards, self.parts):
            folder.mkdir(parents=True, exist_ok=True)

    def forget_attempts(self) -> None:
        """Count anew which case ended workers: when a whole build is killed, no case is at fault."""
        for path in self.attempts.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def load_measured(self, *, transient: bool = False) -> dict[str, MeasuredRef]:
        """Everything measured so far, by the signature of the case's files and its name.

        Args:
            transient: Give failures too that may have another cause than the files; without it they are tried again.
        """
        found: dict[str, MeasuredRef] = {}
        for path in sorted(self.measured.glob("*.parquet")):
            with pq.ParquetFile(path, pre_buffer=False) as file:  # no threads, as in lpbf_data.stores.manifest
                table = file.read(use_threads=False)
            reductions = _reductions_of(table.schema)
            # Records of an earlier version name none: theirs may have been overwritten by those of another run.
            if reductions is None or not (self.measured / f"{reductions}.arrow").exists():
                continue
            indices = table["reduction_index"].to_pylist()
            signatures = table["signature"].to_pylist()
            records = table_to_records(table.drop_columns(["reduction_index", "signature"]))
            for record, signature, index in zip(records, signatures, indices, strict=True):
                if _is_transient(record) and not transient:
                    continue
                group = reductions if index >= 0 else ""
                key = measured_key(record.case_id, record.source, signature)
                if key not in found or not _is_transient(record):
                    found[key] = MeasuredRef(record, group, index)
        return found


def _is_transient(record: CaseRecord) -> bool:
    return record.failure is not None and record.failure.failure_reason in _TRANSIENT


@contextmanager
def _held(path: Path, out: str, patience: float = 1.0) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise UsageError(f"another build works in {out}; wait for it, or choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def _measure_version() -> bytes:
    return f"{MEASURE_VERSION}.{SCHEMA_VERSION}".encode()


def _reductions_of(schema: pa.Schema) -> str | None:
    """Name of the reductions that belong to the records of a group; None where this version can't use them."""
    metadata = schema.metadata or {}
    if metadata.get(b"lpbf_measure") != _measure_version():
        return None
    name = metadata.get(b"lpbf_reductions")
    return None if name is None else name.decode()


def measured_key(case_id: str, source: SourceRef, signature: str) -> str:
    """What identifies a measured case: its id, its location, and the signature of its files."""
    return f"{case_id}\0{source.archive}\0{source.member}\0{signature}"


def store_measured(folder: Path, key: str, measured: Sequence[Measured], signatures: Sequence[str]) -> None:
    """Write the results of a group; the records come last, so a group is there whole or not at all.

    A group may be measured again, while another part of the build reads what was measured before: the reductions get a
    name of their content, so that records never meet those of another run.

    Args:
        folder: The folder `measured` of a workspace.
        key: Name of the group.
        measured: One result a case.
        signatures: Signature of each case's files.
    """
    sink = pa.BufferOutputStream()
    indices: list[int] = []
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, _REDUCTIONS, options=options) as writer:
        for result in measured:
            indices.append(-1 if result.reductions is None else max(indices, default=-1) + 1)
            if result.reductions is not None:
                writer.write_batch(pa.record_batch(list(map(pa.array, result.reductions)), schema=_REDUCTIONS))
    content = sink.getvalue().to_pybytes()
    reductions = f"{key}.{hashlib.sha256(content).hexdigest()[:16]}"
    write_durably(folder / f"{reductions}.arrow", content)
    extras: dict[str, tuple[str, int]] = {
        measured_key(result.record.case_id, result.record.source, ""): (signature, index)
        for result, signature, index in zip(measured, signatures, indices, strict=True)
    }
    table = records_to_table(result.record for result in measured)
    rows = [extras[measured_key(record.case_id, record.source, "")] for record in table_to_records(table)]
    table = table.append_column("signature", pa.array([signature for signature, _ in rows], type=pa.string()))
    table = table.append_column("reduction_index", pa.array([index for _, index in rows], type=pa.int64()))
    metadata: dict[Any, Any] = dict(manifest_schema().metadata)
    metadata |= {b"lpbf_measure": _measure_version(), b"lpbf_reductions": reductions.encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    write_durably(folder / f"{key}.parquet", sink.getvalue().to_pybytes())


def load_reductions(folder: Path, ref: MeasuredRef) -> tuple[NDArray[np.float32], ...]:
    """Read the reductions of a measured case.

    Args:
        folder: The folder `measured` of a workspace.
        ref: The case.

    Returns:
        One array [N] for each of BUILD_FIELDS.
    """
    with pa.memory_map(str(folder / f"{ref.group}.arrow")) as source:
        batch = pa.ipc.open_file(source).get_batch(ref.index)
        return tuple(column.to_numpy(zero_copy_only=False).copy() for column in batch.columns)
