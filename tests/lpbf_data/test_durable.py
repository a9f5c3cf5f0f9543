"""What is flushed to the disk, and when, so that a power cut leaves the old or the new content."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lpbf_data.durable import flush_tree, write_durably

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc names the files that are open")


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """Every file and folder that is flushed, with the bytes that it then has."""
    seen: list[tuple[Path, int]] = []

    def see(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append((path, 0 if path.is_dir() else path.stat().st_size))

    monkeypatch.setattr(os, "fsync", see)
    return seen


def test_a_file_is_flushed_before_it_has_its_name_and_its_folder_behind(
    flushed: list[tuple[Path, int]], tmp_path: Path
) -> None:
    write_durably(tmp_path / "new" / "file", b"12345")
    (aside, size), (folder, _) = flushed
    assert (aside.parent, size) == (tmp_path / "new", 5)
    assert aside.name != "file"
    assert not aside.exists()
    assert folder == tmp_path / "new"
    assert (tmp_path / "new" / "file").read_bytes() == b"12345"


def test_all_files_of_a_tree_are_flushed_before_its_folders(flushed: list[tuple[Path, int]], tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    files = {tmp_path / "one", tmp_path / "a" / "two", tmp_path / "a" / "b" / "three"}
    for file in files:
        file.write_bytes(b"1")
    flush_tree(tmp_path)
    paths = [path for path, _ in flushed]
    assert set(paths[:3]) == files
    assert set(paths[3:]) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
    assert len(paths) == 6
