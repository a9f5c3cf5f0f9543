"""Files of the benchmarks as users have them, with the published shapes, names and types, and what becomes of them."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pyvista as pv
from scipy.io import loadmat, savemat

from lpbf_data import load_dataset
from lpbf_data.errors import LpbfError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.reading.catalog import read_manifest
from pipelines.benchmarks.car_surfaces import PUBLIC, UNPUBLISHED
from pipelines.benchmarks.convert import convert
from pipelines.benchmarks.mat_arrays import read_mat_array
from tests.commands import run_here

RANDOM = np.random.default_rng(0)


def write_elasticity(root: Path, samples: int = 9) -> Path:
    folder = root / "Geo-FNO/elasticity/Meshes"
    folder.mkdir(parents=True)
    np.save(folder / "Random_UnitCell_XY_10.npy", RANDOM.random((972, 2, samples)))
    np.save(folder / "Random_UnitCell_sigma_10.npy", 1000 * RANDOM.random((972, samples)))
    np.save(folder / "Random_UnitCell_rr_10.npy", RANDOM.random((42, samples)))
    return root


def write_grids(folder: Path, name: str, shape: tuple[int, int], channels: int, samples: int) -> Path:
    folder.mkdir(parents=True)
    u, v = np.meshgrid(np.linspace(0, 10, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    bend = RANDOM.random((samples, 1, 1))
    np.save(folder / f"{name}_X.npy", np.broadcast_to(u, (samples, *shape)) + 0.0)
    np.save(folder / f"{name}_Y.npy", v + bend * np.sin(u))
    np.save(folder / f"{name}_Q.npy", 0.5 + RANDOM.random((samples, channels, *shape)))
    return folder


def write_airfoil(root: Path, samples: int = 6) -> Path:
    folder = write_grids(root / "Geo-FNO/airfoil/naca", "NACA_Cylinder", (221, 51), 5, samples)
    fields = np.load(folder / "NACA_Cylinder_Q.npy")
    fields[1, 4] = 0.0  # a simulation that failed
    np.save(folder / "NACA_Cylinder_Q.npy", fields)
    return root


def write_pipe(root: Path, samples: int = 6) -> Path:
    write_grids(root / "Geo-FNO/pipe", "Pipe", (129, 129), 3, samples)
    return root


def write_darcy(root: Path, size: int = 421) -> Path:
    folder = root / "FNO/darcy"
    folder.mkdir(parents=True)
    for number, samples in ((1, 3), (2, 2)):
        coeff = RANDOM.choice([3.0, 12.0], (samples, size, size))
        name = f"piececonst_r{size}_N{samples}_smooth{number}.mat"
        savemat(folder / name, {"coeff": coeff, "sol": 1e-2 * RANDOM.random((samples, size, size)), "Kcoeff": coeff})
    return root


def car(cells: int = 60) -> tuple[np.ndarray, np.ndarray]:
    return RANDOM.random((cells, 3)).astype(np.float32), RANDOM.normal(size=(cells, 4)).astype(np.float32)


def write_cars(root: Path, names: tuple[str, ...] = ("train/run_1", "train/run_3", "test/run_12")) -> Path:
    for name in names:
        centres, fields = car()
        path = root / "DrivAerML/drivaerml_surface_presampled_40k" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, surface_mesh_centers=centres, surface_fields=fields)
    return root


def write_surfaces(root: Path, runs: tuple[int, ...] = (1, 4, 11)) -> Path:
    for run in runs:
        mesh = pv.Plane(i_resolution=6, j_resolution=5)
        assert isinstance(mesh, pv.PolyData)
        mesh.cell_data["pMeanTrim"] = RANDOM.normal(size=30).astype(np.float32)
        mesh.cell_data["CpMeanTrim"] = RANDOM.normal(size=30).astype(np.float32)
        mesh.cell_data["wallShearStressMeanTrim"] = RANDOM.normal(size=(30, 3)).astype(np.float32)
        (root / f"run_{run}").mkdir(parents=True)
        mesh.save(root / f"run_{run}/boundary_{run}.vtp")
    return root


def samples_of(data: Path, split: str) -> dict[str, dict[str, Any]]:
    opened = load_dataset(data, split, format="torch", cache=False)
    return {sample["case_id"]: sample for sample in (opened[i] for i in range(len(opened)))}


def test_elasticity_has_its_samples_last_and_tests_on_the_last(tmp_path: Path) -> None:
    src = write_elasticity(tmp_path / "src")
    assert convert("elasticity", str(src), str(tmp_path / "set"), train=4, test=2) == 0
    xy, sigma = (np.load(src / f"Geo-FNO/elasticity/Meshes/Random_UnitCell_{n}_10.npy") for n in ("XY", "sigma"))
    train, test = (samples_of(tmp_path / "set", split) for split in ("train", "test"))
    assert list(train) == [f"elasticity_{i:04d}" for i in range(4)]
    assert list(test) == ["elasticity_0007", "elasticity_0008"]
    sample = test["elasticity_0008"]
    assert np.array_equal(sample["pos"], xy[:, :, 8].astype(np.float32))
    assert np.array_equal(sample["stress"][:, 0], sigma[:, 8].astype(np.float32))
    assert np.array_equal(sample["y"], sample["stress"])
    assert "cells" not in sample
    manifest = read_manifest(DatasetFolder(tmp_path / "set"))
    assert manifest.points is not None
    assert (manifest.points.grid, manifest.points.scales) == (None, {})
    assert [(r.kind, r.count) for r in manifest.remarks] == [("unused_samples", 3)]


def test_airfoils_whose_simulation_failed_are_left_out_and_told(tmp_path: Path) -> None:
    src = write_airfoil(tmp_path / "src")
    words = ["airfoil", "--src", str(src), "--out", str(tmp_path / "set"), "--train", "3", "--test", "2"]
    done = run_here("pipelines.benchmarks.convert", *words)
    assert done.returncode == 0, done.stderr
    assert "left out: samples whose Mach number is 0 everywhere" in " ".join(done.stdout.split())
    train, test = (samples_of(tmp_path / "set", split) for split in ("train", "test"))
    assert list(train) == ["airfoil_0000", "airfoil_0002"]
    assert list(test) == ["airfoil_0003", "airfoil_0004"]  # those behind the training's, not the last
    folder = src / "Geo-FNO/airfoil/naca"
    x, y, q = (np.load(folder / f"NACA_Cylinder_{n}.npy")[3] for n in "XYQ")
    sample = test["airfoil_0003"]
    assert np.array_equal(sample["pos"], np.stack([x.ravel(), y.ravel()], 1).astype(np.float32))
    assert np.array_equal(sample["y"][:, 0], q[4].ravel().astype(np.float32))
    points = read_manifest(DatasetFolder(tmp_path / "set")).points
    assert points is not None
    assert points.grid == (221, 51)


def test_a_pipe_is_seen_by_standardised_coordinates(tmp_path: Path) -> None:
    src = write_pipe(tmp_path / "src")
    assert convert("pipe", str(src / "Geo-FNO"), str(tmp_path / "set"), train=3, test=2) == 0  # from halfway below
    folder = src / "Geo-FNO/pipe"
    x, y, q = (np.load(folder / f"Pipe_{n}.npy") for n in "XYQ")
    points = read_manifest(DatasetFolder(tmp_path / "set")).points
    assert points is not None
    for name, values in (("x", x[:3]), ("y", y[:3])):
        assert points.scales[name] == pytest.approx((values.mean(), values.std(ddof=1) + 1e-8), rel=1e-6)
    sample = samples_of(tmp_path / "set", "test")["pipe_0003"]
    assert np.array_equal(sample["velocity"][:, 0], q[3, 0].ravel().astype(np.float32))


def test_darcys_samples_are_thinned_and_its_boundary_told(tmp_path: Path) -> None:
    src = write_darcy(tmp_path / "src")
    assert convert("darcy", str(src / "FNO/darcy"), str(tmp_path / "set"), train=3, test=2) == 0
    stored = loadmat(src / "FNO/darcy/piececonst_r421_N2_smooth2.mat")
    sample = samples_of(tmp_path / "set", "test")["darcy_smooth2_0001"]
    assert sample["pos"].shape == (85 * 85, 2)
    assert np.array_equal(sample["pressure"][:, 0], stored["sol"][1, ::5, ::5].ravel().astype(np.float32))
    assert np.array_equal(sample["permeability"][:, 0], stored["coeff"][1, ::5, ::5].ravel().astype(np.float32))
    assert sample["pos"][1].tolist() == pytest.approx([1 / 84, 0])  # x varies fastest
    found = {remark.kind: remark for remark in read_manifest(DatasetFolder(tmp_path / "set")).remarks}
    assert (found["boundary"].count, found["positions"].count) == (5, 1)
    assert "permeability" not in found


def test_cars_are_split_by_the_folders_of_the_archives(tmp_path: Path) -> None:
    src = write_cars(tmp_path / "src")
    assert convert("drivaerml", str(src), str(tmp_path / "set"), points=50) == 0
    train, test = (samples_of(tmp_path / "set", split) for split in ("train", "test"))
    assert (list(train), list(test)) == (["run_1", "run_3"], ["run_12"])
    with np.load(src / "DrivAerML/drivaerml_surface_presampled_40k/test/run_12.npz") as stored:
        centres, fields = stored["surface_mesh_centers"], stored["surface_fields"]
    np.random.seed(12)  # noqa: NPY002 (as the published sets were drawn)
    drawn = np.random.choice(60, 50, replace=False)  # noqa: NPY002
    sample = test["run_12"]
    assert np.array_equal(sample["pos"], centres[drawn])
    assert np.array_equal(sample["y"][:, 0], fields[drawn, 0])
    assert np.array_equal(sample["wall_shear_stress"], fields[drawn, 1:])


def test_surfaces_of_cars_are_read_at_the_centres_of_their_cells(tmp_path: Path) -> None:
    src, split = write_surfaces(tmp_path / "src"), tmp_path / "split.json"
    split.write_text(json.dumps({"train": [1], "validation": ["run_4"], "test": [11]}))
    assert convert("drivaerml", str(src), str(tmp_path / "set"), split=str(split), points=0) == 0
    sample = samples_of(tmp_path / "set", "validation")["run_4"]
    mesh = pv.read(src / "run_4/boundary_4.vtp")
    assert np.allclose(sample["pos"], mesh.cell_centers().points)
    assert np.array_equal(sample["y"][:, 0], mesh.cell_data["pMeanTrim"])


def test_the_public_split_of_cars() -> None:
    assert [len(PUBLIC[name]) for name in ("train", "validation", "test")] == [400, 34, 50]
    together = [run for runs in PUBLIC.values() for run in runs]
    assert sorted([*together, *UNPUBLISHED]) == list(range(1, 501))


def test_surfaces_are_split_by_the_public_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, runs in (("train", (1,)), ("validation", (4,)), ("test", (11,))):  # of 484 one each
        assert set(runs) <= set(PUBLIC[name])
        monkeypatch.setitem(PUBLIC, name, runs)
    src = write_surfaces(tmp_path / "src")
    assert convert("drivaerml", str(src), str(tmp_path / "set"), split="public", points=20) == 0
    for name, run in (("train", "run_1"), ("validation", "run_4"), ("test", "run_11")):
        ((case_id, sample),) = samples_of(tmp_path / "set", name).items()
        assert (case_id, sample["pos"].shape) == (run, (20, 3))


def test_a_converted_set_is_verified(tmp_path: Path) -> None:
    src = write_elasticity(tmp_path / "src")
    assert convert("elasticity", str(src), str(tmp_path / "set"), train=4, test=2) == 0
    assert run_here("pipelines.verify", str(tmp_path / "set"), "--workers", "0").returncode == 0
    table = pq.read_table(tmp_path / "set/data/train-00000.parquet")
    wrong = pa.array([[0.5] * 972, *table["stress"].to_pylist()[1:]], table.schema.field("stress").type)
    other = table.set_column(table.column_names.index("stress"), table.schema.field("stress"), wrong)
    pq.write_table(other, tmp_path / "set/data/train-00000.parquet", row_group_size=1)
    (tmp_path / "set/data/test-00000.parquet").unlink()
    done = run_here("pipelines.verify", str(tmp_path / "set"), "--workers", "0")
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "data/test-00000.parquet: is missing" in said
    assert "data/train-00000.parquet: has SHA-256" in said
    assert "row 0, case elasticity_0000: stress runs from 0.5 to 0.5, the manifest says" in said
    assert "row 1" not in said


def change(path: str, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def changed(src: Path) -> None:
        np.save(src / path, how(np.load(src / path)))

    return changed


def change_mat(how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def changed(src: Path) -> None:
        savemat(src / "FNO/darcy/piececonst_r85_N3_smooth1.mat", {"coeff": how(np.full((3, 85, 85), 3.0))})

    return changed


def shuffled(grid: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).permutation(grid.reshape(len(grid), -1), axis=1).reshape(grid.shape)


XY, SIGMA = (f"Geo-FNO/elasticity/Meshes/Random_UnitCell_{name}_10.npy" for name in ("XY", "sigma"))
PIPE = "Geo-FNO/pipe/Pipe_{}.npy"
CAR = "DrivAerML/drivaerml_surface_presampled_40k/train/run_1.npz"


def broken_car(**arrays: np.ndarray) -> Callable[[Path], None]:
    centres, fields = car()
    good = {"surface_mesh_centers": centres, "surface_fields": fields}
    return lambda src: np.savez(src / CAR, **(good | arrays))


def remove(path: str) -> Callable[[Path], None]:
    return lambda src: (src / path).unlink()


def cut(path: str) -> Callable[[Path], None]:
    def halved(src: Path) -> None:
        content = (src / path).read_bytes()
        (src / path).write_bytes(content[: len(content) // 4])

    return halved


def no_change(src: Path) -> None:
    return None


WRITERS: dict[str, Callable[[Path], Path]] = {
    "elasticity": write_elasticity,
    "pipe": lambda root: write_pipe(root, 3),
    "airfoil": lambda root: write_airfoil(root, 3),
    "darcy": lambda root: write_darcy(root, 85),
    "drivaerml": write_cars,
}


@pytest.mark.parametrize(
    ("system", "spoil", "options", "said"),
    [
        ("elasticity", change(XY, lambda a: a.transpose(2, 0, 1)), {}, r"must be \[972, 2, samples\], not \[9, 972"),
        ("elasticity", change(XY, lambda a: a[:, :, :-1]), {}, "unlike numbers of samples"),
        ("elasticity", change(XY, lambda a: 1000 * a), {}, "x runs from .* outside of .*: it has another unit"),
        ("elasticity", change(SIGMA, lambda a: a.astype(np.complex64)), {}, "sigma_10.npy holds complex64 numbers"),
        ("elasticity", change(SIGMA, lambda a: a.astype(np.int32)), {}, "sigma_10.npy holds int32 numbers"),
        ("elasticity", change(SIGMA, lambda a: np.where(a < 500, np.nan, a)), {}, "stress is no finite number"),
        ("elasticity", cut(XY), {}, "XY_10.npy can't be read"),
        ("elasticity", remove(SIGMA), {}, "has no Random_UnitCell_sigma_10.npy"),
        ("elasticity", no_change, {"train": 9}, "have 9 samples for test, and the split asks for 9"),
        ("elasticity", no_change, {"split": "public"}, "--split and --points are for drivaerml"),
        ("pipe", change(PIPE.format("X"), lambda a: a.reshape(len(a), -1)), {}, r"Pipe_X.npy must be \[samples, 129"),
        ("pipe", change(PIPE.format("Q"), lambda a: a[:, 0]), {}, r"must be \[samples, channels, 129, 129\]"),
        ("pipe", change(PIPE.format("X"), shuffled), {}, "points don't lie in the order of a grid"),
        ("airfoil", remove("Geo-FNO/airfoil/naca/NACA_Cylinder_X.npy"), {}, "--src .* has no NACA_Cylinder_X.npy"),
        ("darcy", change_mat(lambda a: a.astype(np.uint8)), {}, "coeff of .*smooth1.mat holds uint8 numbers"),
        ("darcy", change_mat(lambda a: a), {}, "smooth1.mat can't be read: it has no array 'sol'"),
        ("darcy", change_mat(lambda a: a[:, :80]), {}, r"must be \[samples, 85, 85\] or \[samples, 421, 421\]"),
        ("darcy", cut("FNO/darcy/piececonst_r85_N3_smooth1.mat"), {}, "smooth1.mat can't be read"),
        ("drivaerml", broken_car(surface_fields=np.zeros((60, 3))), {}, r"surface_fields must be \[n, 4\]"),
        ("drivaerml", broken_car(surface_fields=np.zeros((59, 4))), {}, r"and \[n, 3\], not \[60, 3\]"),
        ("drivaerml", broken_car(surface_fields=np.zeros((60, 4), int)), {}, "pressure must be .* real numbers"),
        ("drivaerml", broken_car(surface_mesh_centers=np.full((60, 3), 900.0)), {}, "its lengths must be in m"),
        ("drivaerml", no_change, {"points": 61}, "it has 60 cells, fewer than the 61"),
        ("drivaerml", no_change, {"split": "public"}, "asks for 484 runs, and 481 of them aren't below"),
        ("drivaerml", no_change, {"train": 3}, "--train and --test aren't for drivaerml"),
        ("drivaerml", no_change, {"split": {"train": [1], "test": [167]}}, "asks for run 167, which isn't published"),
        ("drivaerml", no_change, {"split": {"train": [1], "test": [1]}}, "asks for run 1 twice"),
        ("drivaerml", no_change, {"split": {"train": [1], "exam": [3]}}, "has 'exam'"),
        ("drivaerml", no_change, {"split": "mine"}, "--split mine is neither folders nor public, nor a JSON file"),
    ],
)  # fmt: skip
def test_what_doesnt_fit_is_a_sentence_and_leaves_nothing(
    system: Any, spoil: Callable[[Path], None], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    src = WRITERS[system](tmp_path / "src")
    spoil(src)
    counts = {"points": 50} if system == "drivaerml" else {"train": 2, "test": 1}
    options = {**counts, **options}
    if isinstance(options.get("split"), dict):
        (tmp_path / "split.json").write_text(json.dumps(options["split"]))
        options["split"] = str(tmp_path / "split.json")
    (tmp_path / "out").mkdir()
    with pytest.raises(LpbfError, match=said):
        convert(system, str(src), str(tmp_path / "out" / "set"), **options)
    assert not [*(tmp_path / "out").iterdir()]


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_of_matlab_are_those_that_scipy_reads(compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "some.mat"
    arrays: dict[str, Any] = {
        kind: RANDOM.integers(0, 100, (3, 4, 5)).astype(kind)
        for kind in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
    }
    arrays |= {"flat": np.arange(7.0), "a_name_of_more_than_4_letters": np.ones((2, 1)), "letters": "text", "one": 3.0}
    savemat(path, {**arrays, "i": np.ones(3) * 1j}, do_compression=compressed)
    expected = loadmat(path)
    for name in (*arrays.keys() - {"letters"}, "one"):
        found = read_mat_array(path, name)
        assert found.dtype == expected[name].dtype, name
        assert np.array_equal(found, expected[name]), name
    for name, said in (("i", "complex numbers"), ("letters", "no plain numbers"), ("two", "no array 'two'; it has f8")):
        with pytest.raises(ValueError, match=said):
            read_mat_array(path, name)


def test_doubles_that_matlab_stores_as_smaller_numbers(tmp_path: Path) -> None:
    path, values = tmp_path / "some.mat", RANDOM.integers(0, 100, (3, 4, 5)).astype(np.uint8)
    savemat(path, {"coeff": values})
    content = bytearray(path.read_bytes())
    content[144] = 6  # the class of the array, double in place of uint8
    path.write_bytes(content)
    found = read_mat_array(path, "coeff")
    assert found.dtype == np.float64
    assert np.array_equal(found, values)
    big = b"".join((
        b"MATLAB 5.0".ljust(124) + b"\1\0MI", struct.pack(">II", 14, 72), struct.pack(">IIII", 6, 8, 6, 0),
        struct.pack(">IIii", 5, 8, 2, 3), struct.pack(">HHi", 1, 1, ord("a") << 24),
        struct.pack(">II6h", 3, 12, *range(6)), bytes(4),
    ))  # fmt: skip
    path.write_bytes(big)
    assert read_mat_array(path, "a").tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_arrays_of_matlab_are_told(compressed: bool, tmp_path: Path) -> None:
    """SciPy's reader ends the process on some of these."""
    path, random = tmp_path / "some.mat", np.random.default_rng(0)
    savemat(path, {"coeff": random.random((2, 5, 5)), "sol": random.random((2, 5, 5))}, do_compression=compressed)
    good, outcomes = path.read_bytes(), set()
    for number in range(300):
        content = bytearray(good)
        for _ in range(3):
            content[random.integers(0, 300 if number % 2 else len(good))] = random.integers(256)
        path.write_bytes(content[: random.integers(len(good))] if number % 4 == 0 else content)
        try:
            read_mat_array(path, "sol")
        except (ValueError, NotImplementedError, zlib.error) as error:
            outcomes.add(type(error).__name__)
        else:
            outcomes.add("read")
    assert outcomes >= {"ValueError", "read"}
    for start in (b"MATLAB 7.3 MAT-file", b"MATLAB 5.0 MAT-file"):
        path.write_bytes(start.ljust(124) + b"\0\2IM" + bytes(100))
        with pytest.raises(NotImplementedError):
            read_mat_array(path, "sol")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    src = write_elasticity(tmp_path / "src", 3)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(LpbfError, match="holds something already"):
        convert("elasticity", str(src), str(tmp_path), train=2, test=1)
    shutil.rmtree(src)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
