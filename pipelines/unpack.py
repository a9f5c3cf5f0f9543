"""`python -m pipelines.unpack --src corpus/ --out lpbf/`: the data set that a packed corpus holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks, progress
from lpbf_data.durable import check_empty, written_folder
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.remarks import Remark, Treatment

if TYPE_CHECKING:
    from lpbf_data.case.case import Case
    from lpbf_data.case.record import CaseRecord
    from lpbf_data.stores.manifest import Manifest
    from lpbf_data.stores.packed import PackedHeader

_MAX_MEGABYTES: Final = 1000


def unpack(src: list[str], out: str, *, shard_megabytes: int = 96) -> int:
    """Restore the data set that was packed: Parquet shards, the same cases, designs and splits.

    Args:
        src: Folder of the pieces, all of them; of several folders, the cases of all corpora become one data set.
        out: Folder of the data set; it must not exist yet, or be empty.
        shard_megabytes: Uncompressed size of a shard, MB; workers that read share a split by its shards.

    Returns:
        Exit status: 0.
    """
    if not 1 <= shard_megabytes <= _MAX_MEGABYTES:
        raise UsageError(f"--shard_megabytes must be 1 to {_MAX_MEGABYTES:,}, not {shard_megabytes}")

    from pipelines.reporting.summary import print_summary

    started = time.monotonic()
    manifest = unpack_corpus([Path(one) for one in src], Path(out), 10**6 * shard_megabytes)
    console = open_console()
    print_summary(manifest.records, out, seconds=time.monotonic() - started, console=console)
    print_remarks(manifest.remarks, console)
    return 0


def unpack_corpus(src: Sequence[Path], out: Path, shard_bytes: int = 96 * 10**6) -> Manifest:
    """Restore the data set that was packed.

    Args:
        src: Folders of the pieces, one a corpus.
        out: Folder of the data set, new or empty.
        shard_bytes: Uncompressed size of a shard.

    Returns:
        Its manifest.

    Raises:
        UsageError: If there are no pieces, or the output holds something.
        StoreError: If a piece is missing, damaged or impossible, or a case occurs twice.
    """
    from lpbf_data.stores.packed import PackedPiece, find_pieces

    check_empty(out)
    pieces = [PackedPiece(path) for folder in src for path in find_pieces(folder)]
    records = {record.case_id: record for piece in pieces for record in piece.records()}
    announced = sum(len(piece.records()) for piece in pieces)
    if len(records) != announced:
        raise StoreError(f"{_listed(src)}: a case occurs twice; pack the data set again, or name each corpus once")
    if len({(piece.header.tolerance, piece.header.fields) for piece in pieces}) != 1:
        raise StoreError(f"{_listed(src)}: pieces have other fields or tolerances than others; they can't be joined")
    with written_folder(out) as aside:
        shards = _Shards(aside, pieces[0].header, shard_bytes)
        with progress(announced, "unpack", "case") as bar:
            for piece in pieces:
                for case in piece.cases():
                    shards.add(records[case.case_id], case)
                    bar.update()
        return shards.finish()


def _listed(src: Sequence[Path]) -> str:
    return ", ".join(map(str, src))


class _Shards:
    """Parquet shards by split, written as they fill; they get their names when it is known how many there are."""

    def __init__(self, folder: Path, header: PackedHeader, shard_bytes: int) -> None:
        self._folder, self._header, self._specs, self._most = folder, header, header.specs, shard_bytes
        self._waiting: dict[str, list[tuple[CaseRecord, Case]]] = {}
        self._sizes: Counter[str] = Counter()
        self._written: dict[str, list[list[CaseRecord]]] = {}
        (folder / "data").mkdir()

    def add(self, record: CaseRecord, case: Case) -> None:
        from pipelines.building.shards import raw_bytes

        assert record.placement is not None
        split = record.placement.split
        self._waiting.setdefault(split, []).append((record, case))
        self._sizes[split] += raw_bytes(record, self._specs)
        if self._sizes[split] >= self._most:
            self._write(split)

    def _path(self, split: str, index: int) -> Path:
        return self._folder / "data" / f"{split}-{index:05d}.tmp"

    def _write(self, split: str) -> None:
        from lpbf_data.stores.parquet import write_shard
        from pipelines.measuring.measure import field_statistics

        pairs, self._sizes[split] = self._waiting.pop(split), 0
        written = self._written.setdefault(split, [])
        write_shard(self._path(split, len(written)), [case for _, case in pairs], self._specs)
        written.append(
            [dataclasses.replace(record, statistics=field_statistics(case, self._specs)) for record, case in pairs]
        )

    def finish(self) -> Manifest:
        """Write what is left, name the shards, and write manifest and documents."""
        from lpbf_data.case.record import Placement
        from lpbf_data.durable import sha256_of_file

        for split in sorted(self._waiting):
            self._write(split)
        placed: list[CaseRecord] = []
        for split, groups in sorted(self._written.items()):
            for index, records in enumerate(groups):
                name = f"data/{split}-{index:05d}-of-{len(groups):05d}.parquet"
                path = self._path(split, index).rename(self._folder / name)
                size, digest = path.stat().st_size, sha256_of_file(path)
                placed += [
                    dataclasses.replace(record, placement=Placement(split, index, row, name, size, digest))
                    for row, record in enumerate(records)
                ]
        return self._document(placed)

    def _document(self, records: Sequence[CaseRecord]) -> Manifest:
        from lpbf_data.case.schema import SCHEMA_VERSION
        from lpbf_data.durable import write_durably
        from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest, encode_manifest
        from pipelines.reporting.card import make_card
        from pipelines.reporting.documents import BUILD_NAME, CARD_NAME
        from pipelines.reporting.summary import collect_remarks

        sentence = (
            "values of fields were rounded when the corpus was packed, by at most the share "
            f"{self._header.tolerance:g} of the field's largest value in the case; measures are those before packing"
        )
        rounded = Remark(Treatment.CHANGED, "packed_fields", sentence, len(records))
        remarks = collect_remarks([rounded], records)
        data = encode_manifest(records, remarks)
        digest = hashlib.sha256(data).hexdigest()
        splits = ",".join(f"{split}={sum(map(len, groups))}" for split, groups in sorted(self._written.items()))
        content = {
            "schema_version": SCHEMA_VERSION,
            "configuration": {"unpacked_tolerance": self._header.tolerance, "fields": list(self._header.fields)},
            "manifest_sha256": digest,
            "remarks": [remark.as_dict() for remark in remarks],
        }
        card = make_card(records, self._specs, ["parquet"], {}, splits, digest, (), remarks)
        write_durably(self._folder / CARD_NAME, card)
        write_durably(self._folder / BUILD_NAME, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        write_durably(self._folder / MANIFEST_NAME, data)
        return decode_manifest(data)


def main() -> None:
    """Entry point of `lpbf-unpack`."""
    run(unpack, "python -m pipelines.unpack")


if __name__ == "__main__":
    main()
