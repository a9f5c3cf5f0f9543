"""Mutated bytes for the EnSight readers: no input may crash, hang or exhaust memory.

    python -m tests.pipelines.fuzz_ensight --count 1000000

mutates valid files (and, with --samples, real ones) and reads them. Every outcome but a value or a `CaseError` is a
finding and is written to tests/findings/. The test suite runs a few thousand of them, and every finding kept.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
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
from tests.netfabb_cases import GOOD, INPUT, LOG, box_mesh

MAX_SECONDS = 5.0
MAX_BYTES = 200_000_000
_TOKENS = (
    b"part", b"coordinates", b"hexa8", b"tetra4", b"block", b"node id given", b"extents", b"\n", b"\0", b"-1", b"nan",
    b"1e999", b"99999999999999999999", b"*", b"../", b"time set: 1", b"number of steps: 1000000000", b"C Binary",
    b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff\xff\xff\xff", b" " * 80,
)  # fmt: skip

Reader = Callable[[bytes], object]


def seeds() -> dict[str, tuple[bytes, tuple[Reader, ...]]]:
    """Valid inputs and what reads them."""
    points, cells = box_mesh((2, 2, 1))
    found: dict[str, tuple[bytes, tuple[Reader, ...]]] = {}
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


def real_seeds(samples: Path) -> dict[str, tuple[bytes, tuple[Reader, ...]]]:
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


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: flipped bytes, cuts, repeats, removals, words of the format in wrong places."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] = rng.randrange(256)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + rng.randint(1, 100)]
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randint(1, 200)]
        elif kind == 4:
            word = rng.choice(_TOKENS)
            changed[at : at + (len(word) if rng.random() < 0.5 else 0)] = word
        elif len(changed) >= 4:
            place = rng.randrange(max(1, len(changed) // 4)) * 4
            changed[place : place + 4] = rng.randbytes(4)
    return bytes(changed)


def attempt(data: bytes, readers: tuple[Reader, ...]) -> str:
    """What is wrong with how an input is read; empty when nothing is."""
    started = time.perf_counter()
    for reader in readers:
        try:
            reader(data)
        except CaseError:
            pass
        except Exception as error:  # noqa: BLE001 (every other exception is a finding)
            return f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    return f"took {seconds:.1f} s" if seconds > MAX_SECONDS else ""


def run(
    count: int, seed: int = 0, more: dict[str, tuple[bytes, tuple[Reader, ...]]] | None = None
) -> Iterator[tuple[str, bytes, str]]:
    """Name of the seed, input and complaint for every finding among `count` mutated inputs."""
    corpus = seeds() | (more or {})
    rng = random.Random(seed)
    names = sorted(corpus)
    for _ in range(count):
        name = rng.choice(names)
        data, readers = corpus[name]
        mutated = mutate(data, rng)
        complaint = attempt(mutated, readers)
        if complaint:
            yield name, mutated, complaint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, help="folder of real output to mutate as well")
    options = parser.parse_args()
    tracemalloc.start()
    findings = 0
    started = time.monotonic()
    folder = Path(__file__).parents[1] / "findings"
    for name, data, complaint in run(
        options.count, options.seed, real_seeds(options.samples) if options.samples else None
    ):
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}-{findings}.bin"
        path.write_bytes(data)
        findings += 1
        print(f"{path.name}: {complaint}", file=sys.stderr)
    peak = tracemalloc.get_traced_memory()[1]
    if peak > MAX_BYTES:
        print(f"memory: {peak:,} bytes at the peak", file=sys.stderr)
        findings += 1
    seconds = time.monotonic() - started
    print(f"{options.count:,} inputs in {seconds:.0f} s, peak {peak / 1e6:.1f} MB, findings: {findings}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
