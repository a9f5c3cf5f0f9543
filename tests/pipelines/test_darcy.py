"""Data of the Darcy benchmark: the equation, the recipe, the files, the errors of trivial predictions."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy.io import loadmat
from scipy.sparse.linalg import spsolve

from pipelines.benchmarks import darcy as command
from pipelines.benchmarks.darcy import darcy, make, trivial_errors
from pipelines.benchmarks.darcy_solution import PERMEABILITIES, difference_matrix, permeability, pressure, solve

pytestmark = pytest.mark.numeric


def medium(seed: int, size: int = 106) -> np.ndarray:
    return permeability(np.random.default_rng(seed), size)


def test_an_even_medium_has_the_pressure_of_a_membrane() -> None:
    # -Δu = 1 on the unit square: u(½, ½) = 0.0736713…; errors fall with the square of the spacing.
    errors = [solve(np.ones((size, size)))[(size - 2) // 2, (size - 2) // 2] - 0.07367135 for size in (21, 41)]
    assert abs(errors[1]) < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)


def test_a_manufactured_pressure_comes_back() -> None:
    # u = x (1 - x) y (1 - y), a = 1 + x: the forces of its differences are those of the equation.
    for size, largest in ((21, 3e-3), (41, 8e-4)):
        x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
        u = (x * (1 - x) * y * (1 - y))[1:-1, 1:-1]
        forces = difference_matrix(1 + x) @ u.ravel()
        expected = (-((1 - 2 * x) - 2 * (1 + x)) * y * (1 - y) + 2 * (1 + x) * x * (1 - x))[1:-1, 1:-1]
        assert np.abs(forces.reshape(u.shape) - expected).max() < largest


def test_multigrid_agrees_with_a_direct_solution() -> None:
    rough = np.exp(np.random.default_rng(1).normal(size=(60, 60)))
    matrix = difference_matrix(rough)
    assert abs(matrix - matrix.T).max() == 0
    exact = spsolve(matrix.tocsc(), np.ones(58 * 58)).reshape(58, 58)
    assert np.abs(solve(rough) - exact).max() < 1e-9 * exact.max()


def test_a_medium_that_falls_below_nothing_is_solved_all_the_same() -> None:
    rough = np.ones((30, 30))
    rough[10:14, 10:14] = -0.5  # further than the spline overshoots
    exact = spsolve(difference_matrix(rough).tocsc(), np.ones(28 * 28)).reshape(28, 28)
    assert np.allclose(solve(rough), exact, rtol=1e-7)


def test_media_follow_the_recipe() -> None:
    """Two values, alike at two points as often as the covariance (-Δ + 9)⁻² says: 2/π arcsin of the correlation."""
    fields = np.stack([medium(seed) for seed in range(1500)])
    assert set(np.unique(fields)) == set(PERMEABILITIES) == {3.0, 12.0}
    assert fields.mean() == pytest.approx(7.5, abs=0.05)
    waves = np.arange(106)
    power = 1 / (np.pi**2 * (waves[:, None] ** 2 + waves**2) + 9) ** 2
    power[0, 0] = 0  # its mean is taken out

    def covariance(a: tuple[int, int], b: tuple[int, int]) -> float:
        along = [np.where(waves, 2, 1) * np.prod([np.cos(np.pi * waves * (p[k] + 0.5) / 106) for p in (a, b)], axis=0)
                 for k in range(2)]  # fmt: skip
        return float(along[0] @ power @ along[1])

    for a, b in (((0, 0), (0, 20)), ((0, 0), (105, 105)), ((50, 50), (50, 60)), ((53, 0), (53, 105))):
        alike = (np.sign(fields[:, a[0], a[1]] - 7) * np.sign(fields[:, b[0], b[1]] - 7)).mean()
        correlation = covariance(a, b) / np.sqrt(covariance(a, a) * covariance(b, b))
        assert alike == pytest.approx(2 / np.pi * np.arcsin(correlation), abs=0.08)  # three standard errors


def test_pressure_at_published_size_has_the_published_scale() -> None:
    found = pressure(medium(3, 421))
    assert found.shape == (421, 421)
    assert found.mean() == pytest.approx(0.0055, rel=0.1)
    assert found.max() == pytest.approx(0.0132, rel=0.15)
    assert 0 < np.abs(found[0]).max() < 3e-4  # between nodes: not quite nothing along the boundary


@pytest.mark.parametrize("half", [True, pytest.param(False, marks=pytest.mark.slow)])  # of the same cases
def test_what_predicts_nothing_scores_as_in_the_published_recipe(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same field on 106 cells, where a case takes a fiftieth of a second.
    monkeypatch.setattr("pipelines.benchmarks.darcy_solution.permeability.__defaults__", (106,))
    train, test = (make(0, part, count, 1, 1)[1] for part, count in ((0, 30 if half else 60), (1, 20 if half else 40)))
    scores = trivial_errors(train, test)
    assert scores["the mean field"] == pytest.approx(0.256, abs=0.03)
    assert scores["the mean number"] == pytest.approx(0.558, abs=0.02)


def test_files_have_the_published_form_and_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.benchmarks.darcy_solution.permeability.__defaults__", (21,))
    for folder in ("one", "again"):
        assert darcy(str(tmp_path / folder), cases=7, test=3) == 0
    assert "the mean field" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["piececonst_r5_N3_smooth2.mat", "piececonst_r5_N4_smooth1.mat"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    train, test = (loadmat(tmp_path / "one" / name) for name in reversed(names))
    assert train["coeff"].shape == train["sol"].shape == (4, 5, 5)
    assert train["coeff"].dtype == train["sol"].dtype == np.float64
    assert not np.array_equal(train["coeff"][:3], test["coeff"])
    whole = medium(0, 21)
    expected = permeability(np.random.default_rng((0, 0, 2)), 21)
    assert whole.shape == expected.shape
    assert np.array_equal(train["coeff"][2], expected[::5, ::5])
    assert np.array_equal(train["sol"][2], pressure(expected)[::5, ::5])


@pytest.mark.slow
def test_workers_give_the_same_and_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    alone = make(5, 0, 2, 5, 1)
    for ours, theirs in zip(make(5, 0, 2, 5, 2), alone, strict=True):
        assert np.array_equal(ours, theirs)
    words = ["-m", "pipelines.benchmarks.darcy", "--out", str(tmp_path / "out"), "--workers", "2"]
    command = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL, start_new_session=True)
    own = psutil.Process(command.pid)
    while len(workers := own.children()) < 3:  # two and what watches over their resources
        assert command.poll() is None
        time.sleep(0.05)
    command.kill()
    command.wait()
    _, left = psutil.wait_procs(workers, timeout=60)
    assert not left
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"cases": 200}, "--cases must be more than 200"),
        ({"cases": 5, "test": 0}, "--test must be 1 or more"),
        ({"seed": -1}, "--seed"),
        ({"stride": 3}, "--stride must be 1 or 5"),
        ({"workers": 0}, "--workers"),
    ],
)
def test_impossible_options_are_a_sentence(words: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(command.UsageError, match=said):
        darcy(str(tmp_path / "out"), **words)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(command.UsageError, match="holds something already"):
        darcy(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
