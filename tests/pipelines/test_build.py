"""The build, end to end: what lands on disk, what becomes of broken cases, the same with any number of workers."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from lpbf_data import load_dataset
from lpbf_data.case.record import CaseRecord
from lpbf_data.durable import sha256_of_file, sha256_of_tree
from lpbf_data.errors import FailureReason, UsageError
from lpbf_data.stores.manifest import decode_manifest
from lpbf_data.stores.zarr_parts import ZarrPart
from pipelines.build import build, run_build
from pipelines.building.engine import Resources
from pipelines.building.request import BuildRequest, check_request
from pipelines.ensight import Dialect, Encoding
from pipelines.selection.filters import Filters
from pipelines.sources.finding import find_cases
from tests.commands import run_here
from tests.netfabb_cases import TERMINATED, Part, write_part, zip_folder


def request(src: Path | str, out: Path | str, **changes: object) -> BuildRequest:
    options: dict[str, object] = {
        "filters": Filters(),
        "splits": "train=0.5,test=0.5",
        "seed": 0,
        "design_id": "auto",
        "fields": ["displacement", "temperature", "von_mises_stress"],
        "formats": ["parquet", "zarr"],
        "time_limit": 60.0,
        "replace": False,
    }
    return check_request([str(src)], str(out), **(options | changes))  # type: ignore[arg-type]


def tree(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a data set, the workspace left out."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".build" not in path.parts
    }


def write_parts(folder: Path, count: int = 8) -> Path:
    for i in range(count):
        write_part(folder, Part(f"{100 + i // 2}_11b839a{i // 2}_{i}", shape=(2 + i, 3, 2), amplitude=0.1 + 0.01 * i))
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts") / "netfabb_out")


def test_what_lands_on_disk(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "lpbf"
    records = run_build(request(parts, out))
    assert len(records) == 8
    assert all(record.status == "kept" for record in records)
    manifest = decode_manifest((out / "manifest.parquet").read_bytes())
    assert manifest.records == records
    for record in records:
        place = record.placement
        assert place is not None
        assert place.parquet_file is not None
        assert place.zarr_part is not None
        parquet, part = out / place.parquet_file, out / place.zarr_part
        assert (parquet.stat().st_size, sha256_of_file(parquet)) == (place.parquet_bytes, place.parquet_sha256)
        assert sha256_of_tree(part) == (place.zarr_sha256, place.zarr_bytes)
        assert pq.read_table(parquet, columns=["case_id"])["case_id"].to_pylist()[place.row] == record.case_id
        assert ZarrPart(part).case_ids[place.row] == record.case_id
        assert record.source.source_digest
    designs = {r.design_id: set() for r in records}
    for record in records:
        assert record.placement is not None
        designs[record.design_id].add(record.placement.split)
    assert {len(splits) for splits in designs.values()} == {1}
    described = json.loads((out / "build.json").read_text())
    assert described["configuration"]["filters"]["max_points"] == 50_000
    assert described["manifest_sha256"] == sha256_of_file(out / "manifest.parquet")
    assert str(tmp_path) not in (out / "build.json").read_text() + (out / "README.md").read_text()


def test_bytes_do_not_depend_on_workers_packing_or_repetition(parts: Path, tmp_path: Path) -> None:
    run_build(request(parts, tmp_path / "serial"))
    run_build(request(parts, tmp_path / "parallel"), Resources(workers=2))
    assert tree(tmp_path / "serial") == tree(tmp_path / "parallel")
    before = tree(tmp_path / "serial")
    run_build(request(parts, tmp_path / "serial"))
    assert tree(tmp_path / "serial") == before
    # From an archive the arrays are the same; only the names of the sources differ.
    run_build(request(zip_folder(tmp_path / "data.zip", parts), tmp_path / "packed"))
    shards = {name: digest for name, digest in before.items() if name.startswith(("data/", "lpbf.zarr/"))}
    packed = tree(tmp_path / "packed")
    assert {name: packed[name] for name in shards} == shards


def test_a_running_scheduler_is_used(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_build(request(parts, tmp_path / "serial"))
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        run_build(request(parts, tmp_path / "joined"), Resources(scheduler=cluster.scheduler_address))
    assert tree(tmp_path / "joined") == tree(tmp_path / "serial")
    monkeypatch.setattr("pipelines.building.engine._NO_SCHEDULER", 1.0)
    with pytest.raises(UsageError, match="doesn't answer"):
        run_build(request(parts, tmp_path / "nobody"), Resources(scheduler="tcp://127.0.0.1:9"))


def test_plain_datasets_opens_it_also_after_a_rebuild_in_place(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "lpbf"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for limit, kept in ((50_000, 8), (72, 4)):
        records = run_build(request(parts, out, filters=Filters(max_points=limit)))
        ids = {r.case_id: r for r in records if r.status == "kept"}
        assert len(ids) == kept
        opened = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
        found = {row["case_id"] for split in opened.values() for row in split}
        assert found == set(ids)
        streamed = datasets.load_dataset(str(out), streaming=True)
        assert {row["case_id"] for split in streamed.values() for row in split} == set(ids)
        row = opened["train"].with_format("numpy")[0]
        assert len(row["x"]) == row["num_points"]
        assert len(row["cells"]) == 8 * row["num_cells"]
        assert row["displacement_z"].max() == pytest.approx(row["displacement_z_max"])


def test_croissant_metadata_are_valid_and_lead_to_the_data(parts: Path, tmp_path: Path) -> None:
    import mlcroissant

    out = tmp_path / "lpbf"
    records = {r.case_id: r for r in run_build(request(parts, out))}
    described = mlcroissant.Dataset(out / "croissant.json")
    assert not described.metadata.ctx.issues.errors
    found = {row["cases/case_id"].decode(): row for row in described.records("cases")}
    assert set(found) == set(records)
    for case_id, row in found.items():
        measures = records[case_id].measures
        assert measures is not None
        assert row["cases/num_points"] == measures.num_points == len(row["cases/displacement_z"])
        assert len(row["cases/cells"]) == 8 * measures.num_cells
    run_build(request(parts, tmp_path / "zarr", formats=["zarr"]))
    assert not (tmp_path / "zarr" / "croissant.json").exists()


def failure_of(records: tuple[CaseRecord, ...], case_id: str) -> tuple[FailureReason, str | None, int | None]:
    (failure,) = (r.failure for r in records if r.case_id == case_id)
    assert failure is not None
    return failure.failure_reason, failure.failure_path, failure.failure_offset


def test_broken_cases_are_told_apart_and_stop_nothing(tmp_path: Path) -> None:
    src = tmp_path / "src"
    good = write_part(src, Part("good"))
    ascii_dialect = Dialect(Encoding.ASCII)

    def results(name: str, **options: object) -> Path:
        return write_part(src, Part(name, **options)) / "results"  # type: ignore[arg-type]

    write_part(src, Part("terminated", verdict=TERMINATED))
    shutil.rmtree(results("unprepared"))
    (results("missing") / "mechanical00_8.dis.ens").unlink()
    cut = results("cut") / "mechanical00_8.dis.ens"
    cut.write_bytes(cut.read_bytes()[:300])
    mismatch = results("mismatch")
    shutil.copy(mismatch / "mechanical00_1.svm.ens", mismatch / "mechanical00_8.svm.ens")
    element = results("element", dialect=ascii_dialect) / "mechanical_4.geo"
    element.write_bytes(element.read_bytes().replace(b"hexa8", b"tetra4"))
    fortran = results("dialect") / "mechanical_4.geo"
    fortran.write_bytes(b"\x50\0\0\0" + fortran.read_bytes())
    nan = results("nan") / "mechanical00_8.dis.ens"
    nan.write_bytes(nan.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    for name, order in (("inverted", [4, 5, 6, 7, 0, 1, 2, 3]), ("degenerate", [0, 1, 2, 3, 0, 1, 2, 3])):
        path = results(name) / "mechanical_4.geo"
        data = bytearray(path.read_bytes())
        cells = np.frombuffer(data, "<i4", 8, len(data) - 32)[order]
        data[-32:] = cells.tobytes()
        path.write_bytes(data)
    outside = results("outside") / "mechanical_4.geo"
    outside.write_bytes(outside.read_bytes()[:-4] + np.int32(10_000).tobytes())
    steps = results("steps") / "mechanical.case"
    steps.write_text(steps.read_text().replace("number of steps: 8", "number of steps: 9"))
    (src / "damaged.zip").write_bytes(b"PK\3\4 this is no archive")
    zip_folder(tmp_path / "twin.zip", src, inside="other")
    with zipfile.ZipFile(src / "unsafe.zip", "w") as archive:
        archive.writestr("SandBox/../../evil/mechanical.out", b"x")
    # A second case of one id: the same bytes are no conflict, other bytes are.
    write_part(src / "second", Part("same"))
    write_part(src / "third", Part("same"))
    write_part(src / "second", Part("differs", amplitude=0.1))
    write_part(src / "third", Part("differs", amplitude=0.2))

    records = run_build(request(src, tmp_path / "out"))
    reasons = {
        "terminated": (FailureReason.SOLVER_TERMINATED, "mechanical.out"),
        "unprepared": (FailureReason.MISSING_FILE, None),
        "missing": (FailureReason.MISSING_FILE, "results/mechanical00_8.dis.ens"),
        "cut": (FailureReason.TRUNCATED_FILE, "results/mechanical00_8.dis.ens"),
        "mismatch": (FailureReason.SIZE_MISMATCH, "results/mechanical00_8.svm.ens"),
        "element": (FailureReason.UNSUPPORTED_ELEMENT, "results/mechanical_4.geo"),
        "dialect": (FailureReason.UNSUPPORTED_DIALECT, "results/mechanical_4.geo"),
        "nan": (FailureReason.NON_FINITE, "results/mechanical00_8.dis.ens"),
        "inverted": (FailureReason.DEGENERATE_CELL, "results/mechanical_4.geo"),
        "degenerate": (FailureReason.DEGENERATE_CELL, "results/mechanical_4.geo"),
        "outside": (FailureReason.INDEX_OUT_OF_RANGE, "results/mechanical_4.geo"),
        "steps": (FailureReason.INCONSISTENT_STEPS, "results/mechanical.case"),
        "damaged.zip": (FailureReason.DAMAGED_ARCHIVE, "damaged.zip"),
    }
    for case_id, (reason, path) in reasons.items():
        found = failure_of(records, case_id)
        assert found[0] is reason, (case_id, found)
        assert path is None or found[1] == path
    assert failure_of(records, "nan")[2] == nan.stat().st_size - 4
    assert failure_of(records, "cut")[2] == 244
    twins = [r for r in records if r.case_id == "differs"]
    assert [r.failure.failure_reason for r in twins if r.failure] == [FailureReason.DUPLICATE_CASE] * 2
    (unsafe,) = (r for r in records if r.failure and r.failure.failure_reason is FailureReason.UNSAFE_MEMBER)
    assert "evil" in unsafe.case_id
    kept = [r.case_id for r in records if r.status == "kept"]
    assert kept == ["good", "same"]
    assert good.exists()


def test_a_case_that_turns_unreadable_between_measuring_and_writing(parts: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    shutil.copytree(parts, src)
    out = tmp_path / "out"
    run_build(request(src, out))
    victim = next(src.glob("*/results/mechanical00_6.dis.ens"))
    # The finished part is intact, an optional field of it is not: only writing can notice.
    broken = victim.with_name("mechanical00_6.sig.ens")
    broken.write_bytes(broken.read_bytes()[:-8])
    records = run_build(request(src, out, fields=["all"]))
    failed = [r for r in records if r.failure is not None]
    assert [r.case_id for r in failed] == [victim.parts[-3]]
    assert failed[0].failure is not None
    assert failed[0].failure.failure_reason is FailureReason.TRUNCATED_FILE
    assert failed[0].failure.failure_path == "results/mechanical00_6.sig.ens"
    assert sum(r.status == "kept" for r in records) == 7
    assert all("cauchy_stress_xx" in r.statistics for r in records if r.status == "kept")


def test_another_filter_reads_no_geometry_again(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    run_build(request(parts, out))
    import pipelines.building.groups

    def refuse(location: object) -> None:
        raise AssertionError("a case was measured again")

    monkeypatch.setattr(pipelines.building.groups, "measure_location", refuse)
    records = run_build(request(parts, out, filters=Filters(max_points=72)))
    assert sum(r.status == "kept" for r in records) == 4
    fresh = tmp_path / "fresh"
    monkeypatch.undo()
    run_build(request(parts, fresh, filters=Filters(max_points=72)))
    names = {p.name for p in (out / "data").iterdir()}
    assert names == {p.name for p in (fresh / "data").iterdir()}


def test_rejections_carry_criterion_value_and_limit(parts: Path, tmp_path: Path) -> None:
    records = run_build(request(parts, tmp_path / "out", filters=Filters(max_points=72)))
    # Cells are 2 + i, 3 and 2 along the axes: 36 points and 12 more for each i. The one of 72 points is at the limit.
    points = {f"{100 + i // 2}_11b839a{i // 2}_{i}": 36 + 12 * i for i in range(8)}
    assert {r.case_id: r.measures.num_points for r in records if r.measures} == points
    rejected = {r.case_id: r for r in records if r.status == "rejected"}
    told = {name: [(x.criterion, x.value, x.limit) for x in r.rejections] for name, r in rejected.items()}
    assert told == {name: [("max_points", count, 72)] for name, count in points.items() if count > 72}
    assert all(record.placement is None for record in rejected.values())
    kept = {r.case_id for r in records if r.status == "kept" and r.placement and not r.rejections}
    assert kept == {name for name, count in points.items() if count <= 72}


def test_an_output_folder_of_something_else_is_refused(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("…")
    with pytest.raises(UsageError, match="holds something else"):
        run_build(request(parts, out))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        run_build(request(parts, tmp_path / "file"))
    other = write_part(tmp_path / "other", Part("unrelated"))
    run_build(request(parts, tmp_path / "set"))
    with pytest.raises(UsageError, match="8 cases that the sources don't have"):
        run_build(request(other, tmp_path / "set"))
    records = run_build(request(other, tmp_path / "set", replace=True))
    assert [r.case_id for r in records] == ["unrelated"]
    assert len(list((tmp_path / "set" / "data").iterdir())) == 1


def test_two_builds_in_one_folder(parts: Path, tmp_path: Path) -> None:
    from pipelines.building.workspace import Workspace

    with Workspace(tmp_path / "out" / ".build", "out").locked(), pytest.raises(UsageError, match="another build works"):
        run_build(request(parts, tmp_path / "out"))


def test_growth_keeps_the_split_of_every_design(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_parts(src, 6)
    before = {r.case_id: r.placement.split for r in run_build(request(src, out)) if r.placement}
    write_part(src, Part("100_11b839a0_77", shape=(9, 9, 2)))
    for i in range(6):
        write_part(src, Part(f"90{i}_11b839b{i}_1", shape=(3, 3 + i, 2)))
    after = {r.case_id: r.placement.split for r in run_build(request(src, out)) if r.placement}
    assert {case: after[case] for case in before} == before
    assert after["100_11b839a0_77"] == before["100_11b839a0_0"]
    assert len(after) == 13


# Parquet files alone are built by other tests of the fast suite.
@pytest.mark.parametrize("formats", [pytest.param(["parquet"], marks=pytest.mark.slow), ["zarr"]])
def test_one_format_alone(parts: Path, tmp_path: Path, formats: list[str]) -> None:
    out = tmp_path / "out"
    run_build(request(parts, out, formats=formats))
    assert (out / "data").exists() == (formats == ["parquet"])
    assert (out / "lpbf.zarr").exists() == (formats == ["zarr"])
    # Adding the other one later gives what building both gives.
    run_build(request(parts, out))
    run_build(request(parts, tmp_path / "both"))
    assert tree(out) == tree(tmp_path / "both")


def test_mixed_materials_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_part(tmp_path / "src", Part("a"))
    write_part(tmp_path / "src", Part("b", material="inc625", shape=(4, 4, 2)))
    assert (
        build([str(tmp_path / "src")], out=str(tmp_path / "out"), workers=0, time_limit=math.inf, no_report=True) == 0
    )
    said = capsys.readouterr().out
    assert "mixed materials: inc625 (1), ti64 (1)" in said
    assert "**mixed**" in (tmp_path / "out" / "README.md").read_text()


def test_one_design_goes_to_train_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_part(tmp_path / "src", Part("a", interactive=True, stl="20163_3742f394_3_tivus.stl"))
    write_part(tmp_path / "src", Part("b", interactive=True, stl="20163_3742f394_2_tivus.stl", shape=(4, 4, 2)))
    assert (
        build([str(tmp_path / "src")], out=str(tmp_path / "out"), workers=0, time_limit=math.inf, no_report=True) == 0
    )
    manifest = decode_manifest((tmp_path / "out" / "manifest.parquet").read_bytes())
    assert manifest.splits == ("train",)
    assert {r.design_id for r in manifest.records} == {"20163_3742f394"}
    assert "note: no case is in the splits validation, test: all cases of a design" in capsys.readouterr().out


def test_a_rule_that_matches_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        shape = (2 + number, 2, 2)  # parts of one shape are one design
        write_part(tmp_path / "src", Part(f"20016{number}_3742f39{number}_1", shape=shape))
    splits = "train=0.5,validation=0.5,test=design:zzz"
    assert (
        build(
            [str(tmp_path / "src")],
            out=str(tmp_path / "out"),
            workers=0,
            time_limit=math.inf,
            splits=splits,
            no_report=True,
        )
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "note: the rule test=design:zzz matches no design; without cases: test" in said
    assert "no case is in" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--src", "nowhere"], "the source nowhere doesn't exist"),
        (["--src", ".", "--filters.max_points", "-3"], "--filters.max_points must be a positive number"),
        (["--src", ".", "--splits", "train"], "--splits can't be read"),
        (["--src", ".", "--fields", "heat"], "unknown field 'heat'"),
        (["--src", ".", "--formats", "hdf5"], "unknown format 'hdf5'"),
        (["--src", ".", "--workers", "-1"], "--workers must be 0 or more"),
        (["--src", ".", "--time_limit", "0"], "--time_limit must be positive"),
        (["--src", "."], "no NetFabb case found"),
    ],
)
def test_mistakes_are_one_sentence_and_a_status(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here("pipelines.build", *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "lpbf").exists() or not any((tmp_path / "lpbf").glob("data/*"))


def test_nothing_kept_is_an_error_with_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part(tmp_path / "src", Part("a", verdict=TERMINATED))
    monkeypatch.chdir(tmp_path)
    done = run_here("pipelines.build", "--src", "src", "--workers", "0")
    assert done.returncode == 1
    assert "no case was kept" in done.stderr
    assert "solver_terminated" in done.stdout
    assert len(decode_manifest((tmp_path / "lpbf" / "manifest.parquet").read_bytes())) == 1


def test_no_case_is_kept_under_a_name_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = write_parts(tmp_path / "netfabb_out", 2)
    inside, odd = sorted(parts.iterdir())
    (inside / "inner").mkdir()
    monkeypatch.chdir(inside / "inner")
    assert [location.case_id for location in find_cases([".."]).locations] == [inside.name]
    odd.rename(parts / "odd\\name")
    records = run_build(request(parts, tmp_path / "out", splits="train=1"))
    assert {record.case_id: record.status for record in records} == {inside.name: "kept", "odd\\name": "failed"}
    (failure,) = (record.failure for record in records if record.failure)
    assert failure.failure_reason is FailureReason.UNSAFE_MEMBER
    assert "rename its folder" in failure.failure_detail
    assert len(load_dataset(tmp_path / "out", cache=False)) == 1
