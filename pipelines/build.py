"""`python -m pipelines.build --src netfabb_out/`: simulator output in, published data set out.

Find the cases, measure each once, select and split by the records, write whole shards, commit. Every stage is a pure
function of the one before; this module only strings them together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from tqdm import tqdm

from lpbf_data.command_line import run
from lpbf_data.errors import FailureReason, UsageError
from lpbf_data.manifest import MANIFEST_NAME, Manifest, decode_manifest, encode_manifest
from lpbf_data.record import CaseRecord, Failure, Placement
from lpbf_data.schema import DEFAULT_FIELDS, SCHEMA_VERSION
from pipelines.card import make_card
from pipelines.commit import begin_commit, committed_shards, finish_commit, is_intact, place_of
from pipelines.engine import Engine, check_workers, open_engine
from pipelines.groups import measure_group, plan_groups
from pipelines.request import BuildRequest, check_request
from pipelines.select import PUBLISHED, Filters, reject, split_records
from pipelines.shards import (
    FORMATS,
    ShardCase,
    ShardPlan,
    ShardResult,
    ShardTask,
    load_result,
    plan_shards,
    write_staged_shard,
)
from pipelines.sources import CaseLocation, Found, find_cases, open_case
from pipelines.summary import print_summary
from pipelines.workspace import MeasuredRef, Workspace, measured_key

BUILD_NAME: Final = "build.json"

_VERSIONED: Final = ("numpy", "pyarrow", "zarr", "numcodecs")


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
    time_limit: float = 600.0,
    replace: bool = False,
) -> int:
    """Convert NetFabb results into a data set of Parquet shards and Zarr parts.

    Args:
        src: Folders of cases (at any depth), single cases, zip archives, or folders of archives.
        out: Folder of the data set; the same command run again continues or extends it.
        filters: Limits that a case must meet to be kept.
        splits: Names and shares, or "published" for the plain split by case that mixes bodies of one design.
        seed: Seed of the splits.
        design_id: How a design is told: auto, folder, stl, a regular expression on the case id, or a CSV file with the
            columns case_id and design_id.
        fields: Fields to store, or "all"; the reductions over the build are always stored.
        formats: parquet, zarr, or both.
        workers: Worker processes on this machine, one a core by default; 0 works in this process.
        scheduler: Address of a running Dask scheduler to use instead, such as tcp://node1:8786.
        time_limit: Seconds that reading and measuring one case may take.
        replace: Let the data set drop cases of an earlier build that the sources don't hold.

    Returns:
        Exit status: 0, or 1 when no case was kept.
    """
    check_workers(workers)
    request = check_request(
        src, out, filters, splits, seed, design_id, fields, formats, time_limit=time_limit, replace=replace
    )
    console = Console(soft_wrap=True)
    started = time.monotonic()
    records = run_build(request, workers=workers, scheduler=scheduler)
    print_summary(records, request.out, seconds=time.monotonic() - started, console=console)
    _say_splits(records, request, console)
    if not any(record.status == "kept" for record in records):
        Console(stderr=True, soft_wrap=True).print(
            f"error: no case was kept; {request.out / MANIFEST_NAME} has the reason for each", style=None
        )
        return 1
    return 0


def _say_splits(records: Sequence[CaseRecord], request: BuildRequest, console: Console) -> None:
    filled = {record.placement.split for record in records if record.placement is not None}
    empty = [name for name in request.split_request.fractions if name not in filled]
    if filled and empty:
        designs = len({record.design_id for record in records if record.placement is not None})
        console.print(
            f"note: {designs} design{'s' * (designs != 1)} can't fill {len(request.split_request.fractions)} splits; "
            f"without cases: {', '.join(empty)} (bodies of one design stay together)"
        )


def run_build(
    request: BuildRequest, *, workers: int | None = None, scheduler: str | None = None
) -> tuple[CaseRecord, ...]:
    """Build a data set.

    Args:
        request: What to build.
        workers: Worker processes; see `open_engine`.
        scheduler: Address of a running Dask scheduler.

    Returns:
        The rows of the manifest.

    Raises:
        UsageError: If nothing is found, a source can't be read, or the output folder holds something else.
    """
    _check_output(request.out)
    found = find_cases(request.sources)
    workspace = Workspace(request.out)
    with workspace.locked():
        finish_commit(workspace)
        earlier = _earlier_manifest(request, found)
        locations, duplicates = _drop_duplicates(found.locations)
        with open_engine(workers, scheduler) as engine:
            measured = _measure(engine, workspace, locations, request.time_limit)
            records, plans = _write(engine, workspace, request, measured, earlier)
        everything = (*records, *duplicates, *found.failures)
        manifest = encode_manifest(everything)
        begin_commit(workspace, plans, request.formats, _documents(request, manifest))
        finish_commit(workspace)
    return decode_manifest(manifest).records


def _check_output(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"the output {out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not any((out / n).exists() for n in (".build", MANIFEST_NAME)):
        raise UsageError(f"the output folder {out} holds something else; choose another --out")


def _earlier_manifest(request: BuildRequest, found: Found) -> Manifest | None:
    """The manifest of an earlier build of the same set; refuse to drop cases that the sources don't hold."""
    path = request.out / MANIFEST_NAME
    if not path.exists():
        return None
    manifest = decode_manifest(path.read_bytes())
    names = {location.case_id for location in found.locations} | {record.case_id for record in found.failures}
    missing = sorted({r.case_id for r in manifest.records if r.status == "kept" and r.case_id not in names})
    if missing and not request.replace:
        raise UsageError(
            f"{request.out} holds a data set with {len(missing)} cases that the sources don't have, {missing[0]} among "
            "them; name their sources too, choose another --out, or drop them with --replace"
        )
    return manifest


def _earlier_splits(request: BuildRequest, manifest: Manifest | None) -> dict[str, str]:
    """Case id to split in the earlier build, if that was divided by the same rule."""
    path = request.out / BUILD_NAME
    if manifest is None or not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8")).get("configuration", {})
    if any(before.get(name) != request.configuration[name] for name in ("splits", "seed", "design_id")):
        return {}
    return {r.case_id: r.placement.split for r in manifest.records if r.placement is not None}


def _drop_duplicates(locations: Sequence[CaseLocation]) -> tuple[list[CaseLocation], list[CaseRecord]]:
    """Cases of one id are one case when their bytes agree, and none when they don't."""
    by_id: dict[str, list[CaseLocation]] = {}
    for location in locations:
        by_id.setdefault(location.case_id, []).append(location)
    unique: list[CaseLocation] = []
    failures: list[CaseRecord] = []
    for case_id, places in by_id.items():
        if len(places) == 1 or len({open_case(place).content_digest() for place in places}) == 1:
            unique.append(places[0])
            continue
        for place in places:
            others = ", ".join(f"{o.source.archive}:{o.source.member}" for o in places if o is not place)
            detail = f"another case with other content has the same id: {others}"
            failure = Failure(FailureReason.DUPLICATE_CASE, detail)
            failures.append(CaseRecord(case_id=case_id, source=place.source, failure=failure))
    return unique, failures


def _measure(
    engine: Engine, workspace: Workspace, locations: Sequence[CaseLocation], time_limit: float
) -> dict[str, ShardCase]:
    """Measure what isn't measured yet. Case id to case, failed ones included."""

    def key(location: CaseLocation) -> str:
        return measured_key(location.case_id, location.source, location.signature)

    known = workspace.load_measured()
    missing = [location for location in locations if key(location) not in known]
    for journal in workspace.attempts.iterdir():
        journal.unlink()
    tasks = plan_groups(missing, engine.num_workers, workspace.measured, workspace.attempts, time_limit)
    with tqdm(total=len(locations), initial=len(locations) - len(missing), desc="measure", unit="case") as bar:
        failures = 0
        for result in engine.map(measure_group, tasks):
            failures += result.failures
            bar.update(result.cases)
            bar.set_postfix(failed=failures)
    known |= workspace.load_measured() if tasks else {}
    return {location.case_id: ShardCase(location, known[key(location)]) for location in locations}


def _select(
    request: BuildRequest, cases: Mapping[str, ShardCase], earlier: Mapping[str, str]
) -> tuple[dict[str, CaseRecord], dict[str, str]]:
    """Records with designs and rejections, and the split of each kept case."""
    records = {}
    for case_id, case in cases.items():
        named = dataclasses.replace(case.record, design_id=request.namer(case.record))
        records[case_id] = reject(named, request.limits)
    return records, split_records(list(records.values()), request.split_request, request.seed, earlier)


def _write(
    engine: Engine,
    workspace: Workspace,
    request: BuildRequest,
    cases: Mapping[str, ShardCase],
    earlier: Manifest | None,
) -> tuple[list[CaseRecord], list[ShardPlan]]:
    """Write every shard; a case that can't be read any more fails, and the rest is planned anew."""
    cases = dict(cases)
    splits_before = _earlier_splits(request, earlier)
    while True:
        records, split_of = _select(request, cases, splits_before)
        chosen = {
            case_id: ShardCase(case.location, MeasuredRef(records[case_id], case.ref.group, case.ref.index))
            for case_id, case in cases.items()
        }
        plans = plan_shards(split_of, chosen, request.specs)
        results = _write_shards(engine, workspace, request, plans)
        failures = [record for result in results.values() for record in result.failures]
        if not failures:
            return _placed(records, plans, results, request.formats), plans
        for record in failures:
            cases[record.case_id] = ShardCase(cases[record.case_id].location, MeasuredRef(record, "", -1))


def _write_shards(
    engine: Engine, workspace: Workspace, request: BuildRequest, plans: Sequence[ShardPlan]
) -> dict[str, ShardResult]:
    """Results by key. A shard of the data set as it stands is used again when its bytes are intact."""
    committed = committed_shards(workspace)
    results: dict[str, ShardResult] = {}
    tasks = []
    for plan in plans:
        formats = [name for name in request.formats if name in committed.get(plan.key, {})]
        if len(formats) == len(request.formats):
            result = _committed_result(workspace, plan, committed[plan.key], request.formats)
            if result is not None:
                results[plan.key] = result
                continue
        tasks.append(ShardTask(plan, request.formats, workspace.measured, workspace.shards))
    cases = sum(len(plan.cases) for plan in plans)
    done = sum(len(plan.cases) for plan in plans if plan.key in results)
    sizes = {task.plan.key: len(task.plan.cases) for task in tasks}
    with tqdm(total=cases, initial=done, desc="write", unit="case") as bar:
        for result in engine.map(write_staged_shard, tasks):
            results[result.key] = result
            bar.update(sizes[result.key])
    return results


def _committed_result(
    workspace: Workspace, plan: ShardPlan, places: Mapping[str, str], formats: Sequence[str]
) -> ShardResult | None:
    result = load_result(workspace.shards, plan.key, formats, places=[workspace.out / places[name] for name in formats])
    return result if result is not None and is_intact(workspace, result, places) else None


def _placed(
    records: Mapping[str, CaseRecord],
    plans: Sequence[ShardPlan],
    results: Mapping[str, ShardResult],
    formats: Sequence[str],
) -> list[CaseRecord]:
    """Records with the place of each kept case, and statistics that were taken when it was written."""
    placed = dict(records)
    for plan in plans:
        result = results[plan.key]
        shard: dict[str, Any] = {}
        for name, what in (("parquet", "file"), ("zarr", "part")):
            if name in formats:
                shard[f"{name}_{what}"] = place_of(plan, name)
                shard[f"{name}_bytes"] = result.sizes[name]
                shard[f"{name}_sha256"] = result.digests[name]
        for row, case in enumerate(plan.cases):
            record = records[case.record.case_id]
            extra = result.statistics.get(record.case_id, {})
            placed[record.case_id] = dataclasses.replace(
                record,
                statistics=dict(record.statistics) | dict(extra),
                placement=Placement(plan.split, plan.index, row, **shard),
            )
    return list(placed.values())


def _documents(request: BuildRequest, manifest: bytes) -> dict[str, bytes]:
    """The files that stand beside the shards."""
    digest = hashlib.sha256(manifest).hexdigest()
    rows = decode_manifest(manifest).records
    card = make_card(rows, request.specs, request.formats, request.limits, request.splits, digest)
    return {
        "README.md": card,
        BUILD_NAME: _build_json(request, rows, digest),
        MANIFEST_NAME: manifest,
    }


def _build_json(request: BuildRequest, records: Sequence[CaseRecord], manifest_sha256: str) -> bytes:
    sources = sorted(f"{r.case_id}\0{r.source.source_digest}" for r in records)
    content = {
        "schema_version": SCHEMA_VERSION,
        "configuration": request.configuration,
        "leaks_between_splits": request.splits == PUBLISHED,
        "sources": sorted({record.source.archive for record in records}),
        "sources_sha256": hashlib.sha256("\n".join(sources).encode("utf-8", "surrogatepass")).hexdigest(),
        "manifest_sha256": manifest_sha256,
        "versions": {name: importlib.metadata.version(name) for name in ("lpbf-flare", *_VERSIONED)},
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def main() -> None:
    """Entry point of `lpbf-build`."""
    run(build, "python -m pipelines.build")


if __name__ == "__main__":
    main()
