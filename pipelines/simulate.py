"""`python -m pipelines.simulate --out netfabb_out/`: simulated builds in the form of NetFabb's results.

Plan the parts, simulate each in a worker, rename its folder into the output when it is whole. The same command run
again goes on where it was stopped.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks, progress, say
from lpbf_data.durable import write_durably
from lpbf_data.errors import UsageError
from lpbf_data.geometry.surface_formats import UNIT_SPELLINGS, Units
from lpbf_data.remarks import Remark
from pipelines.building.engine import Resources, open_engine
from pipelines.simulation.choices import (
    FAMILY_NAMES,
    CalibrationName,
    DeviceName,
    DrawName,
    EncodingName,
    Naming,
    Results,
)

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.simulation.case_task import CaseTask
    from pipelines.simulation.parts.outcomes import CaseOutcome
    from pipelines.simulation.request import SimulationRequest

_EXAMPLES: Final = 3
_IDLE_LIMIT: Final = 180.0  # seconds without work after which a worker hangs: simulating never waits


def simulate(
    out: str,
    *,
    cases: int = 24,
    seed: int = 0,
    points: int = 2000,
    material: str = "Ti64",
    calibration: CalibrationName | None = None,
    families: list[str] = list(FAMILY_NAMES),  # noqa: B006 (read only; shown as the default in the help)
    draw: DrawName | None = None,
    parts_of: str | None = None,
    stl: list[str] = [],  # noqa: B006
    part: list[str] = [],  # noqa: B006
    units: Units | None = None,
    encoding: EncodingName = "binary",
    naming: Naming = "batch",
    archive: bool = False,
    failure_rate: float = 0.0,
    results: Results = "whole",
    device: DeviceName = "cpu",
    workers: int | None = None,
    scheduler: str | None = None,
    cluster: str | None = None,
) -> int:
    """Simulate laser powder bed fusion of many parts and write results as NetFabb does.

    Args:
        out: Folder of the results; the same command run again continues or extends it.
        cases: Number of parts.
        seed: Another seed gives other parts.
        points: Median number of points of a part.
        material: Material of the parts: Ti64, Inc625, SS316L, 15-5PH, AlSi10Mg, or a YAML file with one of your own.
        calibration: How layers shrink: measured (meets NIST's bridges; the default) or netfabb (meets NetFabb's
            results); by default what a material's file says.
        families: Families of parts to draw from.
        draw: Choose parts by their simulation: published (heights, displacements and aspect ratios as in the published
            data set) or balanced (about half of the parts without recoater interference); by default parts are taken as
            planned.
        parts_of: Output of an earlier simulation with a draw: mesh its first parts with other numbers of points.
        stl: Surface files (STL, OBJ, PLY, OFF, 3MF) to simulate instead of drawn parts, one case per body; they must be
            watertight.
        part: Parts that are known by name, to simulate instead of drawn ones: amb2018_bridge (of NIST's AM-Bench 2018),
            cantilever.
        units: Unit of lengths in surface files; by default the one that a file states (3MF), else mm.
        encoding: Binary or text results.
        naming: File names of a batch run (test.stl, mechanical.out) or of an interactive one (<case>_mechanical.out).
        archive: Pack cases into zip archives, a hundred each.
        failure_rate: Share of cases that fail on purpose, in the ways of NetFabb's failed runs.
        results: Every result that NetFabb writes (whole), or those alone that a data set is built from (lean), a
            quarter of the bytes.
        device: Where equations are solved: cpu, or cuda for this machine's GPU, which workers share.
        workers: Worker processes on this machine, one per core by default; 0 works in this process.
        scheduler: Address of a running Dask scheduler to use instead, such as tcp://node1:8786.
        cluster: Start a Dask cluster instead: slurm, or a YAML file with class, init and workers or adapt.

    Returns:
        Exit status: 0, or 1 when no case was completed.
    """
    resources = Resources(workers, scheduler, cluster)

    from pipelines.simulation.request import SimulationOptions, check_request

    options = SimulationOptions(
        cases,
        seed,
        points,
        material,
        tuple(families),
        tuple(stl),
        encoding,
        naming,
        archive,
        failure_rate,
        units,
        calibration,
        draw,
        parts_of,
        results,
        tuple(part),
        device,
    )
    request = check_request(out, options)
    outcomes = run_simulation(request, resources)
    print_outcomes(outcomes, Path(out), open_console(), request.remarks)
    return 0 if any(outcome.status == "completed" for outcome in outcomes) else 1


def run_simulation(request: SimulationRequest, resources: Resources) -> tuple[CaseOutcome, ...]:
    """Simulate every part that isn't finished yet.

    Args:
        request: What to simulate.
        resources: Who does the work.

    Returns:
        The outcome of each case, in their order.

    Raises:
        UsageError: If the folder holds something else, or another simulation works there.
    """
    from pipelines.simulation.case_task import run_case
    from pipelines.simulation.results.archives import archived

    with _open_working_folder(request) as work:
        packed = archived(request.out) if request.options.archive else 0
        ready = work / "ready" if request.options.archive else request.out
        tasks, outcomes = _plan_tasks(request, work, ready, packed)
        if outcomes and tasks:
            say(f"{request.out} goes on: {len(outcomes):,} of {len(request.parts):,} cases are there")
        with progress(len(request.parts), "simulate", "case", initial=len(outcomes)) as bar:
            if tasks:
                with open_engine(resources, idle_limit=_IDLE_LIMIT) as engine:
                    for outcome in engine.map(run_case, tasks):
                        outcomes[outcome.case_id] = outcome
                        bar.set_postfix(failed=sum(one.status == "failed" for one in outcomes.values()))
                        bar.update()
        if request.options.archive:
            _pack(request, ready, packed)
    return tuple(outcomes[case_id] for case_id, _ in request.parts)


@contextmanager
def _open_working_folder(request: SimulationRequest) -> Iterator[Path]:
    """The folder `.simulate` of the output: outcomes of finished cases, and cases that aren't finished."""
    from filelock import FileLock, Timeout

    from lpbf_data.file_access.ignored_files import WORKING_FOLDER

    work = request.out / WORKING_FOLDER
    _check_output(request, work)
    for name in ("outcomes", "staging", "ready"):
        (work / name).mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"another simulation works in {request.out}; wait for it, or choose another --out") from error
    try:
        write_durably(work / "request.json", (json.dumps(request.configuration, indent=1) + "\n").encode())
        remarks = [remark.as_dict() for remark in request.remarks]
        write_durably(work / "remarks.json", (json.dumps(remarks, indent=1) + "\n").encode())
        shutil.rmtree(work / "staging")
        (work / "staging").mkdir()
        yield work
    finally:
        lock.release()


def _check_output(request: SimulationRequest, work: Path) -> None:
    out, known = request.out, work / "request.json"
    if out.exists() and not out.is_dir():
        raise UsageError(f"the output {out} is a file; choose another --out")
    if known.exists():
        before = json.loads(known.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(request.configuration))
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if changed:
            said = ", ".join(_change_in_words(name, before.get(name), now.get(name)) for name in changed)
            raise UsageError(f"{out} was simulated with {said}; choose another --out")
    elif out.is_dir() and any(out.iterdir()) and not work.is_dir():
        raise UsageError(f"the output folder {out} holds something else; choose another --out")


def _change_in_words(name: str, before: object, now: object) -> str:
    """What a request differs in from the one before, with both values where they are short.

    >>> _change_in_words("points", 2000, 500), _change_in_words("material", {"name": "a"}, {"name": "b"})
    ('points 2000, not 500', 'other material')
    """
    if isinstance(before, dict | list) or isinstance(now, dict | list):
        return f"other {name}"
    return f"{f'no {name}' if before is None else f'{name} {before}'}, not {'none' if now is None else now}"


def _plan_tasks(
    request: SimulationRequest, work: Path, ready: Path, packed: int
) -> tuple[list[CaseTask], dict[str, CaseOutcome]]:
    """Cases to simulate, and the outcomes of those that are finished."""
    from pipelines.simulation.case_task import CaseTask
    from pipelines.simulation.parts.outcomes import load_outcome
    from pipelines.simulation.results.failures import plan_failure

    options = request.options
    tasks: list[CaseTask] = []
    outcomes: dict[str, CaseOutcome] = {}
    for number, (case_id, part) in enumerate(request.parts):
        outcome = load_outcome(work / "outcomes", case_id)
        if outcome is not None and (number < packed or (ready / case_id).is_dir()):
            outcomes[case_id] = outcome
            continue
        tasks.append(
            CaseTask(
                case_id,
                part,
                options.points,
                request.material,
                options.encoding,
                options.naming == "interactive",
                plan_failure(options.seed, case_id, options.failure_rate),
                (work / "staging").absolute(),
                ready.absolute(),
                (work / "outcomes").absolute(),
                options.results,
                options.device,
            )
        )
    return tasks, outcomes


def _pack(request: SimulationRequest, ready: Path, packed: int) -> None:
    from pipelines.simulation.results.archives import archive_path, plan_archives, write_archive

    for first, last in plan_archives(packed, len(request.parts)):
        folders = [ready / case_id for case_id, _ in request.parts[first:last]]
        write_archive(archive_path(request.out, (first, last)), folders)
        for folder in folders:
            shutil.rmtree(folder)


def print_outcomes(
    outcomes: Sequence[CaseOutcome], out: Path, console: Console, remarks: Sequence[Remark] = ()
) -> None:
    """Print what became of the cases; `pipelines.build` on the same folder counts the same.

    Args:
        outcomes: Outcomes of the cases.
        out: Folder of the results.
        console: Where to print.
        remarks: What was guessed or repaired before the cases began; those of the cases are added.
    """
    from rich.table import Table

    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    completed = [outcome for outcome in outcomes if outcome.status == "completed"]
    beyond = [outcome for outcome in completed if outcome.rejected_by]
    table = Table(title=f"simulated builds {out}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("cases", f"{len(outcomes):,}")
    for name, said in _candidates(outcomes):
        table.add_row(name, said)
    table.add_row("failed", f"{len(failed):,}")
    if lost := sum(not outcome.survived for outcome in failed):
        table.add_row("  no build would survive", f"{lost:,} ({lost / len(outcomes):.1%})")
    table.add_row("completed", f"{len(completed):,}")
    table.add_row("  within the published limits", f"{len(completed) - len(beyond):,}")
    table.add_row("  beyond them", f"{len(beyond):,}")
    for criterion, count in sorted(Counter(name for one in beyond for name in one.rejected_by).items()):
        table.add_row(f"    {criterion}", f"{count:,}")
    if clear := [one for one in completed if one.candidate is not None]:
        share = sum(not one.recoater_interference for one in clear) / len(clear)
        table.add_row("without recoater interference", f"{share:.0%}")
    table.add_row("points", f"{sum(outcome.num_points for outcome in completed):,}")
    console.print(table)
    for outcome in [one for one in failed if not one.asked_for][:_EXAMPLES]:
        console.print(f"{outcome.case_id} failed: {outcome.reason}")
    print_remarks([*remarks, *(one for outcome in outcomes for one in outcome.remarks)], console)


def _candidates(outcomes: Sequence[CaseOutcome]) -> list[tuple[str, str]]:
    """Rows on the candidates of a draw: how many there were, and why some weren't accepted."""
    passed_over = sum((Counter(outcome.passed_over) for outcome in outcomes), Counter[str]())
    accepted = sum(outcome.candidate is not None for outcome in outcomes)
    total = accepted + passed_over.total()
    if not total:
        return []
    rows = [(f"  {name}", f"{count:,} ({count / total:.1%})") for name, count in sorted(passed_over.items())]
    return [("candidates", f"{total:,}"), *rows]


def main() -> None:
    """Entry point of `lpbf-simulate`."""
    run(simulate, "python -m pipelines.simulate", spellings={"units": UNIT_SPELLINGS})


if __name__ == "__main__":
    main()
