"""The material of a run, told to readers of its results alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_model.prediction.part import Part as ReadPart
from flare_model.prediction.parts import find_parts
from pipelines.netfabb.run_material import material_of_result
from tests.netfabb_cases import Part, write_part


def case_files(folder: Path) -> list[Path]:
    """In the folder of the run and in `results/` there."""
    found = sorted(folder.rglob("*mechanical.case"))
    assert len(found) == 2
    return found


def test_a_result_has_the_material_of_its_log(tmp_path: Path) -> None:
    write_part(tmp_path, Part("a"))
    log = next(tmp_path.rglob("*mechanical.out"))
    log.write_text(log.read_text().replace("ti64", "inc625"))
    assert [material_of_result(path) for path in case_files(tmp_path)] == ["inc625", "inc625"]
    (part,) = find_parts(str(log.parent))
    assert isinstance(part, ReadPart)
    assert part.material == "inc625"


@pytest.mark.parametrize("fault", ["gone", "empty", "torn"])
def test_without_a_log_that_tells_it_is_not_known(tmp_path: Path, fault: str) -> None:
    write_part(tmp_path, Part("a"))
    log = next(tmp_path.rglob("*mechanical.out"))
    log.unlink() if fault == "gone" else log.write_bytes(b"" if fault == "empty" else b"\xff\xfe\x00torn")
    assert [material_of_result(path) for path in case_files(tmp_path)] == [None, None]
    (part,) = find_parts(str(log.parent))
    assert isinstance(part, ReadPart)
    assert part.material is None


def test_each_run_of_a_folder_has_its_own(tmp_path: Path) -> None:
    for name, material in (("one", "ti64"), ("two", "inc625")):
        write_part(tmp_path / name, Part(name))
        folder = next((tmp_path / name).rglob("*mechanical.out")).parent
        for path in folder.rglob("*"):
            if path.is_file() and path.parent == folder:
                text = path.read_bytes().replace(b"ti64", material.encode())
                target = tmp_path / "both" / f"{name}_{path.name}"
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(text)
        (tmp_path / "both" / f"{name}_mechanical.case").touch()
    both = tmp_path / "both"
    assert [material_of_result(both / f"{name}_mechanical.case") for name in ("one", "two")] == ["ti64", "inc625"]
