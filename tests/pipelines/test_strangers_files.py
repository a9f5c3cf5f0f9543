"""Files of strangers through the real commands: a row a kind, what it must give and what must be said."""

from __future__ import annotations

import re
import shutil
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from lpbf_data.stores.manifest import decode_manifest
from tests.commands import run_here
from tests.netfabb_cases import Part, write_part, zip_folder

Maker = Callable[[Path], None]


def run(*words: str) -> tuple[int, str]:
    """Exit status and everything that a command printed, on one line."""
    done = run_here(*words)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def mac_zip(folder: Path) -> None:
    for name in ("a", "b"):
        root = write_part(folder / "apart", Part(name, interactive=True))
        for path in [path for path in root.rglob("*") if path.is_file()]:
            fork = folder / "apart/__MACOSX" / path.relative_to(folder / "apart").with_name(f"._{path.name}")
            fork.parent.mkdir(parents=True, exist_ok=True)
            fork.write_bytes(b"\0\5\26\7Mac OS X")
    zip_folder(folder / "mac.zip", folder / "apart", inside="")
    shutil.rmtree(folder / "apart")


def two_runs(folder: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(write_part(folder / "apart", Part(name, interactive=True)), folder / "work", dirs_exist_ok=True)
    shutil.rmtree(folder / "apart")


def mixed_runs(folder: Path) -> None:
    two_runs(folder)
    (folder / "work/b_mechanical.out").unlink()
    for path in (folder / "work/results").glob("a_*"):
        path.unlink()


def whole_and_mixed(folder: Path) -> None:
    for make, name in ((two_runs, "two"), (mixed_runs, "mixed")):
        (folder / name).mkdir()
        make(folder / name)


def names_together(folder: Path) -> None:
    """Two folders of one name, one in Windows-1252 and one from a Finder's zip in UTF-8 without the flag."""
    root = write_part(folder / "cp1252", Part("Prüfkörper", interactive=True))
    for path in root.rglob("*.case"):
        path.write_bytes(path.read_text(encoding="utf-8").encode("cp1252"))
    _finder_zip(folder)
    for path in write_part(folder / "quoted", Part("My Part", interactive=True)).rglob("*.case"):
        path.write_text(
            re.sub(r"((?:\./|results/).*_\*\..*)", r'"\1"', path.read_text(encoding="utf-8")), encoding="utf-8"
        )


def _finder_zip(folder: Path) -> None:
    root = write_part(folder / "apart", Part("25329_5513e3ea_3", interactive=True, shape=(4, 2, 3)))
    with zipfile.ZipFile(folder / "finder.zip", "w") as archive:
        for file in root.rglob("*.*"):
            archive.writestr(f"PrXXfkXXrper/{file.relative_to(root).as_posix()}", file.read_bytes())
    content = (folder / "finder.zip").read_bytes()
    (folder / "finder.zip").write_bytes(content.replace(b"PrXXfkXXrper", "Prüfkörper".encode()))
    shutil.rmtree(folder / "apart")


@pytest.mark.parametrize(
    ("make", "kept", "failed", "said"),
    [
        (mac_zip, ["a", "b"], [], "left out: hidden files and folders, and what operating systems leave"),
        (two_runs, ["a", "b"], [], "changed: folders with several runs: each run is a case"),
        (mixed_runs, [], ["a", "b"], "the solver's log is missing"),
        (_finder_zip, ["Prüfkörper"], [], "guessed: names in zip archives that are UTF-8"),
        (
            names_together,
            ["My Part", "Prüfkörper", "src_Prüfkörper"],
            [],
            "case files that aren't UTF-8, read as Windows-1252",
        ),
        (whole_and_mixed, ["a", "b"], [], "left out: incomplete runs whose id a whole run has too, which was taken"),
    ],
)
def test_results(tmp_path: Path, make: Maker, kept: list[str], failed: list[str], said: str) -> None:
    source, out = tmp_path / "src", tmp_path / "out"
    source.mkdir()
    make(source)
    words = ["--src", str(source), "--out", str(out), "--workers", "0", "--no_report", "--filters.preset", "all"]
    words += ["--time_limit", "inf"]  # in this process
    status, printed = run("pipelines.build", *words)
    records = decode_manifest((out / "manifest.parquet").read_bytes()).records
    told = {"kept": [], "failed": []}
    for record in records:
        told[record.status].append(unicodedata.normalize("NFC", record.case_id))
    assert (sorted(told["kept"]), sorted(told["failed"])) == (kept, failed)
    assert status == (0 if kept else 1)
    assert said in re.sub(r", [\d,]+ in all:", ":", printed)


def box(size: tuple[float, float, float], at: tuple[float, float, float] = (0, 0, 0)) -> trimesh.Trimesh:
    made = trimesh.creation.box(size)
    made.apply_translation(np.add(at, np.divide(size, 2)))
    return made


def doubled_facet(path: Path) -> None:
    mesh = box((20, 20, 10))
    faces = np.concatenate([mesh.faces, mesh.faces[:1]])
    trimesh.Trimesh(mesh.vertices, faces, process=False).export(path)


def two_bodies(path: Path) -> None:
    trimesh.util.concatenate([box((10, 10, 10)), box((10, 10, 10), (40, 0, 0))]).export(path)


def table(path: Path) -> None:
    legs = [box((4, 4, 20), (x, y, 0)) for x in (0, 26) for y in (0, 26)]
    trimesh.boolean.union([*legs, box((30, 30, 1), (0, 0, 19.5))], engine="manifold").export(path)


def cut_short(path: Path) -> None:
    box((10, 10, 10)).export(path)
    path.write_bytes(path.read_bytes()[:-120])


def one_byte_more(path: Path) -> None:
    box((10, 10, 10)).export(path)
    path.write_bytes(path.read_bytes() + b"\n")


def one_turned(path: Path) -> None:
    mesh = box((10, 10, 10))
    faces = mesh.faces.copy()
    faces[0] = faces[0][::-1]
    trimesh.Trimesh(mesh.vertices, faces, process=False).export(path)


@pytest.mark.parametrize(
    ("make", "volumes", "said"),
    [
        (doubled_facet, [4000], "repaired: facets that were there more than once were merged (part.stl: 1)"),
        (two_bodies, [1000, 1000], "part a body, each put on the build plate by itself (part.stl: 2 bodies)"),
        (table, [4 * 16 * 19.5 + 900], "% of its volume, walls of 1 mm are"),
        (cut_short, [], "it says that it holds 12 triangles, and 9 are there; save or copy it again"),
        (
            one_byte_more,
            [1000],
            "left out: bytes behind the last triangle of a binary STL were left out (part.stl: 1 byte)",
        ),
        (one_turned, [1000], "repaired: facets that faced the wrong side were turned (part.stl: 1)"),
    ],
)
def test_surfaces(tmp_path: Path, make: Maker, volumes: list[float], said: str) -> None:
    make(tmp_path / "part.stl")
    words = ["--out", str(tmp_path / "out"), "--points", "300", "--workers", "0", "--stl", str(tmp_path / "part.stl")]
    status, printed = run("pipelines.simulate", *words)
    assert status == (0 if volumes else 1), printed
    assert said in re.sub(r", [\d,]+ in all:", ":", printed)
    meshed = []
    for log in sorted((tmp_path / "out").rglob("*mechanical.out")):
        lines = log.read_text(encoding="utf-8").splitlines()
        place = next(number for number, line in enumerate(lines) if "Meshed volume" in line)
        meshed.append(float(lines[place + 1].split(",")[1]))
    assert meshed == pytest.approx(volumes, rel=0.25)
