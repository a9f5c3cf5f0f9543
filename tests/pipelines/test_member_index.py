"""The index of an archive's members: the same files as the archive's own directory tells, or none."""

from __future__ import annotations

import dataclasses
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lpbf_data.errors import CaseError
from pipelines.build import run_build
from pipelines.building.listing import ArchiveTask, list_archive
from pipelines.sources.archive import Archive, archive_at
from pipelines.sources.case_files import CaseLocation, open_case
from pipelines.sources.locations import size_and_version
from pipelines.sources.member_index import IndexRange, read_members
from tests.netfabb_cases import Part, write_part, zip_folder
from tests.pipelines.test_build import request


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for number in range(3):
        write_part(tmp_path / "cases", Part(f"{number}_11b839a3_1", shape=(2, 2, 1 + number)))
    return zip_folder(tmp_path / "data.zip", tmp_path / "cases")


def listed(archive: Path) -> tuple[CaseLocation, ...]:
    (archive.parent / "listings").mkdir(exist_ok=True)
    return list_archive(ArchiveTask(str(archive), archive.name, True, archive.parent / "listings")).locations


def test_cases_open_without_the_directory(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locations = listed(archive)
    plain = {x.prefix: open_case(dataclasses.replace(x, index=None)) for x in locations}
    monkeypatch.setattr(Archive, "__init__", lambda *_: pytest.fail("the archive's directory was read"))
    assert len(locations) == 3
    for location in locations:
        files = open_case(location)
        assert dict(files.sizes) == dict(plain[location.prefix].sizes)
        assert files.signature() == location.signature
        assert all(files.read(name) == plain[location.prefix].read(name) for name in files.sizes)


def test_an_index_that_is_gone_cut_or_old_is_not_used(archive: Path) -> None:
    location = listed(archive)[1]
    assert location.index is not None
    mark = (archive.stat().st_size, str(archive.stat().st_mtime_ns))
    assert read_members(location.index, mark) is not None
    assert read_members(location.index, (mark[0] + 1, mark[1])) is None
    index = Path(location.index.path)
    whole = index.read_bytes()
    for kept in (0, 7, len(whole) // 2, len(whole) - 1):
        index.write_bytes(whole[:kept])
        assert read_members(location.index, mark) is None
        assert open_case(location).signature() == location.signature
    index.unlink()
    assert open_case(location).signature() == location.signature
    # The next listing writes it again.
    assert listed(archive)[1].index == location.index
    assert index.read_bytes() == whole


def test_rows_that_lie_read_nothing_that_is_not_there(archive: Path) -> None:
    location = listed(archive)[0]
    assert location.index is not None
    mark = (archive.stat().st_size, str(archive.stat().st_mtime_ns))
    for first, count in ((10**9, 5), (-1, 2), (0, -1)):
        assert not read_members(IndexRange(location.index.path, first, count), mark)


def test_a_changed_archive_is_told_by_its_own_directory(archive: Path) -> None:
    location = listed(archive)[0]
    with zipfile.ZipFile(archive, "a") as target:
        target.writestr(f"{location.prefix}/results/more.txt", "x")
    assert "results/more.txt" in open_case(location).sizes
    assert open_case(location).signature() != location.signature
    archive.write_bytes(b"no zip")
    with pytest.raises(CaseError):
        archive_at(str(archive))


def test_threads_of_a_worker_share_an_archive(archive: Path) -> None:
    locations = listed(archive)
    expected = [{name: open_case(x).read(name) for name in open_case(x).sizes} for x in locations]

    def read(number: int) -> bool:
        files = open_case(locations[number % 3])
        return all(files.read(name) == data for name, data in expected[number % 3].items())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(60)))


def test_an_index_with_altered_bytes_changes_nothing(archive: Path) -> None:
    """Each byte of the index in turn; a fresh file each time, as the index is mapped into memory."""
    location = listed(archive)[0]
    assert location.index is not None
    whole = Path(location.index.path).read_bytes()
    plain = dataclasses.replace(location, index=None)
    for place in range(0, len(whole), 97):
        altered = bytearray(whole)
        altered[place] ^= 0x41
        path = archive.parent / f"altered{place}.arrow"
        path.write_bytes(altered)
        moved = dataclasses.replace(location, index=dataclasses.replace(location.index, path=str(path)))
        assert dict(open_case(moved).sizes) == dict(open_case(plain).sizes)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"header_offset": 1 << 31}, "the archive's directory says that this member lies outside of the archive"),
        ({"header_offset": (1 << 64) - 1}, "lies outside of the archive"),
        ({"compress_size": 1 << 31}, "lies outside of the archive"),
        ({"compress_size": (1 << 64) - 1}, "lies outside of the archive"),
        ({"file_size": (1 << 64) - 1}, "bytes; at most"),
    ],
)
def test_a_member_that_lies_outside_of_the_archive_fails_its_own_case(
    archive: Path, lie: dict[str, int], message: str
) -> None:
    member = "results/mechanical_3.geo"
    with zipfile.ZipFile(archive, "a") as target:
        info = next(entry for entry in target.infolist() if entry.filename.endswith(member))
        for name, value in lie.items():
            setattr(info, name, value)
        target.writestr("readme.txt", "x")  # so that the directory is written again
    prefix = info.filename.removesuffix(f"/{member}")
    locations = {location.prefix: location for location in listed(archive)}
    broken = locations[prefix]
    for location in (broken, dataclasses.replace(broken, index=None)):
        with pytest.raises(CaseError, match=message) as caught:
            open_case(location).read(member)
        assert caught.value.path == member
    assert broken.index is not None
    assert read_members(broken.index, size_and_version(str(archive))) is not None  # the index could hold it
    records = run_build(request(archive, archive.parent / "lpbf"))
    assert [r.status for r in records if r.case_id != broken.case_id] == ["kept", "kept"]
    (failure,) = (r.failure for r in records if r.case_id == broken.case_id)
    assert failure is not None
    assert message in failure.failure_detail
    assert failure.failure_path == member


def test_a_directory_that_is_moved_reads_nothing_before_the_archive(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[-6:-2] = (int.from_bytes(data[-6:-2], "little") + 100).to_bytes(4, "little")  # where the directory begins
    archive.write_bytes(data)
    names = [(location, name) for location in listed(archive) for name in open_case(location).sizes]
    for location, name in names:
        with pytest.raises(CaseError, match=r"outside of the archive|header is damaged"):
            open_case(location).read(name)
    assert min(member.offset for members in archive_at(str(archive)).cases.values() for member in members.values()) < 0


def test_a_damaged_listing_is_made_again(archive: Path) -> None:
    locations = listed(archive)
    (kept,) = (archive.parent / "listings").glob("*.json")
    kept.write_bytes(kept.read_bytes()[:50])
    assert listed(archive) == locations
