"""`python -m pipelines.pack --src lpbf/ --out corpus/`: a data set as a few small files that travel easily.

`python -m pipelines.unpack` makes a data set of them again. The format: [packed](../lpbf_data/stores/packed.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks, progress
from lpbf_data.durable import check_empty, written_folder
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.remarks import Remark, Treatment, merge_remarks

if TYPE_CHECKING:
    from lpbf_data.case.case import Case
    from lpbf_data.case.record import CaseRecord
    from lpbf_data.case.schema import FieldSpec
    from lpbf_data.stores.manifest import Manifest

DEFAULT: Final = ("displacement", "build_clearance_min", "build_displacement_z_max")

_MAX_MEBIBYTES: Final = 60
_TOLERANCES: Final = (1e-6, 0.01)  # below, errors would be no smaller than those of floats


def pack(
    src: str,
    out: str,
    *,
    fields: list[str] = list(DEFAULT),  # noqa: B006 (read only; shown as the default in the help)
    tolerance: float = 2e-5,
    piece_mebibytes: int = 60,
) -> int:
    """Pack a data set: voxels as bits, fields quantised, in pieces of at most 60 MiB.

    Args:
        src: The data set, a folder that pipelines.build wrote.
        out: Folder of the pieces; it must not exist yet, or be empty.
        fields: Fields of points to keep.
        tolerance: Share of a field's largest value in a case (for displacements, of the longest one) that its values
            may be off.
        piece_mebibytes: Largest size of a piece, 1 to 60 MiB.

    Returns:
        Exit status: 0.
    """
    _check_tolerance(tolerance)
    if not 1 <= piece_mebibytes <= _MAX_MEBIBYTES:
        raise UsageError(f"--piece_mebibytes must be 1 to {_MAX_MEBIBYTES}, not {piece_mebibytes}")

    from rich.table import Table

    from pipelines.numbers import human_bytes

    files, remarks, points, error = pack_dataset(Path(src), Path(out), fields, tolerance, piece_mebibytes * 2**20)
    size = sum(path.stat().st_size for path in files)
    table = Table(title=f"packed corpus {out}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("pieces", f"{len(files):,}")
    table.add_row("bytes", human_bytes(size))
    table.add_row("points", f"{points:,}")
    table.add_row("bytes per point", f"{size / points:.2f}")
    for name, value in error.items():
        table.add_row(f"largest error of {name}", f"{value:.1e} of its largest value")
    console = open_console()
    console.print(table)
    print_remarks(remarks, console)
    return 0


def pack_dataset(
    src: Path, out: Path, fields: Sequence[str], tolerance: float, piece_bytes: int = 60 * 2**20
) -> tuple[tuple[Path, ...], tuple[Remark, ...], int, dict[str, float]]:
    """Pack a data set.

    Args:
        src: The data set.
        out: Folder of the pieces, new or empty.
        fields: Fields of points to keep.
        tolerance: Share of a field's largest value in a case that its values may be off.
        piece_bytes: Most bytes of a piece.

    Returns:
        The pieces; what was left out; the number of points; the largest error of each field, over its largest value.

    Raises:
        UsageError: If an option is impossible, or nothing can be packed.
        StoreError: If the data set can't be read.
    """
    from lpbf_data.file_access.folder import DatasetFolder
    from lpbf_data.reading.catalog import read_manifest
    from lpbf_data.stores.packed import PackedWriter, with_split_only
    from lpbf_data.stores.packed_codec import known_fields

    _check_tolerance(tolerance)
    try:
        specs = known_fields(tuple(fields))
    except KeyError as error:
        problem = f"--fields {error.args[0]} is no field of points; only fields of points can be packed"
        raise UsageError(problem) from error
    if not specs:
        raise UsageError("--fields names none; what is packed needs at least one")
    check_empty(out)
    if not src.is_dir():
        raise UsageError(f"--src {src} is no folder; name a data set that pipelines.build wrote")
    manifest = read_manifest(DatasetFolder(src))
    manifest.need_parts(str(src), "python -m pipelines.pack")
    left_out: list[str] = []
    points, largest = 0, dict.fromkeys((spec.name for spec in specs), 0.0)
    with written_folder(out) as aside:
        writer = PackedWriter(aside, specs, tolerance, piece_bytes)
        kept = sum(record.placement is not None for record in manifest.records)
        with progress(kept, "pack", "case") as bar:
            for record, case in _cases(src, manifest, specs):
                errors = writer.add(with_split_only(record), case)
                if errors is None:
                    left_out.append(record.case_id)
                else:
                    points += case.num_points
                    largest = {name: max(value, errors[name]) for name, value in largest.items()}
                bar.update()
        names = [path.name for path in writer.close()]
    return tuple(out / name for name in names), _remarks(manifest, left_out), points, largest


def _check_tolerance(tolerance: float) -> None:
    if not _TOLERANCES[0] <= tolerance <= _TOLERANCES[1]:
        low, high = _TOLERANCES
        raise UsageError(
            f"--tolerance must be {low:g} to {high:g}, a share of a field's largest value, not {tolerance}"
        )


def _remarks(manifest: Manifest, left_out: Sequence[str]) -> tuple[Remark, ...]:
    remarks = []
    unkept = [record.case_id for record in manifest.records if record.placement is None]
    if unkept:
        sentence = "cases that the data set doesn't keep, failed or rejected: a packed corpus has no rows for them"
        remarks.append(Remark.of_items(Treatment.LEFT_OUT, "unkept_cases", sentence, unkept))
    if left_out:
        sentence = (
            "cases that can't be packed: their mesh isn't one of boxes that this project's mesher numbered, or a field "
            "jumps too far"
        )
        remarks.append(Remark.of_items(Treatment.LEFT_OUT, "unpackable_cases", sentence, left_out))
    return merge_remarks(remarks)


def _cases(src: Path, manifest: Manifest, specs: Sequence[FieldSpec]) -> Iterator[tuple[CaseRecord, Case]]:
    """The kept cases of a data set, in the order of splits, shards and rows."""
    from lpbf_data.stores.parquet import ParquetShard
    from lpbf_data.stores.zarr_parts import ZarrPart

    records = {record.case_id: record for record in manifest.records if record.placement is not None}
    for split in manifest.splits:
        name, shard = "", None
        for case_id in manifest.of_split(split)["case_id"].to_pylist():
            placement = records[case_id].placement
            assert placement is not None
            where = placement.parquet_file or placement.zarr_part or ""
            if where != name:
                name = where
                shard = ParquetShard(src / name) if placement.parquet_file else ZarrPart(src / name)
            assert shard is not None
            case = shard.read_case(placement.row, specs)
            if case.case_id != case_id:
                raise StoreError(
                    f"{src / name} has case {case.case_id} where the manifest says {case_id}; build it again"
                )
            yield records[case_id], case


def main() -> None:
    """Entry point of `lpbf-pack`."""
    run(pack, "python -m pipelines.pack")


if __name__ == "__main__":
    main()
