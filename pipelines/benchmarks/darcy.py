"""`python -m pipelines.benchmarks.darcy --out darcy/ --cases 1200`: data for the Darcy benchmark, made here.

The published files aren't always available; their recipe is ([darcy_solution.py](darcy_solution.py)).
Files have the names and the form of the published ones, so that what reads these reads those, `python -m
pipelines.benchmarks.convert darcy` among them, which makes a data set to train on. The cases are others:
figures are comparable with published ones only as far as the recipe is theirs, and belong beside seed and digest.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lpbf_data.command_line import run
from lpbf_data.console import open_console, progress
from lpbf_data.durable import check_empty
from lpbf_data.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEST: Final = 200
"""Cases that are for the test, as published; the rest is for training."""

_STRIDES: Final = (1, 5)  # 421 and 85 points along a side
_HEADER: Final = b"MATLAB 5.0 MAT-file, written by lpbf-flare pipelines.benchmarks.darcy"


def darcy(out: str, *, cases: int = 1200, test: int = TEST, seed: int = 0, stride: int = 5, workers: int = 1) -> int:
    """Make data of flow through porous media, 1,000 cases for training and 200 for the test by default.

    Args:
        out: Folder of the two files; it must not exist yet, or be empty.
        cases: How many, those of the test among them.
        test: Cases for the test.
        seed: Other seeds give other cases. The first cases of a seed are the same, however many there are.
        stride: Every how many of the 421 points along each side are kept: 5 for 85, as papers do, or 1.
        workers: Processes; under 1 s of one core a case, and the same bytes with any number.

    Returns:
        Exit status: 0.
    """
    if test < 1:
        raise UsageError(f"--test must be 1 or more, not {test}")
    if cases <= test:
        raise UsageError(f"--cases must be more than {test}, which are for the test, not {cases}")
    if seed < 0:
        raise UsageError(f"--seed must be 0 or more, not {seed}")
    if stride not in _STRIDES:
        raise UsageError(f"--stride must be 1 or 5, not {stride}")
    if workers < 1:
        raise UsageError(f"--workers must be 1 or more, not {workers}")
    folder = Path(out)
    check_empty(folder)

    from rich.table import Table

    parts = ("smooth1", cases - test), ("smooth2", test)
    table = Table(title=f"Darcy's flow, seed {seed}", title_justify="left")
    for name in ("file", "cases", "sha256 of coeff and sol"):
        table.add_column(name, overflow="fold")
    solutions = []
    with progress(cases, "solve", "case") as bar:
        for part, (name, count) in enumerate(parts):
            coeff, sol = make(seed, part, count, stride, workers, bar)
            digest = hashlib.sha256(coeff.tobytes() + sol.tobytes()).hexdigest()
            path = folder / f"piececonst_r{coeff.shape[1]}_N{count}_{name}.mat"
            write_mat(path, {"coeff": coeff, "sol": sol})
            table.add_row(path.name, f"{count:,}", digest)
            solutions.append(sol)
    console = open_console()
    console.print(table)
    for what, value in trivial_errors(*solutions).items():
        console.print(f"Relative L2 of {what} of training as prediction for the test: {value:.3f}")
    return 0


def make(
    seed: int, part: int, count: int, stride: int, workers: int, bar: Any = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Permeability and pressure of the first cases of a seed, [count, k, k] each.

    Args:
        seed: Of all cases.
        part: 0 for training, 1 for the test: streams of their own.
        count: How many cases.
        stride: Every how many points along each side are kept.
        workers: Processes.
        bar: Progress that is updated with each case; none by default.
    """
    import numpy as np

    jobs = ((seed, part, case, stride) for case in range(count))
    pairs = []
    for pair in _map(jobs, min(workers, count)):
        pairs.append(pair)
        if bar is not None:
            bar.update()
    return np.stack([a for a, _ in pairs]), np.stack([u for _, u in pairs])


def _map(
    jobs: Iterator[tuple[int, int, int, int]], workers: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    if workers == 1:
        yield from map(make_case, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        yield from pool.map(make_case, jobs)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone; else it would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def make_case(job: tuple[int, int, int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One case, from its seed, part, number and stride."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    from pipelines.benchmarks.darcy_solution import permeability, pressure

    seed, part, case, stride = job
    with threadpool_limits(limits=1):
        medium = permeability(np.random.default_rng((seed, part, case)))
        found = pressure(medium)
    return medium[::stride, ::stride], found[::stride, ::stride]


def trivial_errors(train: NDArray[np.float64], test: NDArray[np.float64]) -> dict[str, float]:
    """Relative L2, mean over the test, of what every model has to beat: figures that belong beside its own.

    Args:
        train: Solutions for training, [n, k, k].
        test: Solutions for the test, [m, k, k].
    """
    import numpy as np

    size = np.linalg.norm(test, axis=(1, 2))
    guesses = {"the mean field": train.mean(axis=0), "the mean number": train.mean()}
    return {what: float((np.linalg.norm(test - g, axis=(1, 2)) / size).mean()) for what, g in guesses.items()}


def write_mat(path: Path, arrays: dict[str, NDArray[np.float64]]) -> None:
    """Write arrays as a MATLAB 5 file, aside first; the same arrays give the same bytes, whenever that is.

    Args:
        path: The file; its folder is made.
        arrays: By name.
    """
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("wb") as file:
            savemat(file, arrays)
            file.seek(0)
            file.write(_HEADER.ljust(116))  # SciPy writes the time here
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def main() -> None:
    """Run the command."""
    run(darcy, "python -m pipelines.benchmarks.darcy")


if __name__ == "__main__":
    main()
