"""Gives mutated bytes to everything that reads whole files of users: surfaces, zips of cases, tables, material files.

    python -m tests.fuzz_files --count 300000

mutates valid files (with --samples real surfaces too) and reads them. A reader must give a value or raise an error of
this project; everything else is a finding, and its input is written to tests/findings/. The test suite reads some
hundred.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lpbf_data.errors import LpbfError
from lpbf_data.geometry.surface_files import load_bodies
from pipelines.calibrating.measured_file import read_measured
from pipelines.netfabb.run import NetfabbRun
from pipelines.selection.designs import design_namer
from pipelines.simulation.materials.material_files import load_material
from pipelines.sources.archive import Archive
from pipelines.sources.case_files import ArchiveFiles
from tests import fuzzing
from tests.fuzzing import Corpus, Reader
from tests.lpbf_data.test_foreign_surfaces import FINE, FIRST, ITEM, cube, model, pack
from tests.netfabb_cases import Part, write_part, zip_folder

WORDS = (
    b"vertex", b"facet", b"endfacet", b"endsolid", b"v ", b"f ", b"element face 9999999999\n", b"end_header\n",
    b"property list uchar int vertex_indices\n", b"property double x\n", b"OFF", b"<vertex", b'transform="', b'"/>',
    b"<component ", b"nan", b"inf", b"-1", b"0", b"1e999", b"1_0", b"99999999999999999999", b"\n", b"\r", b"\0",
    b"../", b"//", b"PK\x01\x02", b"PK\x05\x06", b",", b";", b'"', b"&a", b"*a", b": [", b"\xff\xfe", b"\xef\xbb\xbf",
    b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b" " * 80, b"\\\n",
)  # fmt: skip

TABLES = {
    "measured.csv": "point;x_mm;y_mm;z_mm;component;value_mm;sigma_mm\np1;1,5;2;3;z;0,1;0,01\n#2;1;2;3;x;0.1;0.01\n",
    "designs.csv": 'case_id,design_id\n"a, b",d1\nc,d2\n',
    "material.yaml": "based_on: Inc625\nyoung: 150000\nconductivity: [[25, 0.01], [200, 0.0125]]\n"
    "process: {layer_thickness: 0.03}\ncalibration: {name: ours, strain: -0.0041, source: a cantilever}\n",
}


def _on_file(path: Path, read: Callable[[Path], object]) -> Reader:
    """A reader of bytes made from a reader of files: each input is written to the same file."""

    def reader(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return reader


def _sound_bodies(path: Path) -> object:
    """Read the bodies of a file, and check that each is closed and has a positive volume."""
    found = load_bodies(path)
    for body in found.bodies:
        edges = np.concatenate([body.triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
        keys = edges.min(axis=1) * len(body.vertices) + edges.max(axis=1)
        both = np.bincount(np.unique(keys, return_inverse=True)[1], np.sign(edges[:, 1] - edges[:, 0]))
        assert not both.any(), "an edge isn't used equally often in both directions"
        assert np.isfinite(body.vertices).all()
        assert 0 < body.volume < np.inf
    return found


def _in_archive(path: Path) -> Reader:
    """A reader of the model in a 3MF. It packs the bytes: else checksums would refuse nearly every mutation."""

    def reader(data: bytes) -> object:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(FIRST, data)
        return _sound_bodies(path)

    return reader


def _cases_of(path: Path) -> object:
    """Read every case of an archive; the numbers of points of the readable ones."""
    archive = Archive(str(path))
    found = []
    for members in archive.cases.values():
        try:
            run = NetfabbRun("case", ArchiveFiles(archive.reader, members))
            found.append(run.read_case(["displacement"]).num_points)
        except LpbfError:
            pass
    return found


def seeds(folder: Path) -> Corpus:
    """Valid inputs and their readers.

    Args:
        folder: Folder that inputs are written to, one at a time.
    """
    found: dict[str, tuple[bytes, tuple[Reader, ...]]] = {}
    for name, content in FINE.items():
        data = content if isinstance(content, bytes) else content.encode()
        found[name] = data, (_on_file(folder / name, _sound_bodies),)
    text = model(cube(1), f'{ITEM}<item objectid="1" transform="1 0 0 0 1 0 0 0 1 50 0 0"/>')
    whole = pack(folder / "whole.3mf", {FIRST: text}).read_bytes()
    found["model.3mf"] = text.encode(), (_in_archive(folder / "model.3mf"),)
    found["whole.3mf"] = whole, (_on_file(folder / "whole.3mf", _sound_bodies),)
    write_part(folder / "src", Part("p1"))
    cases = zip_folder(folder / "cases.zip", folder / "src").read_bytes()
    found["cases.zip"] = cases, (_on_file(folder / "cases.zip", _cases_of),)
    readers: dict[str, Callable[[Path], object]] = {
        "measured.csv": read_measured,
        "designs.csv": lambda path: design_namer(str(path)),
        "material.yaml": load_material,
    }
    for name, table in TABLES.items():
        found[name] = table.encode(), (_on_file(folder / name, readers[name]),)
    return found


def real_seeds(samples: Path, folder: Path) -> Corpus:
    """Real surfaces and their readers.

    Args:
        samples: Folder with the surfaces.
        folder: Folder that inputs are written to.
    """
    return {
        path.name: (path.read_bytes(), (_on_file(folder / path.name, _sound_bodies),))
        for path in sorted(samples.rglob("*.stl"))
    }


def main() -> int:
    options = fuzzing.options(str(__doc__))
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        corpus = {**seeds(folder), **(real_seeds(options.samples, folder) if options.samples else {})}
        return fuzzing.report(corpus, WORDS, LpbfError, options)


if __name__ == "__main__":
    sys.exit(main())
