"""From a part to an answer: its likeness to the training parts, whether it is hit, and what is printed and written."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from matplotlib.image import imread

from flare_model import from_pretrained
from flare_model.checkpoints import packaged_model
from flare_model.checkpoints.files import WEIGHTS_NAME, Usage
from flare_model.checkpoints.surrogate import Surrogate, results_folder
from flare_model.compensate import compensate
from flare_model.data.envelope import Envelope, Range
from flare_model.data.likeness import (
    DESCRIPTORS,
    LIKENESS_NAME,
    TrainingShapes,
    describe_shape,
    read_training_shapes,
    write_training_shapes,
)
from flare_model.data.normalisation import Normalisation
from flare_model.judging.interference import HitScore
from flare_model.judging.risk_curves import LogisticCurve
from flare_model.judging.risk_model import RISK_NAME, RiskModel, describe_verdicts, read_risk, verdict_of, write_risk
from flare_model.predict import predict
from flare_model.prediction.part import Meshing, Part
from flare_model.prediction.parts import read_parts
from flare_model.prediction.surface_parts import mesh_surface
from lpbf_data.durable import sha256_of_file
from lpbf_data.errors import GeometryError, SchemaError, StoreError, UsageError
from lpbf_data.geometry.closed_surface import Surface, surface_of_arrays
from tests.flare_model.flare_support import tiny_flare

TARGETS = ("displacement_x", "displacement_y", "displacement_z", "build_clearance_min")


def box(*size: float, at: tuple[float, float, float] = (0, 0, 0)) -> trimesh.Trimesh:
    """A box in mm; `at` is the middle of its base."""
    mesh = trimesh.creation.box(size)
    mesh.apply_translation((at[0], at[1], at[2] + size[2] / 2))
    return mesh


def table() -> trimesh.Trimesh:
    """A top of 20 by 10 by 2 mm on one leg of 4 by 10 by 8 mm in its middle."""
    return trimesh.boolean.union([box(4, 10, 8.5), box(20, 10, 2, at=(0, 0, 8))], engine="manifold")


def surface_of(mesh: trimesh.Trimesh) -> Surface:
    return surface_of_arrays(mesh.vertices, mesh.faces)


def part_of(mesh: trimesh.Trimesh, points: int = 400) -> Part:
    return mesh_surface(surface_of(mesh), "part", points)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that predicts displacement and clearance, with its `likeness.json`."""
    folder = tmp_path_factory.mktemp("decision") / "model"
    norm = Normalisation(target_mean=(0.0, 0.0, 0.0, 90.0), target_std=(0.02, 0.02, 0.03, 5.0))
    ranges = {"num_points": Range(8, 9000), "height": Range(1, 60), "aspect_ratio_max": Range(1, 9)}
    envelope = Envelope(9, **ranges, materials=("ti64",), num_points_median=400.0)
    usage = Usage(norm, TARGETS, envelope=envelope)
    Surrogate(tiny_flare(out_dim=4), usage).eval().save_pretrained(folder)
    digest = sha256_of_file(folder / WEIGHTS_NAME)
    shapes = [part_of(box(*size)) for size in ((8, 8, 8), (30, 20, 10), (12, 10, 40), (20, 20, 2), (50, 50, 20))]
    write_training_shapes(
        folder, TrainingShapes.of([describe_shape(part.points, part.cells) for part in shapes], digest)
    )
    return folder


def write_constant_risk(folder: Path, intercept: float, parts: int = 100) -> None:
    """Write a risk model that gives every part the same chance of a hit."""
    digest = sha256_of_file(folder / WEIGHTS_NAME)
    curve = LogisticCurve(-80.0, 5.0, intercept, 0.0)
    write_risk(folder, RiskModel("build_clearance_min", curve, parts, parts // 2, weights_sha256=digest))


def test_descriptors_of_a_table_by_hand() -> None:
    part = part_of(table(), 3000)
    found = describe_shape(part.points, part.cells)
    assert found.keys() == DESCRIPTORS.keys()
    assert (found["width"], found["depth"], found["height"]) == pytest.approx((20, 10, 10), rel=0.06)
    assert found["volume"] == pytest.approx(400 + 320, rel=0.1)
    assert found["overhang_share"] == pytest.approx(320 / 720, abs=0.06)
    assert found["overhang_height"] == pytest.approx(8, abs=0.6)
    assert found["footprint_share"] == pytest.approx(0.2, abs=0.04)
    moved = describe_shape(part.points + np.array([3, 4, 0], np.float32), part.cells)
    assert moved["offset"] - found["offset"] == pytest.approx(5, abs=0.01)


def test_a_part_is_compared_with_the_training_parts() -> None:
    base = dict.fromkeys(DESCRIPTORS, 1.0)
    seen = TrainingShapes.of([base | {"height": float(k)} for k in range(1, 201)])
    assert not seen.compare(base | {"height": 100.0}).reasons
    rare = seen.compare(base | {"height": 199.9})
    assert [reason.name for reason in rare.reasons] == ["height"]
    assert not rare.reasons[0].outside
    assert rare.unlike == (seen.usual_rarities == 0)
    far = seen.compare(base | {"height": 300.0})
    assert far.unlike
    assert str(far.reasons[0]) == "height 300 mm, larger than all of its parts (most of them 2.99 … 198 mm)"


def test_auxiliary_files_are_read_as_written_or_refused(tmp_path: Path) -> None:
    seen = TrainingShapes.of([dict.fromkeys(DESCRIPTORS, float(k)) for k in range(5)], "ab")
    write_training_shapes(tmp_path, seen)
    assert read_training_shapes(tmp_path) == seen
    risk = RiskModel("build_clearance_min", LogisticCurve(-80.0, 5.0, 0.1, 2.0), 10, 4, weights_sha256="ab")
    write_risk(tmp_path, risk)
    assert read_risk(tmp_path) == risk
    for name, read in ((LIKENESS_NAME, read_training_shapes), (RISK_NAME, read_risk)):
        (tmp_path / name).write_text((tmp_path / name).read_text().replace('"ab"', "nan").replace("-80.0", "NaN"))
        with pytest.raises(SchemaError, match="remove it"):
            read(tmp_path)
        (tmp_path / name).unlink()
        assert read(tmp_path) is None


def test_parts_and_hits_are_counted_for_each_verdict() -> None:
    kept = RiskModel("build_clearance_min", LogisticCurve(0.0, 1.0, 0.0, 3.0), 10, 5)
    risks = [
        HitScore(str(k), score, hit, None)
        for k, (score, hit) in enumerate([(2, True), (2, False), (0, True), (-2, False)])
    ]
    assert verdict_of(kept.chance(2.0)) == "yes"
    assert describe_verdicts(kept, risks) == {
        "yes": {"parts": 2, "hits": 1}, "no": {"parts": 1, "hits": 0}, "can't tell": {"parts": 1, "hits": 1}
    }  # fmt: skip
    assert RiskModel.of("build_clearance_min", risks[:1]) is None


def test_a_package_without_its_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_model, "PACKAGED_FOLDER", tmp_path)
    with pytest.raises(StoreError, match=r"comes without a model of its own .* --checkpoint"):
        from_pretrained()


def test_the_packaged_model_is_used_and_nothing_is_written_into_its_folder(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged_model, "PACKAGED_FOLDER", model)
    points = torch.rand(20, 3)
    with torch.no_grad():
        assert torch.equal(from_pretrained()(points), from_pretrained(model)(points))
    assert results_folder(str(model), "evaluation") == Path("own_model/evaluation")


def test_a_part_of_a_few_millimetres_gets_a_hint_about_inches(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box(2, 1.5, 1).export(tmp_path / "box.stl")
    predict(str(model), [str(tmp_path / "box.stl")], out=str(tmp_path / "out"), pictures=False)
    hint = "if they are in inches, use --units inch (box.stl: 2 mm, in inches it would be 50.8 mm)"
    assert capsys.readouterr().err.count(hint) == 1
    predict(str(model), [str(tmp_path / "box.stl")], out=str(tmp_path / "out"), pictures=False, units="mm")
    said = capsys.readouterr()
    assert "read in mm; 1 body" in said.out
    assert "inch" not in said.out + said.err
    box(0.6, 0.5, 0.4).export(tmp_path / "box.stl")  # so small that it may be in metres too: one hint, in the notes
    predict(str(model), [str(tmp_path / "box.stl")], out=str(tmp_path / "out"), pictures=False)
    said = capsys.readouterr()
    assert "--units inch" not in said.out
    assert said.err.count("if they are in metres, use --units m, if in inches, --units inch (box.stl: 0.6 mm)") == 1


@pytest.mark.parametrize(("intercept", "said", "status"), [(9.0, "yes", 3), (-9.0, "no", 0), (0.0, "can't tell", 4)])
def test_an_answer_is_printed_written_and_given_as_exit_status(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], intercept: float, said: str, status: int
) -> None:
    write_constant_risk(model, intercept)
    box(20, 10, 12).export(tmp_path / "box.stl")
    words = {"pictures": False, "fail_on_risk": True}
    assert predict(str(model), [str(tmp_path / "box.stl")], out=str(tmp_path / "out"), **words) == status  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    blade = "its blade, which spreads the powder,"
    hit = {"yes": f"{blade} hits the part", "no": f"{blade} doesn't hit the part"}
    hit["can't tell"] = f"can't tell whether {blade} hits the part"
    assert f"  recoater    {hit[said]}" in shown
    assert "20 × 10 × 12 mm; read in mm, since the file states no unit (--units); 1 body; 2,400 mm³" in shown
    assert "; not calibrated to your machine (--material)" in shown
    assert "coordinates" not in shown
    (answer,) = json.loads((tmp_path / "out/answers.json").read_text())["parts"].values()
    assert answer["hit"]["verdict"] == said
    assert answer["hit"]["chance"] == pytest.approx(1 / (1 + math.exp(-intercept)))
    assert not answer["likeness"]["unlike"]
    place = answer["hit"]["place"]
    part = next(read_parts(tmp_path / "box.stl", Meshing(400)))
    assert isinstance(part, Part)
    with torch.no_grad():
        values = from_pretrained(model)(part.points).numpy()
    assert answer["up"]["value"] == pytest.approx(values[:, 2].max(), rel=1e-4)
    np.testing.assert_allclose(place, part.points[np.argmin(values[:, 3])], atol=1e-4)
    assert answer["hit"]["layer"] == max(1, round(place[2] / 0.04))


def test_the_answer_for_a_moved_part_states_the_origin_of_its_coordinates(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box(20, 10, 12, at=(100, 0, 3)).export(tmp_path / "box.stl")
    predict(str(model), [str(tmp_path / "box.stl")], out=str(tmp_path / "out"), pictures=False)
    (answer,) = json.loads((tmp_path / "out/answers.json").read_text())["parts"].values()
    x, _, z = answer["moved"]
    words = "x and y from the middle of the build plate, z from the plate: the file's plus"
    assert f"  coordinates {words} x {x:+.4g}, z {z:+.4g} mm" in capsys.readouterr().out


def test_a_part_unlike_the_training_parts_gets_no_verdict(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_constant_risk(model, 9.0)
    box(80, 90, 20).export(tmp_path / "huge.stl")
    assert predict(str(model), [str(tmp_path / "huge.stl")], out=str(tmp_path / "out"), pictures=False, json=True) == 0
    told = capsys.readouterr()
    (answer,) = json.loads(told.out)["parts"].values()
    assert answer["hit"]["verdict"] == "can't tell"
    assert answer["hit"]["chance"] > 0.99
    assert any(one.startswith("width 90 mm, larger than all") for one in answer["likeness"]["said"])
    assert "out of the build volume along x" in told.err


def test_compensating_a_part_unlike_the_training_parts_warns(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box(2, 1.5, 1).export(tmp_path / "box.stl")
    compensate(str(tmp_path / "box.stl"), str(tmp_path / "new.stl"), checkpoint=str(model), points=300)
    said = capsys.readouterr().err
    assert "warning: box is unlike the parts of the training: " in said
    assert "width 2 mm, smaller than all" in said
    (body,) = json.loads((tmp_path / "new.json").read_text())["bodies"]
    assert any("smaller than all" in reason for reason in body["unlike_the_training"])


def test_bodies_of_one_file_keep_their_relative_positions_where_they_fit_the_plate(tmp_path: Path) -> None:
    pair = trimesh.util.concatenate([box(10, 10, 12, at=(100, 0, 3)), box(10, 10, 30, at=(120, 0, 3))])
    pair.export(tmp_path / "pair.stl")
    first, second = (part for part in read_parts(tmp_path / "pair.stl", Meshing(200)) if isinstance(part, Part))
    np.testing.assert_allclose([first.points.min(0), second.points.min(0)], [[-15, -5, 0], [5, -5, 0]], atol=1e-4)
    assert [remark.kind for remark in first.remarks] == ["several_bodies", "moved"]
    assert first.origin is not None
    assert second.origin is not None
    assert (second.origin.body, second.origin.bodies, second.origin.unit_told) == (2, 2, False)


def test_of_many_parts_only_the_first_are_printed_in_full(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_constant_risk(model, -9.0)
    monkeypatch.setattr("flare_model.predict._MAX_IN_FULL", 1)
    for name in ("a", "b", "c"):
        box(20, 10, 12).export(tmp_path / f"{name}.stl")
    assert predict(str(model), [str(tmp_path)], out=str(tmp_path / "out"), pictures=False) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "a"
    assert [line.partition(" µm")[0].rpartition(";")[0] for line in shown[-4:-2]] == [
        f"{name}: no hit (a hit is less than 1 % likely)" for name in ("b", "c")
    ]
    assert shown[-2] == "3 parts: 0 hit by the recoater, 3 not hit, 0 uncertain"


def test_files_of_the_same_name_are_different_parts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has its own remarks; a file that can't be read is listed as an error; the model is given by its digest."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    box(20, 10, 12).export(tmp_path / "one/box.stl")
    box(20, 10, 12, at=(100, 0, 3)).export(tmp_path / "other/box.stl")
    (tmp_path / "text.stl").write_text("nothing to print")
    sources = [str(tmp_path / name) for name in ("one/box.stl", "other/box.stl", "text.stl")]
    assert predict(str(model), sources, out=str(tmp_path / "out"), pictures=False, json=True) == 1
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((tmp_path / "out/answers.json").read_text())
    assert {file: answer["name"] for file, answer in content["parts"].items()} == {
        "one_box": "one/box",
        "other_box": "other/box",
    }
    first, second = content["parts"].values()
    assert [[remark["kind"] for remark in answer["remarks"]] for answer in (first, second)] == [[], ["moved"]]
    assert (first["moved"], second["moved"]) == ([0, 0, 0], [-100, 0, -3])
    assert (first["unit"], first["body"]) == ({"name": "mm", "stated": False}, {"number": 1, "of": 1})
    assert len(content["errors"]) == 1
    assert "text.stl" in content["errors"][0]
    assert content["model"]["weights_sha256"] == sha256_of_file(model / WEIGHTS_NAME)


def test_pictures_of_an_earlier_prediction_are_removed(model: Path, tmp_path: Path) -> None:
    box(20, 10, 12).export(tmp_path / "box.stl")
    out = tmp_path / "out"
    assert predict(str(model), [str(tmp_path / "box.stl")], out=str(out)) == 0
    assert len(list(out.glob("box_*.png"))) == len(TARGETS)
    mine = ["box_mine.png", "box_displacement.png", "box_displacement_z.png"]
    for name in mine:  # of the user: one in place of what was written
        (out / name).write_bytes(b"of the user")
    assert predict(str(model), [str(tmp_path / "box.stl")], out=str(out), points=200, pictures=False) == 0
    assert sorted(path.name for path in out.glob("*.png")) == sorted(mine)


def test_a_file_that_is_named_twice_has_two_answers_with_different_names(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box(20, 10, 12).export(tmp_path / "box.stl")
    source = str(tmp_path / "box.stl")
    assert predict(str(model), [source, source], out=str(tmp_path / "out"), pictures=False) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("box")] == ["box", "box-2"]


def test_files_of_an_earlier_prediction_stay_but_for_those_that_would_be_taken_for_new_ones(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written on the same parts and not again goes, also where a part fails; all else stays, and is named."""
    for name in ("box", "bar"):
        box(20, 10, 12).export(tmp_path / f"{name}.stl")
    out, words = tmp_path / "out", {"points": 100, "pictures": False}
    sources = [str(tmp_path / f"{name}.stl") for name in ("box", "bar")]
    assert predict(str(model), sources, out=str(out), orientations=2, **words) == 0  # type: ignore[arg-type]
    assert {"box.vtu", "bar.vtu", "bar_orientations.json", "bar_best_2.stl"} < {path.name for path in out.iterdir()}
    for name in ("mine.vtu", "box_mine.png", "notes.txt"):
        (out / name).write_bytes(b"of the user")
    before = {path: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "text.stl").write_text("nothing to print")
    assert predict(str(model), [str(tmp_path / "text.stl")], out=str(out)) == 1  # nothing predicted, nothing removed
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    capsys.readouterr()
    assert predict(str(model), sources[:1], out=str(out), **words) == 0  # type: ignore[arg-type]
    gone = {path.name for path in before} - {path.name for path in out.iterdir()}
    assert gone - {"remarks.json"} == {"box_orientations.json"}
    said = capsys.readouterr().err.splitlines()
    assert f"note: files of an earlier prediction on these parts were removed from {out}: box_orientations.json" in said
    left = "bar.vtu, bar_best_1.stl, bar_best_2.stl and 4 more"
    assert f"note: {out} holds files that aren't of this prediction, and stay: {left}" in said
    assert predict(str(model), sources, out=str(out), **words) == 0  # type: ignore[arg-type]
    (tmp_path / "bar.stl").write_text("nothing to print")
    assert predict(str(model), sources, out=str(out), **words) == 1  # type: ignore[arg-type]
    assert ((out / "box.vtu").exists(), (out / "bar.vtu").exists()) == (True, False)
    assert {"bar_best_1.stl", "mine.vtu", "box_mine.png", "notes.txt"} < {path.name for path in out.iterdir()}


def test_a_mesh_in_the_folder_of_the_results_is_not_written_over(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box(20, 10, 12).export(tmp_path / "box.stl")
    out = tmp_path / "out"
    assert predict(str(model), [str(tmp_path / "box.stl")], out=str(out), points=100, pictures=False) == 0
    mesh = out / "box.vtu"
    before = mesh.read_bytes()
    for _ in range(2):
        assert predict(str(model), [str(mesh)], out=str(out), pictures=False) == 0
        assert mesh.read_bytes() == before
        assert f"note: {mesh} stays: its prediction gets another name" in capsys.readouterr().err
    assert [*json.loads((out / "answers.json").read_text())["parts"]] == ["box-2"]
    assert (out / "box-2.vtu").exists()


def test_a_file_that_can_not_be_removed_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    box(20, 10, 12).export(tmp_path / "box.stl")
    out, unlink = tmp_path / "out", Path.unlink
    assert predict(str(model), [str(tmp_path / "box.stl")], out=str(out), points=100) == 0

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "box_displacement_z.png":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    capsys.readouterr()
    assert predict(str(model), [str(tmp_path / "box.stl")], out=str(out), points=200, pictures=False) == 0
    said = capsys.readouterr().err
    assert "box_displacement_z.png is of an earlier prediction and can't be removed: Permission denied" in said
    assert json.loads((out / "answers.json").read_text())["parts"]["box"]["mesh"]["points"] > 100


@pytest.mark.parametrize(("parts", "words"), [(5, ", which rests on 5 parts alone"), (30, "")])
def test_a_chance_that_rests_on_few_parts_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], parts: int,
    words: str,
) -> None:  # fmt: skip
    write_constant_risk(model, 9.0, parts)
    box(20, 10, 12).export(tmp_path / "box.stl")
    for in_full in (10, 0):
        monkeypatch.setattr("flare_model.predict._MAX_IN_FULL", in_full)
        assert predict(str(model), [str(tmp_path / "box.stl")], out=str(tmp_path / "out"), pictures=False) == 0
        assert f"a hit is more than 99 % likely{words}{';' if in_full else ')'}" in capsys.readouterr().out
    (answer,) = json.loads((tmp_path / "out/answers.json").read_text())["parts"].values()
    assert answer["hit"]["chance_parts"] == parts


def test_a_wall_of_few_cells_is_reported(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box(20, 10, 12).export(tmp_path / "box.stl")
    box(20, 10, 2).export(tmp_path / "thin.stl")
    for name in ("box", "thin"):
        assert predict(str(model), [str(tmp_path / f"{name}.stl")], out=str(tmp_path / "out"), pictures=False) == 0
    box_told, thin_told = capsys.readouterr().out.split("thin\n")
    assert "a finer mesh may give another answer" not in box_told
    assert "so few that a finer mesh may give another answer: compare --points" in thin_told


def test_a_prediction_writes_a_page_and_pictures(model: Path, tmp_path: Path) -> None:
    write_constant_risk(model, 9.0)
    box(20, 10, 12).export(tmp_path / "box.stl")
    (tmp_path / "boxes").mkdir()
    assert predict(str(model), [str(tmp_path / "box.stl")], out=str(tmp_path / "out")) == 0
    page = (tmp_path / "out/answer.html").read_text(encoding="utf-8")
    assert "<title>Predictions" in page
    answer = json.loads((tmp_path / "out/answers.json").read_text())["parts"]["box"]
    assert answer["hit"]["verdict"] == "yes"
    assert "hits the part; a hit is more than 99 % likely" in page
    assert f"{answer['mesh']['points']:,} points" in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)  # it opens without a network
    pictures = {path.name: imread(path) for path in (tmp_path / "out").glob("*.png")}
    assert set(pictures) == {f"box_{name}.png" for name in from_pretrained(model).usage.targets}
    for picture in pictures.values():
        assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20  # colours of a field, no empty page


def test_impossible_requests_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name a part, such as part\.stl"):
        predict(str(model))
    with pytest.raises(UsageError, match="--orientations must not be negative"):
        predict(str(model), ["part.stl"], orientations=-1)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", Path("/proc/none")):
        with pytest.raises(UsageError, match=f"--out {out} can't be written to"):
            predict(str(model), [str(tmp_path / "file")], out=str(out))
    with pytest.raises(UsageError, match="--points must be 8 or more"):
        predict(str(model), ["part.stl"], points=7)
    with pytest.raises(GeometryError):
        part_of(box(1e-4, 1e-4, 1e-4))
