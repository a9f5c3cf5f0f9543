"""Sources as users have them: hidden files, several runs in a folder, names of other systems, unreadable folders."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flare_model.prediction.part_files import part_files
from lpbf_data.case.record import CaseRecord, SourceRef
from lpbf_data.errors import CaseError, FailureReason, UsageError
from lpbf_data.remarks import Remark, Treatment
from lpbf_data.stores.manifest import decode_manifest, encode_manifest, records_to_table
from pipelines.build import build
from pipelines.building.same_ids import drop_duplicates
from pipelines.ensight import read_case_file
from pipelines.measuring.convert import measure_location
from pipelines.netfabb.run import NetfabbRun
from pipelines.sources import locations
from pipelines.sources.case_files import FolderFiles, open_case
from pipelines.sources.finding import Found, find_cases
from tests.netfabb_cases import TERMINATED, Part, write_part, zip_folder

ROOT = Path(__file__).parents[2]


def kinds(found: Found) -> dict[str, int]:
    return {remark.kind: remark.count for remark in found.remarks}


def points_of(found: Found) -> dict[str, int]:
    """Every case is read to its end; id to number of points."""
    return {
        x.case_id: NetfabbRun(x.case_id, open_case(x)).read_case(["displacement"]).num_points for x in found.locations
    }


def add_resource_forks(folder: Path) -> int:
    """What macOS leaves on a stick: a file `._x` beside each `x`."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7Mac OS X")
    return len(files)


def merge_runs(folder: Path, *parts: Part) -> Path:
    """Several interactive runs in one working folder."""
    for part in parts:
        shutil.copytree(write_part(folder / "apart", part), folder / "src/work", dirs_exist_ok=True)
    return folder / "src"


@pytest.mark.parametrize("packed", [False, True])
def test_ignored_files_are_no_case_and_are_told(tmp_path: Path, packed: bool) -> None:
    root = write_part(tmp_path / "src", Part("a", interactive=True))
    plain = {x.case_id: open_case(x).content_digest() for x in find_cases([tmp_path / "src"]).locations}
    count = add_resource_forks(root)
    mac = tmp_path / "src/__MACOSX/a"
    mac.mkdir(parents=True)
    (mac / "._a_mechanical.out").write_bytes(b"x")
    (root / "Thumbs.db").write_bytes(b"x")
    source = zip_folder(tmp_path / "mac.zip", tmp_path / "src") if packed else tmp_path / "src"
    found = find_cases([source])
    assert points_of(found) == {"a": 48}
    # In a folder, __MACOSX isn't looked into and counts once.
    assert kinds(found) == {"litter": count + 2}
    assert {x.case_id: open_case(x).content_digest() for x in found.locations} == plain


def test_prediction_ignores_hidden_files(tmp_path: Path) -> None:
    for name in ("part.stl", "._part.stl", ".hidden.stl"):
        (tmp_path / name).write_bytes(b"x")
    results = tmp_path / "run"
    results.mkdir()
    for name in ("x_mechanical.case", "._x_mechanical.case"):
        (results / name).write_bytes(b"x")
    assert [path.name for path in part_files(str(tmp_path))] == ["part.stl", "x_mechanical.case"]


@pytest.mark.parametrize("packed", [False, True])
def test_two_runs_in_a_folder_are_two_cases(tmp_path: Path, packed: bool) -> None:
    source = merge_runs(
        tmp_path, Part("a", interactive=True), Part("a_b", interactive=True, shape=(4, 2, 3)), Part("c", stl="c.stl")
    )
    if packed:
        source = zip_folder(tmp_path / "x.zip", source)
    found = find_cases([source])
    assert points_of(found) == {"a": 48, "a_b": 60, "work": 48}
    assert kinds(found) == {"several_runs": 1}
    assert not any(name.startswith("a_b_") for x in found.locations if x.case_id == "a" for name in open_case(x).sizes)


def test_the_log_of_one_run_judges_no_other(tmp_path: Path) -> None:
    source = merge_runs(tmp_path, Part("a", interactive=True), Part("b", interactive=True))
    (source / "work/b_mechanical.out").unlink()
    shutil.rmtree(tmp_path / "apart")
    for path in (source / "work/results").glob("a_*"):
        path.unlink()
    complaints = {}
    for location in find_cases([source]).locations:
        with pytest.raises(CaseError) as caught:
            NetfabbRun(location.case_id, open_case(location)).read_case(["displacement"])
        complaints[location.case_id] = (caught.value.reason, caught.value.path)
    assert complaints["b"] == (FailureReason.MISSING_FILE, "b_mechanical.out")
    assert complaints["a"][0] is FailureReason.MISSING_FILE
    with pytest.raises(CaseError, match=r"holds 2 runs \(a, b\)"):
        NetfabbRun("work", FolderFiles(str(source / "work")))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_folders_that_cannot_be_read_are_told(open_folder: Path) -> None:
    for name in ("good", "cut"):
        write_part(open_folder, Part(name))
    (open_folder / "secret/deep").mkdir(parents=True)
    (open_folder / "cut/results").chmod(0)
    (open_folder / "secret").chmod(0)
    code = (
        "import os, sys\nfrom pipelines.sources.finding import find_cases\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"  # whom no permission keeps out
        "found = find_cases([sys.argv[1]])\n"
        "print([x.case_id for x in found.locations])\n"
        "print([(r.case_id, str(r.failure.failure_reason), r.failure.failure_path) for r in found.failures])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(open_folder)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.splitlines() == [
        "['good']",
        "[('cut', 'unreadable_file', 'cut/results'), ('secret', 'unreadable_file', 'secret')]",
    ], done.stderr


def test_packed_files_beside_cases_are_told(tmp_path: Path) -> None:
    write_part(tmp_path / "src", Part("a"))
    for name in ("b.tar.gz", "c.7z", "d.rar", "e.tgz"):
        (tmp_path / "src" / name).write_bytes(b"x")
    assert kinds(find_cases([tmp_path / "src"])) == {"packed_files": 4}
    zip_folder(tmp_path / "src/inner.zip", tmp_path / "src/a")
    outer = zip_folder(tmp_path / "outer.zip", tmp_path / "src")
    assert kinds(find_cases([outer])) == {"packed_files": 5}
    with pytest.raises(UsageError, match="only zip archives are; unpack it"):
        find_cases([tmp_path / "src/c.7z"])
    shutil.rmtree(tmp_path / "src/a")
    (tmp_path / "src/inner.zip").unlink()
    with pytest.raises(UsageError, match=r"no NetFabb case found .* packed files that aren't opened .*b\.tar\.gz"):
        find_cases([tmp_path / "src"])


@pytest.mark.parametrize("packed", [False, True])
def test_results_with_a_capital_and_accents_taken_apart(tmp_path: Path, packed: bool) -> None:
    root = write_part(tmp_path / "src", Part("Prüfkörper", interactive=True))
    (root / "results").rename(root / "Results")
    for path in (root / "Results").iterdir():
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name).replace(".geo", ".GEO")))
    source = zip_folder(tmp_path / "x.zip", tmp_path / "src") if packed else tmp_path / "src"
    assert points_of(find_cases([source])) == {"Prüfkörper": 48}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_an_archive_holds_twice(tmp_path: Path) -> None:
    """Files of two runs must not become one case; the same file twice is one file."""
    roots = [write_part(tmp_path / f"{n}", Part("p", amplitude=0.1 + n, shape=(2 + n, 2, 3))) for n in range(2)]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for folder, sources in (("both", roots), ("same", [roots[0], roots[0]])):
            for root in sources:
                for path in sorted(root.rglob("*.*")):
                    archive.write(path, f"{folder}/{path.relative_to(root).as_posix()}")
    found = find_cases([tmp_path / "x.zip"])
    assert points_of(found) == {"same": 36}
    (failed,) = found.failures
    assert failed.failure is not None
    assert (failed.case_id, failed.failure.failure_reason) == ("both", FailureReason.DAMAGED_ARCHIVE)
    assert "two files of this name with different content" in failed.failure.failure_detail
    assert failed.failure.failure_path.startswith("both/")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_doubled_slashes_and_points_in_the_names_of_a_zip(tmp_path: Path) -> None:
    """However a program joins names, `p1//file` is `p1/file`: nothing is lost, doubled or a case of its own."""
    root = write_part(tmp_path / "src", Part("p1"))
    plain = find_cases([zip_folder(tmp_path / "x.zip", tmp_path / "src", inside="b")])
    digest = open_case(plain.locations[0]).content_digest()
    spellings = ("b//p1/", "./b/p1/", "b/./p1/", "b/p1//", ".//b/././p1/", "b\\\\p1\\")
    for number, start in enumerate(spellings):
        for mixed in (False, True):
            path = tmp_path / f"{number}{mixed}/x.zip"
            path.parent.mkdir()
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(start, b"")
                archive.writestr(f"{start}results\\", b"")  # a folder, as .NET writes it
                for file in root.rglob("*.*"):
                    name = file.relative_to(root).as_posix()
                    inner = f"{start}{name}" if file.suffix == ".ens" else f"b/p1/{name}"
                    archive.write(file, inner if mixed else f"{start}{name.replace('/', '//')}")
                    if mixed:
                        archive.write(file, f"b/p1/./{name}")
            found = find_cases([path])
            assert [x.source for x in found.locations] == [x.source for x in plain.locations]
            assert not found.failures
            assert not found.remarks
            assert [open_case(x).content_digest() for x in found.locations] == [digest]
            assert points_of(found) == {"p1": 48}


def test_two_folders_of_results_are_told(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("p"))
    (root / "Results").mkdir(exist_ok=True)
    if len(list(root.glob("[Rr]esults"))) < 2:
        pytest.skip("capitals make no difference here")
    shutil.copy(root / "results/mechanical_1.geo", root / "Results")
    found = find_cases([tmp_path])
    assert kinds(found) == {"two_results": 1}
    assert points_of(found) == {"p": 48}


def test_names_of_a_zip_in_utf8_without_the_flag(tmp_path: Path) -> None:
    root = write_part(tmp_path / "src", Part("a"))
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in root.rglob("*.*"):
            archive.writestr(f"PrXXfkXXrper/{file.relative_to(root).as_posix()}", file.read_bytes())
    name = "Prüfkörper".encode()
    path.write_bytes(path.read_bytes().replace(b"PrXXfkXXrper", name))
    found = find_cases([path])
    assert points_of(found) == {"Prüfkörper": 48}
    assert set(kinds(found)) == {"member_names"}


def test_quoted_names_and_windows_1252(tmp_path: Path) -> None:
    write_part(tmp_path, Part("My Part", interactive=True))
    write_part(tmp_path, Part("Prüfkörper", interactive=True))
    for path in tmp_path.rglob("*.case"):
        lines = path.read_text(encoding="utf-8").splitlines()
        quoted = [
            line
            if "_*." not in line
            else f'{line[: line.index("./")]}"{line[line.index("./") :]}"'
            if "./" in line
            else f'{line[: line.index("results/")]}"{line[line.index("results/") :]}"'
            for line in lines
        ]
        path.write_text("\n".join(quoted), encoding="cp1252")
    found = find_cases([tmp_path])
    assert points_of(found) == {"My Part": 48, "Prüfkörper": 48}
    runs = {x.case_id: NetfabbRun(x.case_id, open_case(x)) for x in found.locations}
    assert runs["My Part"].remarks == []
    assert [r.kind for r in runs["Prüfkörper"].remarks] == ["case_file_encoding"]


def test_messages_name_the_file_of_an_interactive_run(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("a", interactive=True))
    case = root / "results/a_mechanical.case"
    case.write_text(case.read_text().replace("Displacement", "Movement"))
    with pytest.raises(CaseError) as caught:
        NetfabbRun("a", FolderFiles(str(root))).read_case(["displacement"])
    assert caught.value.path == "results/a_mechanical.case"
    case.unlink()
    (root / "a_mechanical.case").unlink()
    with pytest.raises(CaseError) as caught:
        NetfabbRun("a", FolderFiles(str(root)))
    assert caught.value.path == "results/a_mechanical.case"


@pytest.mark.parametrize(
    ("model", "times", "complaint"),
    [
        ("model: 1 x_*.geo", "time values file: times.txt", "a file of their own .time values file: times.txt."),
        ("model: 1 1 x.geo", "time values: 1.0", "all steps lie in one file .file set 1."),
    ],
)
def test_steps_that_lie_elsewhere(model: str, times: str, complaint: str) -> None:
    text = f"FORMAT\ntype: ensight gold\nGEOMETRY\n{model}\nTIME\ntime set: 1\nnumber of steps: 1\n{times}\n"
    with pytest.raises(CaseError, match=complaint) as caught:
        read_case_file(text.encode())
    assert caught.value.reason is FailureReason.UNSUPPORTED_DIALECT


def test_equal_folder_names_in_two_batches(tmp_path: Path) -> None:
    write_part(tmp_path / "one", Part("x"))
    write_part(tmp_path / "two", Part("x", amplitude=0.2))
    found = drop_duplicates(find_cases([tmp_path]).locations)
    assert found.unique == []
    details = [r.failure.failure_detail for r in found.failures if r.failure]
    assert [f":{batch}/x; rename the folder" in text for batch, text in zip(("two", "one"), details, strict=True)] == [
        True,
        True,
    ]
    # Interactive runs are told apart by what their files begin with, whatever the order of the sources.
    for batch, part in (("three", "p"), ("four", "q")):
        write_part(tmp_path / batch, Part(part, interactive=True)).rename(tmp_path / batch / "run 1")
    for order in (("three", "four"), ("four", "three")):
        found = drop_duplicates(find_cases([tmp_path / name for name in order]).locations)
        (remark,) = found.remarks
        assert {x.case_id: x.source.archive for x in found.unique} == {"p": "three", "q": "four"}
        assert (found.failures, remark.kind, remark.treatment) == ([], "renamed", Treatment.CHANGED)


def test_a_name_is_given_once_and_stays(tmp_path: Path) -> None:
    """A run called like its folder beside another run in a folder of that name; and a case that came before."""
    write_part(tmp_path / "one", Part("bracket", interactive=True))
    write_part(tmp_path / "two", Part("q", interactive=True)).rename(tmp_path / "two/bracket")
    locations = find_cases([tmp_path / "one", tmp_path / "two"]).locations
    for order in (locations, locations[::-1]):
        found = drop_duplicates(order)
        assert {x.case_id: x.source.archive for x in found.unique} == {"one_bracket": "one", "bracket": "two"}
    for first, ids in (("one", {"bracket": "one", "q": "two"}), ("two", {"one_bracket": "one", "bracket": "two"})):
        grown = drop_duplicates(locations, {(first, "bracket"): "bracket"})
        assert {x.case_id: x.source.archive for x in grown.unique} == ids


def test_a_whole_run_is_taken_before_an_incomplete_one(tmp_path: Path) -> None:
    write_part(tmp_path / "whole", Part("x"))
    write_part(tmp_path / "cut", Part("x"))
    (tmp_path / "cut/x/results/mechanical00_5.tmp.ens").unlink()
    write_part(tmp_path / "ended", Part("x", verdict=TERMINATED))
    found = drop_duplicates(find_cases([tmp_path]).locations)
    assert ([x.source.member for x in found.unique], found.failures) == (["whole/x"], [])
    (remark,) = found.remarks
    assert (remark.treatment, remark.kind, remark.count) == (Treatment.LEFT_OUT, "incomplete_runs", 2)
    assert remark.examples[0].endswith(
        f":cut/x (the file is missing (results/mechanical00_5.tmp.ens)), where {tmp_path.name}:whole/x is whole"
    )
    assert "the solver terminated" in remark.examples[1]
    shutil.rmtree(tmp_path / "whole")  # each of the others fails by its own reason
    found = drop_duplicates(find_cases([tmp_path]).locations)
    assert found.unique == []
    reasons = [r.failure.failure_reason for r in found.failures if r.failure]
    assert reasons == [FailureReason.MISSING_FILE, FailureReason.SOLVER_TERMINATED]


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_links_in_circles_and_into_the_void(tmp_path: Path) -> None:
    source = tmp_path / "src"
    root = write_part(source, Part("a", interactive=True))
    log = root / "a_mechanical.out"
    log.write_bytes(log.read_text(encoding="utf-8").encode("utf-16"))
    for link, target in (
        (source / "itself", "itself"),
        (source / "void.zip", "nowhere"),
        (source / "._x", "nowhere"),
        (root / "up", ".."),
        (root / "results/a_mechanical_99.geo", "a_mechanical_99.geo"),
    ):
        link.symlink_to(target)
    os.mkfifo(source / "pipe.zip")  # who opens it waits for ever
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        find_cases([source / "pipe.zip"])
    found = find_cases([source])
    (place,) = found.locations
    (remark,) = found.remarks
    assert (remark.kind, remark.count, remark.treatment) == ("broken_links", 4, Treatment.LEFT_OUT)
    assert len(NetfabbRun("a", open_case(place)).read_case(["temperature"]).points) == 48


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take text only")
def test_a_folder_on_disk_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """It is a row of the manifest; the others are built."""
    source, out = tmp_path / "src", tmp_path / "lpbf"
    write_part(source, Part("a"))
    os.rename(write_part(source, Part("b")), os.fsencode(source) + b"/Pr\xfcf")
    os.rename(source / "a/test.stl", os.fsencode(source) + b"/a/Pr\xfcf.stl")  # no file of a run: nothing is lost
    assert build([str(source)], out=str(out), workers=0, time_limit=math.inf, no_report=True) == 0
    records = decode_manifest((out / "manifest.parquet").read_bytes()).records
    told = {r.case_id: r.failure and (r.failure.failure_reason, r.failure.failure_path) for r in records}
    assert told == {"a": None, "Prüf": (FailureReason.UNREADABLE_FILE, "Prüf")}


def test_a_build_tells_its_remarks_once_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_part(tmp_path / "src", Part("a"))
    shutil.copytree(root, tmp_path / "src/b")
    shutil.copytree(root, tmp_path / "src/again/a")
    (root / "Thumbs.db").write_bytes(b"x")
    out = tmp_path / "lpbf"
    for _ in range(2):  # the second build measures nothing and says the same
        assert build([str(tmp_path / "src")], out=str(out), workers=0, time_limit=math.inf, no_report=True) == 0
        printed = capsys.readouterr().out
        for words in (
            "note: left out: hidden files",
            "note: left out: copies of",
            "note: kept: cases with equal results",
        ):
            assert printed.count(words) == 1
        remarks = decode_manifest((out / "manifest.parquet").read_bytes()).remarks
        assert {r.kind: r.examples for r in remarks} == {
            "litter": ("src:a/Thumbs.db",),
            "copies": ("src:again/a",),
            "equal_cases": ("a = b",),
        }
        stored = json.loads((out / "build.json").read_text(encoding="utf-8"))["remarks"]
        assert tuple(map(Remark.from_dict, stored)) == remarks


def test_sources_are_scanned_once_and_remote_cases_by_one_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for name in ("a", "b", "c"):
        system.put(str(write_part(tmp_path, Part(name))), f"/finding/{name}", recursive=True)
    asked: list[str] = []
    real = locations.list_remote

    def counted(url: str, **options: int) -> dict[str, tuple[int, str]]:
        asked.append(url)
        return real(url, **options)

    for module in ("finding", "case_files"):
        monkeypatch.setattr(f"pipelines.sources.{module}.list_remote", counted)
    found = find_cases(["memory://finding"])
    assert [x.case_id for x in found.locations] == ["a", "b", "c"]
    assert asked == ["memory://finding"]
    for location in found.locations:
        assert open_case(pickle.loads(pickle.dumps(location))).signature() == location.signature
        measured = measure_location(location).record
        assert measured.failure is None
    assert asked == ["memory://finding"]  # workers measure by the listing that comes along
    for location in found.locations:  # and whoever writes looks again
        assert open_case(location, anew=True).signature() == location.signature
    assert len(asked) == 4
    system.rm("/finding", recursive=True)


def test_manifests_without_remarks_are_read() -> None:
    record = CaseRecord("a", SourceRef("x", "a"), remarks=(Remark(Treatment.GUESSED, "k", "s", 2, ("e",)),))
    assert decode_manifest(encode_manifest([record])).records == (record,)
    sink = io.BytesIO()
    pq.write_table(records_to_table([record]).drop_columns(["remarks"]), sink)
    before = decode_manifest(sink.getvalue())
    assert (before.records, before.remarks) == ((dataclasses.replace(record, remarks=()),), ())
