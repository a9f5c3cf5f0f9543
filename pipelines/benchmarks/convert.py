"""`python -m pipelines.benchmarks.convert darcy --src darcy/ --out darcy_set/`: published files as a data set.

Each system is a row of a table ([systems.py](systems.py)): its arrays, what their axes are, the schema of its points,
and the split of the papers ([sample_arrays.py](sample_arrays.py)). Surfaces of DrivAerML are one file a run
([car_surfaces.py](car_surfaces.py)).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, get_args

from lpbf_data.case.point_schema import PointSchema
from lpbf_data.case.record import CaseRecord
from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks
from lpbf_data.errors import UsageError
from lpbf_data.remarks import Remark
from pipelines.benchmarks.systems import CARS, SYSTEMS

SystemName = Literal["elasticity", "pipe", "airfoil", "darcy", "drivaerml"]

_SPLIT: Final = (1000, 200)  # samples for training and test, as papers take them of the first four
_DRAWN: Final = 40_000


def convert(
    system: SystemName,
    src: str,
    out: str,
    *,
    train: int = _SPLIT[0],
    test: int = _SPLIT[1],
    split: str | None = None,
    points: int = _DRAWN,
) -> int:
    """Turn files of a benchmark into a data set that train and evaluate read.

    Args:
        system: Which benchmark.
        src: Folder with its files: their own folder, or the root that several benchmarks lie below.
        out: Folder of the data set; it must not exist yet, or be empty.
        train: Samples to train on, as papers do; not for drivaerml.
        test: Samples of the test, as papers do; not for drivaerml.
        split: For drivaerml: folders (train and test of the archives), public (400, 34 and 50 runs), or a JSON file
            such as {"train": [1, 2], "test": [3]}; folders where there are any, else public.
        points: For drivaerml: cells that are drawn of each surface, as for the published sets; 0 for all.

    Returns:
        Exit status: 0.
    """
    _check(system, train, test, split, points)
    folder, remarks = Path(src), list[Remark]()
    if not folder.is_dir():
        raise UsageError(f"--src {src} is no folder")
    from lpbf_data.stores.point_sets import write_point_set
    from pipelines.benchmarks.car_surfaces import cases_of_cars
    from pipelines.benchmarks.sample_arrays import cases_of_arrays

    row = SYSTEMS.get(system)
    splits = cases_of_cars(folder, split, points) if row is None else cases_of_arrays(row, folder, train, test, remarks)
    described = CARS if row is None else row.points
    records = write_point_set(
        Path(out),
        described,
        splits,
        standardised=row is not None and row.standardised,
        remarks=remarks,
        package_version=_package_version(),
    )
    _report(Path(out), described, records, remarks)
    return 0


def _check(system: str, train: int, test: int, split: str | None, points: int) -> None:
    """Refuse values that make no sense, and options of another benchmark."""
    if system not in get_args(SystemName):
        raise UsageError(f"there is no benchmark {system!r}; there are {', '.join(get_args(SystemName))}")
    for option, value, least in (("train", train, 1), ("test", test, 1), ("points", points, 0)):
        if value < least:
            raise UsageError(f"--{option} must be {least} or more, not {value}")
    if system == "drivaerml" and (train, test) != _SPLIT:
        raise UsageError("--train and --test aren't for drivaerml, which is split by --split")
    if system != "drivaerml" and (split is not None or points != _DRAWN):
        raise UsageError(f"--split and --points are for drivaerml; {system} is split by --train and --test")


def _package_version() -> str:
    from importlib.metadata import version

    return version("lpbf-flare")


def _report(out: Path, points: PointSchema, records: tuple[CaseRecord, ...], remarks: list[Remark]) -> None:
    from rich.table import Table

    from lpbf_data.durable import sha256_of_file
    from lpbf_data.stores.manifest import MANIFEST_NAME

    table = Table(title=f"{points.name}, {out}", title_justify="left")
    for name in ("split", "cases", "points", "size"):
        table.add_column(name, justify="left" if name == "split" else "right")
    placed = [(record, record.placement) for record in records if record.placement is not None]
    for split in dict.fromkeys(placement.split for _, placement in placed):
        mine = [(record, placement) for record, placement in placed if placement.split == split]
        files = {placement.parquet_file: placement.parquet_bytes or 0 for _, placement in mine}
        count = sum(record.num_points or 0 for record, _ in mine)
        table.add_row(split, f"{len(mine):,}", f"{count:,}", f"{sum(files.values()) / 1e6:,.1f} MB")
    console = open_console()
    console.print(table)
    console.print(f"SHA-256 of {MANIFEST_NAME}: {sha256_of_file(out / MANIFEST_NAME)}")
    print_remarks(remarks, console)


def main() -> None:
    """Run the command."""
    run(convert, "python -m pipelines.benchmarks.convert", positional=("system",))


if __name__ == "__main__":
    main()
