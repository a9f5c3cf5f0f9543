"""Calibration: known numbers are found again, what data can't tell is said, wrong data give a sentence and no file."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
import yaml
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from lpbf_data.command_line import run
from lpbf_data.durable import sha256_of_file, sha256_of_tree
from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.stl import write_stl
from lpbf_data.geometry.surface_files import load_surface
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize
from lpbf_data.shrinkage import MEASURED_COOLING
from lpbf_data.stores.manifest import decode_manifest
from pipelines.build import build
from pipelines.calibrate import calibrate
from pipelines.calibrating.cuts import held_by
from pipelines.calibrating.fitting import FitError, Values, fit
from pipelines.calibrating.measured_file import COLUMNS, read_measured
from pipelines.calibrating.measured_points import interpolation_at
from pipelines.calibrating.parametrisation import Parametrisation, choose_parameters
from pipelines.netfabb.run import NetfabbRun
from pipelines.simulate import simulate
from pipelines.simulation.materials.material import MATERIALS, Material
from pipelines.simulation.materials.material_files import load_material, material_values
from pipelines.simulation.parts.named_parts import NAMED_PARTS, RIDGES
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.sources.case_files import FolderFiles

# jsonargparse's own word on how it is called; elsewhere commands run in processes of their own, which don't hear it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:jsonargparse", "ignore::DeprecationWarning:lpbf_data"
)

SIGMA = 0.002
POINTS = 400
HELD = 11.9  # mm: right of it the part stays on the plate
TRUE = -0.0061

Row = tuple[str, float, float, float, str, float, float]


@dataclass(frozen=True)
class Truth:
    """A part that was built with known numbers: what can be measured on it."""

    stl: Path
    mesh: VoxelMesh
    moved: dict[str, NDArray[np.float64]]

    def at(self, place: Sequence[float], component: int, phase: str = "rise") -> float:
        """A displacement at a place, by another interpolation than that of the calibration."""
        shape = np.array(self.mesh.shape) + 1
        grid = np.full(shape, np.nan)
        grid[tuple(self.mesh.point_indices.T)] = self.moved[phase][:, component]
        axes = tuple(np.arange(n) * s + o for n, s, o in zip(shape, self.mesh.spacing, self.mesh.origin, strict=True))
        return float(RegularGridInterpolator(axes, grid)(np.array(place)[None])[0])

    def rows(self, noise: float = 0.0, phase: str = "rise", components: str = "z") -> list[Row]:
        """Values along the upper side of the part."""
        rng = np.random.default_rng(5)
        places = [(x, y, 6.0) for x in (0.3, 2.0, 4.4, 7.1, 9.0, 12.5, 15.0) for y in (0.2, 2.7)]
        return [
            (f"p{n}{c}", *place, c, self.at(place, "xyz".index(c), phase) + noise * float(rng.normal()), SIGMA)
            for n, place in enumerate(places)
            for c in components
        ]


def with_numbers(calibration: str = "measured", *, strain: float, **walls: float) -> Material:
    material = MATERIALS["Inc625"].calibrated(calibration)
    known = replace(material.calibration, strain=strain, name="truth")
    if walls:
        assert known.walls is not None
        known = replace(known, walls=replace(known.walls, **walls))
    return replace(material, calibration=known)


def build_truth(stl: Path, mesh: VoxelMesh, material: Material, cut: str) -> Truth:
    known = material.calibration
    refinement = choose_refinement(mesh.num_planes, mesh.spacing[2], known.group_thickness, known.fewest_groups)
    frames = BuildSimulation(mesh, material, refinement=refinement).frames(held=held_by(cut, mesh))
    moved = {frame.phase: frame.state.displacement for frame in frames}
    return Truth(stl, mesh, {"cut": moved["cut"], "rise": moved["cut"] - moved["cooled"]})


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arm of 16 x 3 x 2 mm on a foot and three legs, 4 mm high."""
    folder = tmp_path_factory.mktemp("part")
    boxes = [(0, 16, 4, 6), (0, 2, 0, 4), (4, 6, 0, 4), (8, 10, 0, 4), (12, 16, 0, 4)]
    solids = []
    for left, right, low, high in boxes:
        solid = trimesh.creation.box((right - left, 3, high - low))
        solid.apply_translation(((left + right) / 2, 1.5, (low + high) / 2))
        solids.append(solid)
    trimesh.boolean.union(solids, engine="manifold").export(folder / "arm.stl")
    return folder / "arm.stl"


@pytest.fixture(scope="module")
def mesh(part: Path) -> VoxelMesh:
    from lpbf_data.geometry.voxelize import voxelize_to_size

    return voxelize_to_size(load_surface(part), POINTS, layer=0.04, planes=2)


@pytest.fixture(scope="module")
def arm(part: Path, mesh: VoxelMesh) -> Truth:
    return build_truth(part, mesh, with_numbers(strain=TRUE), f"x<{HELD}")


def write_table(path: Path, rows: Sequence[Row], header: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def options(truth: Truth, table: Path, out: Path, *words: str) -> list[str]:
    return [
        *("--measured", str(table), "--stl", str(truth.stl), "--material", "Inc625", "--out", str(out)),
        *("--cut", f"x<{HELD}", "--points", str(POINTS), "--pictures", "false", *words),
    ]


def command(words: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(calibrate, "calibrate", words)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def report(path: Path) -> dict[str, dict[str, float]]:
    content: dict[str, dict[str, float]] = yaml.safe_load(path.read_text(encoding="utf-8"))["fit"]["numbers"]
    return content


def test_a_known_strain_is_found_within_its_uncertainty(
    arm: Truth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = write_table(tmp_path / "arm.csv", arm.rows(SIGMA)), tmp_path / "my.yaml"
    assert command([*options(arm, table, out)[:-2], "--pictures", "true"]) == 0
    said = capsys.readouterr().out
    found = report(out)["strain"]
    assert found["before"] == pytest.approx(-1.28e-5 * MEASURED_COOLING, rel=1e-4)
    assert abs(found["after"] - TRUE) < 3 * found["standard_uncertainty"] < 0.02 * abs(TRUE)
    assert "residual (rms)" in said
    assert f"{found['after']:.5g}" in said
    material = load_material(out)
    assert material.calibration.strain == pytest.approx(found["after"], rel=1e-4)
    assert material.calibration.name == "my"
    kept = yaml.safe_load(out.read_text(encoding="utf-8"))["fit"]
    assert kept["fitted_on"]["measured_sha256"] == sha256_of_file(table)
    assert kept["fitted_on"]["part_sha256"] == sha256_of_file(arm.stl)
    assert kept["residual"]["rms_after_mm"] < 2 * SIGMA < kept["residual"]["rms_before_mm"]
    assert kept["simulations"] == 3
    assert kept["undetermined"] == ["nothing of what was fitted"]
    assert (tmp_path / "my.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm.csv", "my.png", "my.yaml"]


def test_the_material_file_goes_everywhere_and_log_manifest_and_card_name_it(arm: Truth, tmp_path: Path) -> None:
    out = tmp_path / "our machine.yaml"
    assert command(options(arm, write_table(tmp_path / "arm.csv", arm.rows()), out)) == 0
    simulate(str(tmp_path / "made"), stl=[str(arm.stl)], material=str(out), points=POINTS, workers=0)
    run_of_it = NetfabbRun("arm", FolderFiles(tmp_path / "made" / "arm"))
    assert run_of_it.log.material == "inc625 (our machine)"
    log = next((tmp_path / "made" / "arm").glob("*mechanical.out")).read_text(encoding="utf-8")
    assert "strain fitted with" in log
    assert sha256_of_file(tmp_path / "arm.csv")[:12] in log
    build(
        [str(tmp_path / "made")],
        out=str(tmp_path / "lpbf"),
        workers=0,
        time_limit=math.inf,
        splits="train=1",
        no_report=True,
    )
    (record,) = decode_manifest((tmp_path / "lpbf/manifest.parquet").read_bytes()).records
    assert record.run.material == "inc625 (our machine)"
    assert r"material: inc625 \(our machine\) (1)" in (tmp_path / "lpbf/README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def walls(part: Path, mesh: VoxelMesh) -> Truth:
    truth = with_numbers("netfabb", strain=-0.0102, normal=0.45, along=0.25)
    return build_truth(part, mesh, truth, "all")


def test_three_numbers_of_a_part_that_was_cut_free(walls: Truth, tmp_path: Path) -> None:
    rows = walls.rows(1e-5, "cut", "xyz")
    rows = [(*row[:6], 1e-5) for row in rows]
    turned = [(*row[:5], row[5] + {"x": 0.3, "y": 0.1, "z": -0.2 + 0.01 * row[1]}[row[4]], row[6]) for row in rows]
    for number, r in enumerate((rows, turned)):
        out = tmp_path / f"free{number}.yaml"
        table = write_table(tmp_path / f"{number}.csv", r)
        words = options(walls, table, out, "--calibration", "netfabb", "--fit", "strain,normal,along")
        words[words.index("--cut") + 1] = "all"
        if number:
            # A turn about y moves points along x as well, in the first order by their height: all at one.
            words += ["--name", "turned"]
        assert command(words) == 0
        found = report(out)
        for name, value in (("strain", -0.0102), ("normal", 0.45), ("along", 0.25)):
            off = abs(found[name]["after"] - value)
            assert off < 3.5 * found[name]["standard_uncertainty"], name
            assert off < 0.02 * abs(value), name
    assert report(tmp_path / "free1.yaml")["strain"]["after"] == pytest.approx(found["strain"]["after"], rel=1e-9)


def test_a_result_in_netfabbs_form(part: Path, tmp_path: Path) -> None:
    truth = with_numbers("netfabb", strain=-0.0102, normal=0.45, along=0.25)
    (tmp_path / "truth.yaml").write_text(yaml.safe_dump(material_values(truth)), encoding="utf-8")
    simulate(str(tmp_path / "made"), stl=[str(part)], material=str(tmp_path / "truth.yaml"), points=POINTS, workers=0)
    folder, out = tmp_path / "made" / "arm", tmp_path / "my.yaml"
    assert command(["--netfabb", str(folder), "--out", str(out)]) == 0
    found = report(out)
    for name, value in (("strain", -0.0102), ("normal", 0.45), ("along", 0.25)):
        assert found[name]["after"] == pytest.approx(value, rel=2e-3)
    kept = yaml.safe_load(out.read_text(encoding="utf-8"))["fit"]
    assert kept["fitted_on"]["netfabb_sha256"] == sha256_of_tree(folder)[0]
    assert kept["residual"]["rms_after_mm"] < 0.01 * kept["residual"]["rms_before_mm"]
    assert (tmp_path / "my.png").exists()


def test_what_the_data_cannot_tell_is_said(walls: Truth, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One place says one thing, however often it is measured."""
    place = (0.3, 1.5, 6.0)
    value = walls.at(place, 0, "cut") - walls.at((15.7, 1.5, 6.0), 0, "cut")
    rows: list[Row] = [(f"left{n}", *place, "x", value, 1e-4) for n in range(5)]
    rows += [(f"right{n}", 15.7, 1.5, 6.0, "x", 0.0, 1e-4) for n in range(5)]
    out = tmp_path / "my.yaml"
    words = options(walls, write_table(tmp_path / "one.csv", rows), out, "--calibration", "netfabb")
    words[words.index("--cut") + 1] = "all"
    assert command([*words, "--fit", "strain", "normal", "along"]) == 0
    kept = yaml.safe_load(out.read_text(encoding="utf-8"))["fit"]
    assert len(kept["undetermined"]) == 2
    assert all("data don't" in sentence for sentence in kept["undetermined"])
    assert "note: the data don't" in capsys.readouterr().out
    assert kept["residual"]["rms_after_mm"] < 1e-5
    assert sum(value > 2 for value in kept["singular_values"]) == 1


def linear(
    material: Material, responses: NDArray[np.float64]
) -> tuple[Parametrisation, Callable[..., NDArray[np.float64]]]:
    """A model that is linear in strain and its products, in closed form."""
    shrinkage = Parametrisation(material, choose_parameters(["strain", "normal", "along"]))
    return shrinkage, lambda numbers: responses @ shrinkage.coordinates(numbers)


def test_stated_uncertainty_is_the_scatter_of_repeated_measurements() -> None:
    rng = np.random.default_rng(8)
    shrinkage, model = linear(MATERIALS["Inc625"].calibrated("netfabb"), rng.normal(size=(40, 3)))
    truth, sigma = np.array([-0.009, 0.5, 0.3]), 1e-4
    deviations = []
    for _ in range(200):
        measured = model(truth) + sigma * rng.normal(size=40)
        found = fit(shrinkage, Values(measured, np.full(40, sigma), np.zeros((40, 0))), model)
        deviations.append((found.parameters - truth) / found.uncertainty)
    # Noise above what was stated widens the uncertainty, so that deviations come out a little below 1.
    assert np.std(deviations, axis=0) == pytest.approx(np.full(3, 0.95), abs=0.12)
    assert np.abs(np.mean(deviations, axis=0)).max() < 0.25


def test_a_response_that_is_not_linear() -> None:
    """A strain that grows ever less effective: u = a (1 - exp(-e / e0)) has its solution in closed form."""
    shrinkage = Parametrisation(MATERIALS["Inc625"], choose_parameters(["strain"]))
    sizes, limit = np.linspace(0.5, 2, 12), 0.006
    measured = sizes * (1 - np.exp(-0.011 / limit))
    values = Values(measured, np.full(12, 1e-3), np.zeros((12, 0)))
    found = fit(shrinkage, values, lambda numbers: sizes * (1 - np.exp(float(numbers[0]) / limit)))
    assert found.parameters[0] == pytest.approx(-0.011, abs=3 * float(found.uncertainty[0]))
    assert found.rms[1] < 1e-3
    assert found.simulations <= 8


def test_a_share_ends_at_the_limit_of_what_makes_sense() -> None:
    responses = np.random.default_rng(1).normal(size=(20, 3))
    shrinkage, model = linear(MATERIALS["Inc625"].calibrated("netfabb"), responses)
    measured = responses @ (np.array([-0.009, -0.009 * 0.5, 0.009 * 0.2]))  # along -0.2
    found = fit(shrinkage, Values(measured, np.full(20, 1e-4), np.zeros((20, 0))), model)
    assert found.parameters[2] == 0
    assert any("ended at 0" in sentence for sentence in found.undetermined)


def test_places_between_nodes_and_beside_the_mesh(mesh: VoxelMesh) -> None:
    rng = np.random.default_rng(2)
    places = rng.uniform((0, 0, 4), (16, 3, 6), size=(50, 3))
    moved = mesh.points @ rng.normal(size=(3, 3)) + 0.5  # linear: trilinear interpolation is exact
    wanted = np.linalg.lstsq(np.c_[mesh.points, np.ones(mesh.num_points)], moved, rcond=None)[0]
    found = interpolation_at(mesh, places)
    for component in range(3):
        values = found.component_of(moved, np.full(50, component))
        assert values == pytest.approx((np.c_[places, np.ones(50)] @ wanted)[:, component])
    assert found.distance.max() < max(mesh.spacing)
    assert interpolation_at(mesh, np.array([[-3.0, 1.0, 5.0]])).distance == pytest.approx([3.0])


@pytest.mark.parametrize(
    ("cut", "free"),
    [
        ("x<8", lambda x, y: x < 8 - 1e-9),
        ("x>4 and y<=1", lambda x, y: (x > 4 + 1e-9) & (y <= 1 + 1e-9)),
        ("x<2 or x>=12", lambda x, y: (x < 2 - 1e-9) | (x >= 12 - 1e-9)),
    ],
)
def test_conditions_of_a_cut(cut: str, free: Callable[..., NDArray[np.bool_]], mesh: VoxelMesh) -> None:
    foot = mesh.points[mesh.point_levels == 0]
    held = held_by(cut, mesh)
    assert held is not None
    assert (held == ~free(foot[:, 0], foot[:, 1])).all()
    assert held_by("all", mesh) is None
    assert held_by("x<100", mesh) is None


def test_a_table_as_excel_writes_it(arm: Truth, tmp_path: Path) -> None:
    rows = arm.rows()
    plain = read_measured(write_table(tmp_path / "plain.csv", rows))
    lines = [";".join(COLUMNS), *(";".join(str(cell).replace(".", ",") for cell in row) for row in rows)]
    (tmp_path / "excel.csv").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n;;;;;;\r\n").encode())
    excel = read_measured(tmp_path / "excel.csv")
    for name in ("coordinates", "components", "values", "sigmas"):
        assert (getattr(plain, name) == getattr(excel, name)).all()
    assert not plain.remarks
    assert ["semicolons" in remark.sentence for remark in excel.remarks] == [True]


def test_rows_that_begin_like_comments_and_words_of_windows(arm: Truth, tmp_path: Path) -> None:
    """A laboratory numbers its points #1, #2; what is taken for a comment is told. Degrees are a byte in Windows."""
    rows = arm.rows()[:8]
    table = [["sep=;"], ["# measured at 25 °C, in µm / 1000"], [*COLUMNS, "angle [°]"]]
    table += [[f"{'#' * (k < 3)}{k} §", *row[1:], "30°"] for k, row in enumerate(rows)]
    path = tmp_path / "laboratory.csv"
    path.write_bytes("\r\n".join(";".join(map(str, row)) for row in table).encode("cp1252"))
    read, plain = read_measured(path), read_measured(write_table(tmp_path / "plain.csv", rows))
    assert read.points == ("3 §", "4 §", "5 §", "6 §", "7 §")
    assert (read.values == plain.values[3:]).all()
    assert [(remark.kind, remark.count) for remark in read.remarks] == [
        ("encoding", 1), ("separator", 1), ("commented_rows", 3), ("columns", 1),
    ]  # fmt: skip


Change = Callable[[list[Row]], list[Row]]


def scaled(factor: float) -> Change:
    return lambda rows: [(row[0], *(factor * c for c in row[1:4]), *row[4:]) for row in rows]  # type: ignore[misc]


def valued(change: Callable[[float], object]) -> Change:
    return lambda rows: [(*row[:5], change(row[5]), row[6]) for row in rows]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (scaled(1 / 25.4), (), "in inches: multiply x_mm, y_mm and z_mm by 25.4"),
        (scaled(1e-3), (), "in metres"),
        (lambda rows: [(*r[:3], r[3] + 40, *r[4:]) for r in rows], (), "14 of 14 measured values lie off the part"),
        (lambda rows: [*rows[:-1], ("far", 99.0, *rows[-1][2:])], (), "far by 83 mm"),
        (valued(lambda v: 1000 * v), (), "in micrometres"),
        (valued(lambda v: v / 25.4), (), "in inches"),
        (valued(lambda v: -v), (), "opposite sign"),
        (valued(lambda v: "nan"), (), "line 2: value_mm must be a number, not 'nan'"),
        (valued(lambda v: ""), (), "line 2: value_mm must be a number, not ''"),
        (valued(lambda v: "0,2"), (), "line 2: value_mm must be a number, not '0,2'"),
        (lambda rows: [(*r[:6], 0.0) for r in rows], (), "sigma_mm must be above 0"),
        (lambda rows: [(*r[:4], "w", *r[5:]) for r in rows], (), "unknown component 'w'"),
        (lambda rows: rows[:1], ("--cut", "all"), "too few"),
        (lambda rows: rows[:2], ("--fit", "strain,normal,along"), "too few"),
        (lambda rows: [], (), "holds no values"),
        (valued(lambda v: 0.5), ("--points", "400"), "doesn't improve|nothing|don't determine"),
        (list, ("--cut", "x<-4"), "cuts nothing"),
        (list, ("--cut", "z<4"), "isn't understood"),
        (list, ("--fit", "colour"), "unknown --fit colour"),
        (list, ("--part", "cantilever"), "two parts"),
        (list, ("--netfabb", "folder"), "leave out --measured"),
        (list, ("--material", "Unobtainium"), "unknown --material"),
        (list, ("--name", "measured"), "can't be called measured"),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence_and_no_file(
    change: Change, words: tuple[str, ...], said: str, arm: Truth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = write_table(tmp_path / "arm.csv", change(arm.rows())), tmp_path / "my.yaml"
    assert command(options(arm, table, out, *words)) == 1
    error = capsys.readouterr().err
    assert any(piece in error for piece in said.split("|")), error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["arm.csv"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"point,x_inch,y_inch,z_inch,component,value_mm,sigma_mm\n", "lacks the columns x_mm, y_mm, z_mm"),
        (b"point,x_mm,x_mm,y_mm,z_mm,component,value_mm,sigma_mm\na,1,1,1,1,z,1,1\n", "x_mm twice"),
        (b"point,x_mm,y_mm,z_mm,component,value_mm,sigma_mm\na,1,1,1,z,1\n", "6 values below 7 names"),
        (b"PK\x03\x04rest of a workbook", "is a workbook"),
        (bytes(range(256)), "lacks the columns"),
    ],
)
def test_a_table_that_is_none(
    content: bytes, said: str, arm: Truth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "arm.csv").write_bytes(content)
    assert command(options(arm, tmp_path / "arm.csv", tmp_path / "my.yaml")) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["arm.csv"]


def test_a_second_fit_on_the_same_values_does_not_improve(
    arm: Truth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "arm.csv", arm.rows(SIGMA))
    assert command(options(arm, table, tmp_path / "my.yaml")) == 0
    words = options(arm, table, tmp_path / "other.yaml")
    words[words.index("--material") + 1] = str(tmp_path / "my.yaml")
    assert command(words) == 1
    assert "the fit doesn't improve" in capsys.readouterr().err
    assert not (tmp_path / "other.yaml").exists()
    before = (tmp_path / "my.yaml").read_bytes()
    assert command(options(arm, table, tmp_path / "my.yaml")) == 1
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "my.yaml").read_bytes() == before


def test_noise_alone_says_nothing() -> None:
    rng = np.random.default_rng(3)
    shrinkage = Parametrisation(MATERIALS["Inc625"], choose_parameters(["strain"]))
    response = rng.normal(size=20)
    values = Values(rng.normal(size=20), np.full(20, 1.0), np.zeros((20, 0)))
    with pytest.raises(FitError, match="determine the strain"):
        fit(shrinkage, values, lambda numbers: response * numbers)


@pytest.mark.parametrize("what", ["nowhere", "empty", "no surface"])
def test_a_folder_that_holds_no_result(
    what: str, part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made"
    if what == "empty":
        folder.mkdir()
    if what == "no surface":
        simulate(str(tmp_path / "all"), stl=[str(part)], points=200, workers=0)
        folder = tmp_path / "all" / "arm"
        for path in folder.glob("*.stl"):
            path.unlink()
    assert command(["--netfabb", str(folder), "--out", str(tmp_path / "my.yaml")]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert str(folder) in error or "made" in error
    assert not (tmp_path / "my.yaml").exists()


def test_parts_by_name(tmp_path: Path) -> None:
    bridge = NAMED_PARTS["amb2018_bridge"].surface()
    assert bridge.volume == pytest.approx(3732.5, abs=0.1)  # of NIST's STL file
    assert (bridge.bounds == [[0, 0, 0], [75, 5, 12.5]]).all()
    for path in NAMED_PARTS["amb2018_bridge"].measured.values():
        measured = read_measured(path)
        assert measured.coordinates[:, 0] == pytest.approx(RIDGES)
        assert measured.values[0] > 1
        assert (measured.components == 2).all()
    arm = NAMED_PARTS["cantilever"]
    mesh = voxelize(arm.surface(), (arm.cell, arm.cell))
    assert (arm.surface().bounds == [[0, 0, 0], [60, 10, 9]]).all()
    assert mesh.num_cells == 60 * 10 * 3 + 6 * 10 * (17 + 9)
    held = held_by(arm.cut, mesh)
    assert held is not None
    assert mesh.points[mesh.point_levels == 0][held, 0].min() == pytest.approx(51)
    write_stl(tmp_path / "arm.stl", arm.surface())
    assert load_surface(tmp_path / "arm.stl").volume == pytest.approx(arm.surface().volume)


def test_a_part_by_name_without_measured_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path / "my.yaml"), "--part"]
    assert command([*words, "cantilever", "--material", "Inc625"]) == 1
    assert "no measured values of cantilever in Inc625" in capsys.readouterr().err
    assert command([*words, "amb2018_bridge", "--material", "Ti64"]) == 1
    assert "it has those in: Inc625, 15-5PH" in capsys.readouterr().err
    assert command([*words, "tower", "--material", "Ti64"]) == 1
    assert "unknown --part tower" in capsys.readouterr().err


def test_a_part_by_name_is_simulated(tmp_path: Path) -> None:
    assert simulate(str(tmp_path / "made"), part=["cantilever"], points=300, workers=0) == 0
    case = NetfabbRun("cantilever", FolderFiles(tmp_path / "made" / "cantilever")).read_case(("displacement",))
    assert np.ptp(case.points, axis=0) == pytest.approx([60, 10, 9], abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["binary/step2", "ascii/meshes2"])
def test_netfabbs_own_results_are_fitted(name: str, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "my.yaml"
    assert command(["--netfabb", str(samples / name), "--out", str(out), "--pictures", "false"]) == 0
    kept = yaml.safe_load(out.read_text(encoding="utf-8"))["fit"]
    assert kept["simulations"] <= 6
    assert kept["residual"]["rms_after_mm"] < 0.8 * kept["residual"]["rms_before_mm"]
    assert kept["residual"]["rms_after_mm"] < 0.002
    assert report(out)["strain"]["after"] == pytest.approx(-0.0087, rel=0.1)


@pytest.mark.slow
def test_the_bridge_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "in625.yaml"
    assert command(["--part", "amb2018_bridge", "--material", "IN625", "--out", str(out)]) == 0
    kept = yaml.safe_load(out.read_text(encoding="utf-8"))["fit"]
    assert kept["simulations"] == 3
    assert kept["residual"]["rms_after_mm"] < 0.01
    assert -report(out)["strain"]["after"] / 1.28e-5 == pytest.approx(327, abs=2)  # kelvins
    assert load_material(out).process.machine == "M270"
