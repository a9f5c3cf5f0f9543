"""`python -m pipelines.build --src netfabb_out/`: simulator output in, published data set out.

List the sources, measure each case once, select and split by the records, write whole shards, commit. Every stage is a
function of what the one before gave; this module only strings them together.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lpbf_data.case.schema import DEFAULT_FIELDS
from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks, say
from lpbf_data.errors import SchemaError, StoreError, UsageError
from lpbf_data.remarks import Remark
from pipelines.building.engine import SERIAL, Engine, Resources, open_engine
from pipelines.building.formats import FORMATS
from pipelines.selection.filters import Filters

if TYPE_CHECKING:
    from lpbf_data.case.record import CaseRecord
    from lpbf_data.stores.manifest import Manifest
    from pipelines.building.request import BuildRequest, BuildShare
    from pipelines.building.shards import ShardResult
    from pipelines.building.targets import Target
    from pipelines.building.workspace import Workspace
    from pipelines.sources.case_files import CaseLocation
    from pipelines.sources.finding import SourceScan


def build(
    src: list[str],
    *,
    out: str = "lpbf",
    filters: Filters = Filters(),  # noqa: B008 (frozen)
    splits: str = "train=0.7,validation=0.1,test=0.2",
    seed: int = 0,
    design_id: str = "auto",
    fields: list[str] = list(DEFAULT_FIELDS),  # noqa: B006 (read only; shown as the default in the help)
    formats: list[str] = list(FORMATS),  # noqa: B006
    workers: int | None = None,
    scheduler: str | None = None,
    cluster: str | None = None,
    part: str | None = None,
    finalise: bool = False,
    plan: bool = False,
    digest: bool = False,
    workspace: str | None = None,
    time_limit: float = 600.0,
    replace: bool = False,
    no_report: bool = False,
) -> int:
    """Convert NetFabb results into a data set of Parquet shards and Zarr parts.

    Args:
        src: Folders of cases (at any depth), single cases, zip archives, or folders of archives; paths, or URLs such as
            s3://bucket/batches.
        out: Folder of the data set, or a URL of an object store such as s3://bucket/lpbf; the same command run again
            continues or extends it.
        filters: Limits that a case must meet to be kept.
        splits: Names and shares; in place of a share, tallest:0.2, largest_displacement:0.2, design:<regex> or
            source:<regex> for a split that asks for extrapolation; or "published" for the plain split by case that
            mixes bodies of one design.
        seed: Seed of the splits.
        design_id: How designs are recognised: auto, folder, stl, a regular expression on the case id, or a CSV file
            with the columns case_id and design_id.
        fields: Fields to store, or "all"; the reductions over the build are always stored.
        formats: parquet, zarr, or both.
        workers: Worker processes on this machine, one per core by default; 0 works in one process,
            one case after the other (with --time_limit inf, in this one).
        scheduler: Address of a running Dask scheduler to use instead, such as tcp://node1:8786.
        cluster: Start a Dask cluster instead: slurm, or a YAML file with class, init and workers or adapt.
        part: Do only share i of N, such as 3/10, for job arrays; shares may run in any order and at the same time.
            Run them once to measure, once more to write, or leave the writing to --finalise.
        finalise: Join what the parts did.
        plan: Say what would be done, and do nothing.
        digest: Recognise changed files in folders by their content, not by size and time; reads every file.
        workspace: Folder that the build works in: .build in the data set, or here when that is on an object store.
        time_limit: Seconds that reading and measuring one case may take.
        replace: Let the data set drop cases of an earlier build that the sources don't hold.
        no_report: Leave out report.html and the pictures on the card.

    Returns:
        Exit status: 0, or 1 when no case was kept.
    """
    # Without a limit nothing is ended, and a debugger wants to see the cases in this process.
    resources = Resources(workers, scheduler, cluster, apart=math.isfinite(time_limit))
    if sum((part is not None, finalise, plan)) > 1:
        raise UsageError("--part, --finalise and --plan exclude each other")

    from lpbf_data.stores.manifest import MANIFEST_NAME
    from pipelines.building.forecast import forecast, print_forecast
    from pipelines.building.request import check_request, parse_share
    from pipelines.reporting.summary import print_summary, say_empty_splits

    request = check_request(
        src, out, filters, splits, seed, design_id, fields, formats,
        time_limit=time_limit, replace=replace, digest=digest, workspace=workspace,
        report=not no_report,
    )  # fmt: skip
    console = open_console()
    if plan:
        _open_target(request)
        print_forecast(forecast(request, resources), request, console)
        return 0
    if part is not None:
        console.print(run_part(request, parse_share(part), resources))
        return 0
    started = time.monotonic()
    manifest = build_manifest(request, resources, only_join=finalise)
    records = manifest.records
    print_summary(records, request.out, seconds=time.monotonic() - started, console=console)
    print_remarks(manifest.remarks, console)
    say_empty_splits(records, request.split_request, console)
    if not any(record.status == "kept" for record in records):
        raise UsageError(f"no case was kept; {request.out}/{MANIFEST_NAME} has the reason for each")
    return 0


@dataclass(frozen=True)
class Preparation:
    """What is known before anything is measured.

    Attributes:
        engine: Runs the tasks.
        workspace: Folder that the build works in.
        target: Where the data set goes.
        locations: One location per case.
        failures: Cases and archives that can't even be opened, or whose ids clash.
        remarks: What was left out of the sources, or guessed.
        earlier: Case id to split in an earlier build of the same set.
    """

    engine: Engine
    workspace: Workspace
    target: Target
    locations: Sequence[CaseLocation]
    failures: Sequence[CaseRecord]
    remarks: Sequence[Remark]
    earlier: Mapping[str, str]


@contextmanager
def prepared(
    request: BuildRequest, resources: Resources, scans: Sequence[SourceScan], workspace: Workspace, target: Target
) -> Iterator[Preparation]:
    """List the sources and compare them with what the output folder has; the caller has locked the workspace."""
    from pipelines.building.listing import list_sources
    from pipelines.building.same_ids import drop_duplicates

    with open_engine(resources) as engine:
        found = list_sources(request.sources, scans, engine, workspace)
        manifest = _earlier_manifest(target)
        before = manifest.records if manifest else ()
        cases = drop_duplicates(
            found.locations, {(x.source.archive, x.source.member): x.case_id for x in before if x.status == "kept"}
        )
        failures, remarks = (*cases.failures, *found.failures), (*found.remarks, *cases.remarks)
        _check_nothing_is_dropped(request, before, {x.case_id for x in cases.unique} | {x.case_id for x in failures})
        earlier = _earlier_splits(request, target, manifest)
        yield Preparation(engine, workspace, target, cases.unique, failures, remarks, earlier)


def run_build(
    request: BuildRequest, resources: Resources = SERIAL, *, only_join: bool = False
) -> tuple[CaseRecord, ...]:
    """Build a data set; the rows of what [build_manifest][pipelines.build.build_manifest] returns."""
    return build_manifest(request, resources, only_join=only_join).records


def build_manifest(request: BuildRequest, resources: Resources = SERIAL, *, only_join: bool = False) -> Manifest:
    """Build a data set.

    Args:
        request: What to build.
        resources: Who does the work.
        only_join: Refuse to measure: the parts of a job array must have measured every case.

    Returns:
        Its manifest: one row per case, and what was left out, changed, guessed or repaired.

    Raises:
        UsageError: If nothing is found, a source can't be read, the output folder holds something else, or another
            build works in it.
    """
    from lpbf_data.stores.manifest import decode_manifest, encode_manifest
    from pipelines.building.commit import begin_commit, finish_commit
    from pipelines.building.groups import plan_groups
    from pipelines.building.listing import scan_sources
    from pipelines.building.stages import measure, measured_cases, write_all
    from pipelines.building.workspace import Workspace
    from pipelines.reporting.add_report import add_report
    from pipelines.reporting.documents import NOT_ALWAYS_THERE, make_documents
    from pipelines.reporting.summary import collect_remarks

    target = _open_target(request)
    scans = scan_sources(request.sources, by_content=request.digest)  # refuse before a folder is made
    workspace = Workspace(request.workspace, request.out)
    with workspace.locked():
        finish_commit(workspace, target)
        with prepared(request, resources, scans, workspace, target) as ready:
            cases, missing = measured_cases(ready.locations, workspace.load_measured())
            if missing and only_join:
                raise UsageError(
                    f"{len(missing):,} cases aren't measured yet, {missing[0].case_id} among them; run the parts that "
                    "are missing, or leave --finalise out to measure here"
                )
            workspace.forget_attempts()
            tasks = plan_groups(
                missing, ready.engine.workers_to_plan_for, workspace.measured, workspace.attempts, request.time_limit
            )
            measure(ready.engine, tasks, total=len(ready.locations), done=len(cases))
            cases, missing = measured_cases(ready.locations, workspace.load_measured(transient=True))
            if missing:
                raise UsageError(
                    f"{len(missing):,} cases were measured, but {workspace.measured} doesn't hold them, "
                    f"{missing[0].case_id} among them; let all workers see this folder, and run the same command again"
                )
            records, plans = write_all(ready.engine, workspace, target, request, cases, ready.earlier)
        rows = (*records, *ready.failures)
        remarks = collect_remarks([*ready.remarks, *request.namer.remarks(rows)], rows)
        manifest = encode_manifest(rows, remarks)
        begin_commit(workspace, target, plans, request.formats, make_documents(request, manifest), NOT_ALWAYS_THERE)
        finish_commit(workspace, target)
        if request.report and (complaint := add_report(request, target)):
            say(f"note: {complaint}")
    return decode_manifest(manifest)


def run_part(request: BuildRequest, part: BuildShare, resources: Resources = SERIAL) -> str:
    """Do one share of a build: measure it, and write its shards once every case is measured.

    Args:
        request: What to build; the same for every part.
        part: Which share.
        resources: Who does the work.

    Returns:
        A sentence on what was done and what is left.

    Raises:
        UsageError: As for `run_build`.
    """
    from pipelines.building.groups import plan_groups
    from pipelines.building.listing import scan_sources
    from pipelines.building.stages import measure, measured_cases, select, shard_tasks, write
    from pipelines.building.workspace import Workspace

    target = _open_target(request)
    scans = scan_sources(request.sources, by_content=request.digest)
    workspace = Workspace(request.workspace, request.out)
    with workspace.locked_part(part.name), prepared(request, resources, scans, workspace, target) as ready:
        attempts = workspace.attempts / part.name
        shutil.rmtree(attempts, ignore_errors=True)
        attempts.mkdir()
        # Groups and their order depend on the sources and the number of parts only: every part sees the same.
        groups = plan_groups(ready.locations, part.count, workspace.measured, attempts, request.time_limit)
        known = workspace.load_measured()
        mine = [groups[i] for i in part.share(len(groups))]
        tasks = [task for task in mine if measured_cases(task.locations, known)[1]]
        total = sum(len(task.locations) for task in mine)
        measure(ready.engine, tasks, total=total, done=total - sum(len(task.locations) for task in tasks))
        cases, missing = measured_cases(ready.locations, workspace.load_measured(transient=True))
        if missing:
            return (
                f"part {part.index} of {part.count}: {total:,} cases measured; {len(missing):,} are left to other "
                "parts. When they are through, run the parts again to share the writing, or run --finalise"
            )
        plans = select(request, cases, ready.earlier).plans
        share = [plans[i] for i in part.share(len(plans))]
        results = list(write(ready.engine, shard_tasks(workspace, target, request, share)).values())
    return _said_of_part(part, results, len(plans))


def _said_of_part(part: BuildShare, results: Sequence[ShardResult], planned: int) -> str:
    """A sentence on the shards that a part wrote, and on those that it couldn't."""
    broken = [result for result in results if result.failures]
    written = sum(not result.failures for result in results)
    sentence = f"part {part.index} of {part.count}: {written:,} of {planned:,} shards written"
    if broken:
        first = broken[0].failures[0]
        sentence += (
            f"; {len(broken):,} not, because cases in them can't be read any more ({first.case_id}: {first.failure}): "
            "--finalise divides the others anew"
        )
    return f"{sentence}; --finalise joins them"


def _open_target(request: BuildRequest) -> Target:
    from pipelines.building.targets import open_target

    target = open_target(request.out)
    # A workspace of this project shows that the unfinished data set is its own, too.
    if target.is_foreign() and not request.workspace.exists():
        raise UsageError(f"the output folder {request.out} holds something else; choose another --out")
    with suppress(StoreError, SchemaError):  # whoever needs a manifest that is damaged says so
        if (earlier := _earlier_manifest(target)) is not None:
            earlier.need_parts(str(request.out), "python -m pipelines.build")
    return target


def _earlier_manifest(target: Target) -> Manifest | None:
    """The manifest of an earlier build of the same set."""
    from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest

    data = target.read(MANIFEST_NAME)
    return None if data is None else decode_manifest(data)


def _check_nothing_is_dropped(request: BuildRequest, before: Sequence[CaseRecord], found: set[str]) -> None:
    """Refuse to drop cases of an earlier build that the sources don't hold."""
    missing = sorted({r.case_id for r in before if r.status == "kept" and r.case_id not in found})
    if missing and not request.replace:
        raise UsageError(
            f"{request.out} holds a data set with {len(missing)} cases that the sources don't have, {missing[0]} among "
            "them; name their sources too, choose another --out, or drop them with --replace"
        )


def _earlier_splits(request: BuildRequest, target: Target, manifest: Manifest | None) -> dict[str, str]:
    """Case id to split in the earlier build, if that was divided by the same rule."""
    from pipelines.reporting.documents import BUILD_NAME

    data = target.read(BUILD_NAME)
    if manifest is None or data is None:
        return {}
    before = json.loads(data).get("configuration", {})
    if any(before.get(name) != request.configuration[name] for name in ("splits", "seed", "design_id")):
        return {}
    return {r.case_id: r.placement.split for r in manifest.records if r.placement is not None}


def main() -> None:
    """Entry point of `lpbf-build`."""
    run(build, "python -m pipelines.build")


if __name__ == "__main__":
    main()
