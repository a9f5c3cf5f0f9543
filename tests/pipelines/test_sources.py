"""Finding cases in folders and archives, and archives that lie."""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from lpbf_data.errors import CaseError, FailureReason, UsageError
from pipelines.netfabb.run import NetfabbRun
from pipelines.sources.case_files import open_case
from pipelines.sources.finding import find_cases, scan_source
from tests.netfabb_cases import Part, write_part, zip_folder


def ids(*sources: Path) -> list[str]:
    return [location.case_id for location in find_cases(sources).locations]


def test_any_nesting_is_found(tmp_path: Path) -> None:
    for depth, name in ((("one",), "a"), (("one", "two", "three"), "b"), ((), "c")):
        write_part(tmp_path.joinpath("src", *depth), Part(name, interactive=name == "b"))
    source = tmp_path / "src"
    (source / "notes").mkdir()
    (source / "notes" / "readme.txt").write_text("no case")
    assert ids(source) == ["a", "b", "c"]
    assert ids(source / "c") == ["c"]
    assert ids(source / "one", source / "c", source) == ["a", "b", "c"]
    members = {location.case_id: location.source.member for location in find_cases([source]).locations}
    assert members == {"a": "one/a", "b": "one/two/three/b", "c": "c"}


def test_a_part_without_results_is_found(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("a"))
    shutil.rmtree(root / "results")
    (root / "mechanical.case").unlink()
    assert ids(tmp_path) == ["a"]


@pytest.mark.parametrize("inside", ["SandBox", "some/where/deep", ""])
def test_archives_at_any_nesting(tmp_path: Path, inside: str) -> None:
    write_part(tmp_path / "cases", Part("a"))
    write_part(tmp_path / "cases", Part("b", interactive=True))
    (tmp_path / "zips").mkdir()
    path = tmp_path / "zips" / "data_0-2.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (tmp_path / "cases").rglob("*.*"):
            archive.write(file, "/".join(filter(None, (inside, file.relative_to(tmp_path / "cases").as_posix()))))
    assert ids(path) == ids(path.parent) == ["a", "b"]
    for location in find_cases([path]).locations:
        assert NetfabbRun(location.case_id, open_case(location)).read_case(["displacement"]).num_points == 48
    # The digest of a case doesn't depend on how it is packed.
    plain = {x.case_id: open_case(x).content_digest() for x in find_cases([tmp_path / "cases"]).locations}
    packed = {x.case_id: open_case(x).content_digest() for x in find_cases([path]).locations}
    assert plain == packed


def test_a_case_at_the_top_of_an_archive_has_its_name(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("x"))
    shutil.make_archive(str(tmp_path / "101635_11b839a3_5"), "zip", root)
    assert ids(tmp_path / "101635_11b839a3_5.zip") == ["101635_11b839a3_5"]


def test_windows_separators(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("x"))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in root.rglob("*.*"):
            info = zipfile.ZipInfo("placeholder")
            info.filename = "SandBox\\x\\" + str(file.relative_to(root)).replace("/", "\\")
            archive.writestr(info, file.read_bytes())
    assert ids(path) == ["x"]
    (location,) = find_cases([path]).locations
    assert NetfabbRun("x", open_case(location)).num_frames == 8


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write_part(tmp_path / "src", Part("a"))
    (tmp_path / "src" / "again").symlink_to(tmp_path / "src", target_is_directory=True)
    assert ids(tmp_path / "src") == ["a"]


def test_an_archive_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdef":
        write_part(tmp_path / "cases", Part(name))
    path = zip_folder(tmp_path / "x.zip", tmp_path / "cases")
    opened = []
    original = zipfile.ZipFile.__init__
    monkeypatch.setattr(
        zipfile.ZipFile, "__init__", lambda self, *a, **k: (opened.append(1), original(self, *a, **k))[1]
    )
    for location in find_cases([path]).locations:
        NetfabbRun(location.case_id, open_case(location)).read_case(["displacement"])
    assert len(opened) == 1


def test_nothing_found_and_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no NetFabb case found"):
        find_cases([tmp_path / "empty"])
    with pytest.raises(UsageError, match="doesn't exist"):
        find_cases([tmp_path / "nowhere"])
    (tmp_path / "x.zip").write_bytes(b"PK, but not really")
    with pytest.raises(UsageError, match="can't be read"):
        find_cases([tmp_path / "x.zip"])


def test_a_damaged_archive_among_others_is_one_failure(tmp_path: Path) -> None:
    write_part(tmp_path / "cases", Part("a"))
    good = zip_folder(tmp_path / "good.zip", tmp_path / "cases")
    (tmp_path / "bad.zip").write_bytes(good.read_bytes()[:-30])
    shutil.rmtree(tmp_path / "cases")
    found = find_cases([tmp_path])
    assert [x.case_id for x in found.locations] == ["a"]
    (failure,) = found.failures
    assert failure.case_id == "bad.zip"
    assert failure.failure is not None
    assert failure.failure.failure_reason is FailureReason.DAMAGED_ARCHIVE


def _archive_of_one(tmp_path: Path) -> Path:
    write_part(tmp_path / "cases", Part("a"))
    return zip_folder(tmp_path / "x.zip", tmp_path / "cases")


def _read_all(path: Path) -> CaseError:
    (location,) = find_cases([path]).locations
    files = open_case(location)
    with pytest.raises(CaseError) as caught:
        list(map(files.read, files.sizes))
    return caught.value


def test_a_flipped_byte_in_a_member(tmp_path: Path) -> None:
    path = _archive_of_one(tmp_path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("SandBox/a/results/mechanical00_8.dis.ens")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + 40] ^= 0x10
    path.write_bytes(data)
    error = _read_all(path)
    assert error.reason in (FailureReason.DAMAGED_ARCHIVE, FailureReason.OVERSIZED_MEMBER)
    assert error.path == "results/mechanical00_8.dis.ens"


def test_a_member_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    path = _archive_of_one(tmp_path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("SandBox/a/results/mechanical00_8.dis.ens")
    # Claim 100 bytes in the central directory, whose entries hold size and name 24 and 46 bytes from their start.
    data = bytearray(path.read_bytes())
    entry = data.rindex(info.filename.encode()) - 46
    assert struct.unpack_from("<I", data, entry + 24)[0] == info.file_size
    struct.pack_into("<I", data, entry + 24, 100)
    path.write_bytes(data)
    error = _read_all(path)
    assert error.reason is FailureReason.OVERSIZED_MEMBER
    assert "more than the 100 bytes" in str(error)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = _archive_of_one(tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SandBox/a/results/mechanical00_9.dis.ens", b"")
        info = archive.getinfo("SandBox/a/results/mechanical00_9.dis.ens")
        info.file_size = 8 << 30
    (location,) = find_cases([path]).locations
    with pytest.raises(CaseError) as caught:
        open_case(location).read("results/mechanical00_9.dis.ens")
    assert caught.value.reason is FailureReason.OVERSIZED_MEMBER


def test_a_long_run_of_zeros_stops_at_the_size_it_claims(tmp_path: Path) -> None:
    path = _archive_of_one(tmp_path)
    name = "SandBox/a/results/mechanical00_9.dis.ens"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(200_000_000))
        archive.getinfo(name).file_size = 1000
        archive.getinfo(name).CRC = zlib.crc32(bytes(1000))
    (location,) = find_cases([path]).locations
    with pytest.raises(CaseError) as caught:
        open_case(location).read("results/mechanical00_9.dis.ens")
    assert caught.value.reason is FailureReason.OVERSIZED_MEMBER


@pytest.mark.parametrize(
    "name", ["SandBox/../../evil/results/mechanical.case", "/evil/mechanical.out", "C:/evil/x.out"]
)
def test_a_name_that_leaves_the_archive_is_a_failure_of_its_own(tmp_path: Path, name: str) -> None:
    path = _archive_of_one(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    found = find_cases([path])
    assert [x.case_id for x in found.locations] == ["a"]
    (record,) = found.failures
    assert record.failure is not None
    assert record.failure.failure_reason is FailureReason.UNSAFE_MEMBER
    assert "evil" in record.case_id


def test_an_encrypted_member(tmp_path: Path) -> None:
    path = _archive_of_one(tmp_path)
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(b"PK\1\2", at)) >= 0:
        data[at + 8] |= 1
        at += 4
    path.write_bytes(data)
    assert "encrypted" in str(_read_all(path))


def test_a_signature_follows_content(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("a"))
    (before,) = find_cases([tmp_path]).locations
    file = root / "results" / "mechanical00_8.dis.ens"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    (after,) = find_cases([tmp_path]).locations
    assert before.signature != after.signature
    assert open_case(after).signature() == after.signature


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("a"))
    (location,) = find_cases([tmp_path]).locations
    files = open_case(location)
    (root / "mechanical.out").unlink()
    with pytest.raises(CaseError) as caught:
        files.read("mechanical.out")
    assert caught.value.reason is FailureReason.UNREADABLE_FILE


def test_a_file_too_large_to_read_does_not_stop_a_scan_by_content(tmp_path: Path) -> None:
    for name in "ab":
        write_part(tmp_path, Part(name))
    with (tmp_path / "a" / "results" / "notes.bin").open("wb") as file:
        file.truncate((1 << 30) + 1)
    found = scan_source(str(tmp_path), by_content=True).found
    assert {x.case_id: x.signature.partition(":")[0] for x in found.locations} == {"a": "stat", "b": "content"}
