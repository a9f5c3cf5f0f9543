"""Mutated bytes for the EnSight readers: no input may crash, hang or exhaust memory.

    python -m tests.pipelines.fuzz_ensight --count 1000000

mutates valid files (and, with --samples, real ones) and reads them. Every outcome but a value or a `CaseError` is a
finding and is written to tests/findings/. The test suite runs a few thousand of them, and every finding kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lpbf_data.errors import CaseError
from pipelines.ensight import (
    CaseFile,
    Dialect,
    Encoding,
    TimeSet,
    Variable,
    read_case_file,
    read_geometry,
    read_points,
    read_variable,
    write_case_file,
    write_geometry,
    write_variable,
)
from pipelines.netfabb.solver_log import read_input, read_log
from tests import fuzzing
from tests.fuzzing import Corpus, Reader
from tests.netfabb_cases import GOOD, INPUT, LOG, box_mesh

_TOKENS = (
    b"part", b"coordinates", b"hexa8", b"tetra4", b"block", b"node id given", b"extents", b"\n", b"\0", b"-1", b"nan",
    b"1e999", b"99999999999999999999", b"*", b"../", b"time set: 1", b"number of steps: 1000000000", b"C Binary",
    b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff\xff\xff\xff", b" " * 80,
)  # fmt: skip


def seeds() -> Corpus:
    """Valid inputs and what reads them."""
    points, cells = box_mesh((2, 2, 1))
    found: Corpus = {}
    for dialect in (Dialect(), Dialect(Encoding.C_BINARY, ">"), Dialect(Encoding.ASCII)):
        name = f"{dialect.encoding}"
        found[f"geometry-{name}"] = (write_geometry(points, cells, dialect), (read_geometry, read_points))
        for width in (1, 3, 6):
            values = np.arange(len(points) * width, dtype=np.float32).reshape(len(points), width).squeeze()

            def read(data: bytes, dialect: Dialect = dialect, width: int = width) -> object:
                return read_variable(data, dialect, count=len(points), num_components=width)

            found[f"variable-{width}-{name}"] = (write_variable(values, dialect), (read,))
    variables = {"T": Variable("T", "scalar", "point", "./x00_*.tmp.ens", 1)}
    case = CaseFile("./x_*.geo", 2, variables, {1: TimeSet((1.0, 2.0), (1, 2)), 2: TimeSet((1.0,), (1,))})
    found["case"] = (write_case_file(case), (_read_whole_case,))
    log = LOG.format(prefix="", material="x", increments="", verdict=GOOD).encode()
    found["log"] = (log, (lambda data: read_log(data.decode("utf-8", "replace")),))
    found["input"] = (INPUT.format(stl="x.stl").encode(), (lambda data: read_input(data.decode("utf-8", "replace")),))
    return found


def real_seeds(samples: Path) -> Corpus:
    """Geometries, case files and logs of real output below a folder, and what reads them."""
    readers: dict[str, tuple[Reader, ...]] = {
        "*_mechanical_?.geo": (read_geometry, read_points),
        "*_mechanical.case": (_read_whole_case,),
        "*_mechanical.out": (lambda data: read_log(data.decode("utf-8", "replace")),),
        "*_mechanical.in": (lambda data: read_input(data.decode("utf-8", "replace")),),
    }
    return {path.name: (path.read_bytes(), r) for pattern, r in readers.items() for path in samples.rglob(pattern)}


def _read_whole_case(data: bytes) -> object:
    case = read_case_file(data)
    frames = range(min(len(case.frames.times), 100))
    return [
        (case.geometry_file(case.geometry_index(f)), [case.variable_file(v, f) for v in case.variables]) for f in frames
    ]


def attempt(data: bytes, readers: tuple[Reader, ...]) -> str:
    """What is wrong with how an input is read; empty when nothing is."""
    return fuzzing.attempt(data, readers, CaseError)


def run(count: int, seed: int = 0, more: Corpus | None = None) -> Iterator[tuple[str, bytes, str]]:
    """Name of the seed, input and complaint for every finding among `count` mutated inputs."""
    return fuzzing.run(seeds() | (more or {}), _TOKENS, CaseError, count, seed)


def main() -> int:
    options = fuzzing.options(str(__doc__))
    corpus = seeds() | (real_seeds(options.samples) if options.samples else {})
    return fuzzing.report(corpus, _TOKENS, CaseError, options)


if __name__ == "__main__":
    sys.exit(main())
