"""Predictions for another material: the scale by hand, scaled fields and intervals, what is printed, and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import meshio
import numpy as np
import pytest
import yaml

from flare_model import from_pretrained
from flare_model.compensate import compensate
from flare_model.data.intervals import ColumnInterval, Intervals
from flare_model.data.material_scale_errors import ERRORS, SHARE_OF_STRAIN
from flare_model.decision.answer import Auxiliary, answer_of
from flare_model.decision.auxiliary import read_auxiliary
from flare_model.decision.material_scale import scale_for_material
from flare_model.decision.prediction import predict_part
from flare_model.judging.risk_curves import LogisticCurve
from flare_model.judging.risk_model import RiskModel
from flare_model.predict import predict
from lpbf_data.errors import UsageError
from lpbf_data.shrinkage import EXPANSIONS, shrinkage_of
from pipelines.simulation.materials.calibrations import CALIBRATIONS
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.materials.material_files import choose_material, load_material, material_values
from tests.flare_model.flare_support import tiny_surrogate
from tests.flare_model.test_decision import box, model, part_of, table

__all__ = ["model"]

OWN = "based_on: Ti64\ncalibration: {name: our machine, strain: -0.0034056, source: a cantilever}\n"
"""1.2 times the strain of `measured`."""


def write_own_material(folder: Path, text: str = OWN) -> str:
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    return str(folder / "own.yaml")


@pytest.mark.parametrize("calibration", list(CALIBRATIONS))
@pytest.mark.parametrize("name", list(MATERIALS))
def test_both_readers_of_a_material_agree(name: str, calibration: str, tmp_path: Path) -> None:
    material = MATERIALS[name].calibrated(calibration)
    assert MATERIALS[name].expansion == EXPANSIONS[name]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(material_values(material)), encoding="utf-8")
    for found in (shrinkage_of(str(tmp_path / "one.yaml")), shrinkage_of(material.label), shrinkage_of(
        f"{name} ({calibration})"
    )):  # fmt: skip
        assert (found.material, found.calibration) == (name, calibration)
        assert (found.strain, found.expansion) == (material.calibration.strain, material.expansion)
        assert found.at_once == material.calibration.at_once


def test_a_file_may_be_based_on_a_known_material(tmp_path: Path) -> None:
    found, known = shrinkage_of(write_own_material(tmp_path)), load_material(Path(write_own_material(tmp_path)))
    assert (found.strain, found.expansion) == (known.calibration.strain, known.expansion) == (-0.0034056, 8.6e-6)
    assert not found.at_once


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "isn't a material file"),
        ("a: b\n", "names neither expansion nor based_on"),
        ("based_on: Wood\n", "unknown based_on Wood"),
        ("expansion: hot\n", "expansion must be a number"),
        ("expansion: 1\n", "expansion must be 0 to 0.001"),
        ("based_on: Ti64\ncalibration: {name: a}\n", "its calibration has no strain"),
        ("based_on: Ti64\ncalibration: {name: a, strain: .nan, source: b}\n", "strain must be a number"),
        ("based_on: Ti64\ncalibration: {name: a, strain: 0.01, source: b}\n", "strain must be -0.1 to 0"),
        ("based_on: Ti64\ncalibration: {name: a, strain: 0.0, source: b}\n", "shrink by nothing"),
        ("based_on: Ti64\ncalibration: {name: a, strain: -0.09, source: b}\n", "nothing was measured beyond"),
        ("based_on: Ti64\ncalibration: {name: a, strain: -0.0001, source: b}\n", "nothing was measured beyond"),
        ("based_on: Ti64\ncalibration: other\n", "unknown calibration other"),
        ("a: [\n", "can't be read"),
    ],
)
def test_a_material_file_without_a_valid_strain_is_refused(text: str, said: str, tmp_path: Path, model: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_auxiliary(str(model), from_pretrained(model), write_own_material(tmp_path, text))
    assert "own.yaml" in str(caught.value)


def test_materials_and_models_that_can_not_be_scaled_are_refused(tmp_path: Path, model: Path) -> None:
    usage = from_pretrained(model).usage
    with pytest.raises(UsageError, match=r"unknown material Gold; known are: Ti64.*or measured and netfabb"):
        scale_for_material("Gold", usage)
    for name, why in (
        ("gone", "there is no such file; name one .* wrote, or one of Ti64"),
        ("folder", "Is a directory$"),
    ):
        (tmp_path / "folder.yaml").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=rf"{name}\.yaml can't be read: {why}") as caught:
            scale_for_material(str(tmp_path / f"{name}.yaml"), usage)
        assert "Errno" not in str(caught.value)
    with pytest.raises(UsageError, match="trained on a material that it doesn't name"):
        scale_for_material("Inc625", tiny_surrogate().usage)
    (tmp_path / "found.yaml").write_text(yaml.safe_dump(material_values(choose_material("Inc625"))), encoding="utf-8")
    found, known = (scale_for_material(name, usage) for name in (str(tmp_path / "found.yaml"), "IN625"))
    assert found == replace(known, wanted=found.wanted)


def test_the_scale_by_hand(tmp_path: Path, model: Path) -> None:
    usage = from_pretrained(model).usage
    same = scale_for_material("measured", usage)
    assert (same.displacement, same.clearance, same.error, same.calibrated) == (1.0, 1.0, 0.0, False)
    other = scale_for_material("Inc625", usage)
    assert other.displacement == pytest.approx(12.8 / 8.6)
    assert (other.error, other.calibrated) == (ERRORS["expansion"][0], False)
    mine = scale_for_material(write_own_material(tmp_path), usage)
    assert mine.displacement == pytest.approx(1 + 0.2 * SHARE_OF_STRAIN["displacement"], rel=1e-3)
    assert mine.clearance == pytest.approx(1 + 0.2 * SHARE_OF_STRAIN["clearance"], rel=1e-3)
    assert mine.error == pytest.approx(0.2 * ERRORS["strain"][0] / mine.displacement, rel=1e-3)
    assert mine.calibrated
    assert scale_for_material("netfabb", usage).error == ERRORS["at once"][0]


def test_fields_intervals_and_chance_are_scaled(model: Path) -> None:
    surrogate, part = from_pretrained(model), part_of(table())
    scale = scale_for_material("Inc625", surrogate.usage)
    before, after = predict_part(surrogate, part), predict_part(surrogate, part, None, scale)
    for name in ("displacement_x", "displacement_z"):
        np.testing.assert_allclose(after.fields[name], scale.displacement * before.fields[name], rtol=1e-5)
    lost = 100 - before.fields["build_clearance_min"]
    np.testing.assert_allclose(100 - after.fields["build_clearance_min"], scale.clearance * lost, rtol=1e-4)
    # A chance of 50 % stays; a hit that was nearly certain becomes less certain.
    least = float(after.fields["build_clearance_min"].min())
    for intercept in (0.0, 3.0):
        risk = RiskModel("build_clearance_min", LogisticCurve(-least, 5.0, intercept, 4.0), 100, 50)
        hit = answer_of(after, Auxiliary(risk_model=risk, material_scale=scale)).hit
        assert hit is not None
        assert hit.chance is not None
        steepness = 4.0 / 5.0 * scale.clearance_error * (100 - least) / 1.645
        expected = intercept / math.sqrt(1 + math.pi * steepness**2 / 8)
        assert hit.chance == pytest.approx(1 / (1 + math.exp(-expected)), rel=1e-4)
        assert hit.chance <= risk.chance(-least)


def test_each_direction_has_an_interval_of_its_own(model: Path) -> None:
    """The intervals of the peaks where `intervals.json` has them, else that of the part's extreme."""
    surrogate, part = from_pretrained(model), part_of(table())
    halves = {name: ColumnInterval((), 0.02, 0.07, 0.02) for name in surrogate.usage.targets}
    before = answer_of(predict_part(surrogate, part, Intervals(0.9, "", halves, 40)), Auxiliary())
    for peak in (before.up, before.down, before.sideways):
        assert peak is not None
        assert peak.half_width == 0.07
    halves["displacement_z"] = replace(halves["displacement_z"], peaks={"largest": 0.01, "least": 0.03})
    halves["displacement_x"] = replace(halves["displacement_x"], peaks={"sideways": 0.005})
    for scale in (None, scale_for_material("Inc625", surrogate.usage)):
        prediction = predict_part(surrogate, part, Intervals(0.9, "", halves, 40), scale)
        answer = answer_of(prediction, Auxiliary(material_scale=scale))
        factor, error = (1.0, 0.0) if scale is None else (scale.displacement, scale.error)
        for peak, half in ((answer.up, 0.01), (answer.down, 0.03), (answer.sideways, 0.005)):
            assert peak is not None
            assert peak.half_width == pytest.approx(math.hypot(factor * half, error * peak.value), rel=1e-5)


def test_the_output_states_the_material_and_its_calibration(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box(10, 10, 12).export(tmp_path / "box.stl")
    words = {"checkpoint": str(model), "src": [str(tmp_path / "box.stl")], "pictures": False, "points": 200}
    assert predict(**words, out=str(tmp_path / "a")) == 0  # type: ignore[arg-type]
    assert "not calibrated to your machine" in " ".join(capsys.readouterr().out.split())
    material = write_own_material(tmp_path, OWN + "process: {layer_thickness: 0.03}\n")
    assert predict(**words, out=str(tmp_path / "b"), material=material, orientations=2) == 0  # type: ignore[arg-type]
    said = " ".join(capsys.readouterr().out.split())
    assert "not calibrated" not in said
    assert "material Ti64 (our machine)" in said
    assert "displacements are those for Ti64 (measured) times 1.21, a factor that was off by up to 17 % on nine" in said
    assert "layers of 0.03 mm aren't in it" in said
    answers = [json.loads((tmp_path / one / "answers.json").read_text())["parts"]["box"] for one in "ab"]
    assert answers[0]["scale"] is None
    assert answers[1]["scale"]["material"] == "Ti64 (our machine)"
    ratio = answers[1]["up"]["value"] / answers[0]["up"]["value"]
    assert ratio == pytest.approx(answers[1]["scale"]["displacement"], rel=1e-4)


def test_results_of_another_material_are_left_out_with_a_message(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = part_of(table(), 100)
    points = {"displacement_z": part.points[:, 2]}
    meshio.Mesh(part.points, [("hexahedron", part.cells)], point_data=points).write(tmp_path / "part.vtu")
    words = {"checkpoint": str(model), "src": [str(tmp_path / "part.vtu")], "pictures": False}
    for material, told in ((None, False), ("Inc625", True)):
        assert predict(**words, out=str(tmp_path / "out"), material=material) == 0  # type: ignore[arg-type]
        said = capsys.readouterr()
        assert ("results that came with a part aren't those of the --material" in said.err) == told
        assert ("relative L2 error" in said.out) != told


def test_compensation_moves_by_the_scaled_displacement(model: Path, tmp_path: Path) -> None:
    box(10, 10, 12).export(tmp_path / "box.stl")
    moved = []
    for name, material in (("a", None), ("b", "Inc625")):
        out = tmp_path / f"{name}.stl"
        compensate(str(tmp_path / "box.stl"), str(out), checkpoint=str(model), points=200, material=material)
        moved.append(json.loads(out.with_suffix(".json").read_text()))
    assert moved[0]["material"] is None
    largest = [one["bodies"][0]["largest_move"] for one in moved]
    assert largest[1] / largest[0] == pytest.approx(moved[1]["material"]["displacement"], rel=1e-4)
