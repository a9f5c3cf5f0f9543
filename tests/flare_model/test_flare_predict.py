"""Prediction from every kind of input: the model's numbers, with truth and error where they are known, and warnings."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import meshio
import numpy as np
import pytest
import torch
import trimesh

import flare_model.prediction.parts
from flare_model import from_pretrained
from flare_model.predict import predict
from flare_model.prediction import pictures
from flare_model.spectrum import spectrum
from flare_model.train import train
from flare_model.training.recipe import Recipe
from lpbf_data import load_dataset
from lpbf_data.errors import UsageError
from lpbf_data.geometry.closed_surface import on_build_plate
from lpbf_data.geometry.surface_files import load_surface
from lpbf_data.geometry.voxelize import voxelize_to_size
from tests.data_hub_server import serve_hub
from tests.data_support import make_case, write_dataset, write_published
from tests.flare_model.flare_support import TINY
from tests.netfabb_cases import Part, write_part
from tests.rounding import PREDICTIONS, SINGLE, assert_same_predictions


@pytest.fixture
def predicted(box_dataset: str, trained_run: Path, tmp_path: Path) -> Path:
    """A folder with predictions on the test split."""
    assert predict(str(trained_run), [box_dataset], out=str(tmp_path / "predicted")) == 0
    return tmp_path / "predicted"


def test_a_data_set_is_predicted_with_truth_and_error(box_dataset: str, trained_run: Path, predicted: Path) -> None:
    surrogate = from_pretrained(trained_run)
    cases = load_dataset(box_dataset, "test", format="torch")
    assert sorted(p.stem for p in predicted.glob("*.vtu")) == sorted(case["case_id"] for case in cases)
    for case in cases:
        mesh = meshio.read(predicted / f"{case['case_id']}.vtu")
        with torch.no_grad():
            wanted = surrogate(case["pos"])[:, 0].numpy()
        np.testing.assert_array_equal(mesh.points, case["pos"].numpy())
        np.testing.assert_array_equal(mesh.cells_dict["hexahedron"], case["cells"].numpy())
        bound = PREDICTIONS * np.abs(wanted).max()
        assert np.abs(mesh.point_data["displacement_z_predicted"] - wanted).max() <= bound
        np.testing.assert_array_equal(mesh.point_data["displacement_z"], case["y"][:, 0].numpy())
        error = wanted - case["y"][:, 0].numpy()
        assert np.abs(mesh.point_data["displacement_z_error"] - error).max() <= bound + SINGLE * np.abs(error).max()


def test_a_mesh_file_gives_the_prediction_of_its_case(predicted: Path, trained_run: Path, tmp_path: Path) -> None:
    source = next(predicted.glob("*.vtu"))
    mesh = meshio.read(source)
    bare = tmp_path / "bare.vtu"
    meshio.Mesh(mesh.points, mesh.cells).write(bare)
    assert predict(str(trained_run), [str(source), str(bare)], out=str(tmp_path / "again")) == 0
    name = "displacement_z_predicted"
    again, alone = meshio.read(tmp_path / "again" / source.name), meshio.read(tmp_path / "again/bare.vtu")
    for other in (again, alone):
        assert_same_predictions(*(torch.from_numpy(found.point_data[name]) for found in (other, mesh)))
    assert set(again.point_data) == {name, "displacement_z", "displacement_z_error"}
    assert set(alone.point_data) == {name}


def test_one_case_is_chosen_by_its_id(
    box_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case_id = load_dataset(box_dataset, "train").case_ids[3]
    predict(str(trained_run), [box_dataset], out=str(tmp_path), split="train", case=[case_id])
    assert [p.name for p in tmp_path.glob("*.vtu")] == [f"{case_id}.vtu"]
    capsys.readouterr()
    assert predict(str(trained_run), [box_dataset], out=str(tmp_path / "no"), case=["nobody"]) == 1
    assert "no case 'nobody'" in capsys.readouterr().err


def test_a_broken_file_does_not_stop_the_prediction_of_a_folder(
    predicted: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(predicted, folder)
    whole = sorted(p.name for p in folder.glob("*.vtu"))
    (folder / "a_broken.vtu").write_bytes((folder / whole[0]).read_bytes()[:700])
    triangles = meshio.Mesh(np.eye(3), [("triangle", np.array([[0, 1, 2]]))])
    triangles.write(folder / "b_triangles.vtu")
    capsys.readouterr()
    assert predict(str(trained_run), [str(folder)], out=str(tmp_path / "out")) == 1
    assert sorted(p.name for p in (tmp_path / "out").glob("*.vtu")) == whole
    said = capsys.readouterr().err
    assert "a_broken.vtu can't be read as a mesh" in said
    assert "b_triangles.vtu holds triangle; only hexahedral meshes" in said


def test_a_part_outside_of_the_envelope_is_predicted_with_a_warning(
    predicted: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = meshio.read(next(predicted.glob("*.vtu")))
    meshio.Mesh(mesh.points * [1, 1, 4] + [100, 0, 0], mesh.cells).write(tmp_path / "odd.vtu")
    capsys.readouterr()
    assert predict(str(trained_run), [str(tmp_path / "odd.vtu")], out=str(tmp_path / "out")) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: odd is unlike the parts that the model was trained on: it reaches ")
    assert "mm out of the build volume along x" in said
    assert "its height 96 mm lies outside 24 … 24 mm" in said
    assert (tmp_path / "out/odd.vtu").exists()


def test_a_case_of_another_material_is_predicted_with_a_warning(
    box_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    surrogate = from_pretrained(trained_run)
    envelope = surrogate.usage.envelope
    assert envelope is not None
    assert envelope.materials
    predict(str(trained_run), [box_dataset], out=str(tmp_path / "same"), pictures=False)
    assert "material" not in capsys.readouterr().err
    surrogate.usage = replace(surrogate.usage, envelope=replace(envelope, materials=("IN718",)))
    surrogate.save_pretrained(tmp_path / "other")
    predict(str(tmp_path / "other"), [box_dataset], out=str(tmp_path / "out"), pictures=False)
    said = capsys.readouterr().err
    assert said.count(f"its material {envelope.materials[0]} is none of those seen in training: IN718") == 2


def test_a_netfabb_result_is_predicted_with_its_truth(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is found by an entry point, as of an installed package."""
    named = {
        "flare_model.mesh_readers": "pipelines.ensight",
        "flare_model.materials_of_results": "pipelines.netfabb.run_material:material_of_result",
    }
    monkeypatch.setattr(
        flare_model.prediction.parts, "entry_points", lambda group: [EntryPoint("netfabb", named[group], group)]
    )
    root = write_part(tmp_path / "cases", Part("200000_22b839a0_1", cell=(6.0, 6.0, 12.0), shape=(2, 2, 2)))
    write_part(tmp_path / "cases", Part("200001_22b839a0_1", shape=(2, 2, 2)))
    truth = meshio.read(root / "mechanical.case").point_data["Displacement"][:, 2]
    for source, count in ((root / "mechanical.case", 1), (root, 1), (tmp_path / "cases", 2)):
        out = tmp_path / f"out-{source.name}"
        assert predict(str(trained_run), [str(source)], out=str(out), pictures=False) == 0
        assert len(list(out.glob("*.vtu"))) == count
        mesh = meshio.read(out / "200000_22b839a0_1.vtu")
        np.testing.assert_array_equal(mesh.point_data["displacement_z"], truth)


def test_a_surface_is_meshed_as_the_simulator_does_and_drawn(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = trimesh.creation.box((12.0, 12.0, 24.0))
    box.apply_translation((40.0, 0.0, 100.0))
    box.export(tmp_path / "box.stl")
    source = [str(tmp_path / "box.stl")]
    assert predict(str(trained_run), source, out=str(tmp_path / "out"), points=400, centre=True) == 0
    mesh = meshio.read(tmp_path / "out/box.vtu")
    surface = on_build_plate(load_surface(tmp_path / "box.stl"), centre=True)
    wanted = voxelize_to_size(surface, 400, layer=0.04)
    np.testing.assert_allclose(mesh.points, wanted.points, atol=1e-4)
    np.testing.assert_array_equal(mesh.cells_dict["hexahedron"], wanted.cells)
    np.testing.assert_allclose(mesh.points.min(0), [-6, -6, 0], atol=1e-5)
    levels = np.diff(np.unique(mesh.points[:, 2].round(4)))
    np.testing.assert_allclose(levels / 0.04, np.round(levels / 0.04), atol=0.02)
    picture = (tmp_path / "out/box_displacement_z.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "out of the build volume" not in capsys.readouterr().err
    predict(str(trained_run), source, out=str(tmp_path / "off"), points=400, pictures=False)
    said = capsys.readouterr().err
    assert "changed: what lay out of the build volume was moved so that its middle stands on the middle of" in said
    moved = meshio.read(tmp_path / "off/box.vtu").points
    np.testing.assert_allclose(moved, mesh.points, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "off").iterdir()) == ["answers.json", "box.vtu", "remarks.json"]


def test_a_surface_has_as_many_points_as_parts_of_the_training(trained_run: Path, tmp_path: Path) -> None:
    trimesh.creation.box((12.0, 12.0, 24.0)).export(tmp_path / "box.stl")
    predict(str(trained_run), [str(tmp_path / "box.stl")], out=str(tmp_path / "out"), pictures=False)
    envelope = from_pretrained(trained_run).usage.envelope
    assert envelope is not None
    assert envelope.num_points_median is not None
    count = len(meshio.read(tmp_path / "out/box.vtu").points)
    assert abs(count - envelope.num_points_median) < 0.5 * envelope.num_points_median


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing.vtu", "there is no"),
        ("text.txt", "can't predict on a .txt"),
        (
            "part.STEP",
            "part.STEP: a .STEP file holds no triangles; export it as STL, OBJ, PLY, OFF or 3MF from your CAD",
        ),
        ("empty", "neither a data set nor a folder"),
        ("garbage.vtu", "can't be read as a mesh"),
        ("blank.vtu", "can't be read as a mesh: the file is empty"),
        ("other.vtk", "can't be read as a mesh: it is cut short or no .vtk file"),
        ("no/part.vtu", "there is no"),
        ("open.stl", "not watertight"),
        (
            "metres.stl",
            "metres.stl: lengths were read in mm, since the file states no unit, and the part is less than 1 mm",
        ),
    ],
)
def test_sources_that_are_no_parts_are_refused(
    trained_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], source: str, words: str
) -> None:
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "part.STEP").write_text("ISO-10303-21;")
    (tmp_path / "garbage.vtu").write_text("<VTKFile")
    (tmp_path / "blank.vtu").touch()
    (tmp_path / "other.vtk").write_text("# vtk DataFile Version 9.9\nx\nASCII\nDATASET NOTHING\n")
    (tmp_path / "empty").mkdir()
    holed = trimesh.creation.box()
    holed.update_faces(np.arange(len(holed.faces)) > 0)
    holed.export(tmp_path / "open.stl")
    trimesh.creation.box((0.04, 0.01, 0.012)).export(tmp_path / "metres.stl")
    assert predict(str(trained_run), [str(tmp_path / source)], out=str(tmp_path / "out")) == 1
    said = capfd.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_features_must_come_with_the_part(box_dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, targets = tmp_path / "run", ["displacement", "temperature"]
    train(
        box_dataset, out=str(run), model=TINY, targets=targets, features=["von_mises_stress"], recipe=Recipe(epochs=1)
    )
    assert predict(str(run), [box_dataset], out=str(tmp_path / "out")) == 0
    source = next((tmp_path / "out").glob("*.vtu"))
    mesh = meshio.read(source)
    assert mesh.point_data["displacement_predicted"].shape == (len(mesh.points), 3)
    assert mesh.point_data["temperature_error"].shape == (len(mesh.points),)
    whole, odd = tmp_path / "whole.vtu", tmp_path / "odd.vtu"
    stress = np.linspace(0, 1, len(mesh.points))
    meshio.Mesh(mesh.points, mesh.cells, point_data={"von_mises_stress": stress}).write(whole)
    stress[3] = np.nan
    meshio.Mesh(mesh.points, mesh.cells, point_data={"von_mises_stress": stress}).write(odd)
    capsys.readouterr()
    assert predict(str(run), [str(source), str(odd), str(whole)], out=str(tmp_path / "again")) == 1
    said = capsys.readouterr().err
    assert f"needs the field von_mises_stress at every point, which {source.stem} doesn't come with" in said
    assert "needs the field von_mises_stress, which isn't finite everywhere in odd" in said
    assert "1 of 3 parts are predicted" in said
    assert {p.name.split("_")[0].split(".")[0] for p in (tmp_path / "again").iterdir()} == {
        "answer",
        "answers",
        "whole",
    }


def test_a_truth_that_is_not_finite_is_left_out(
    predicted: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = meshio.read(next(predicted.glob("*.vtu")))
    truth = mesh.point_data["displacement_z"].copy()
    truth[0] = np.nan
    meshio.Mesh(mesh.points, mesh.cells, point_data={"displacement_z": truth}).write(tmp_path / "odd.vtu")
    capsys.readouterr()
    assert predict(str(trained_run), [str(tmp_path / "odd.vtu")], out=str(tmp_path / "out")) == 0
    said = capsys.readouterr()
    assert "warning: the displacement_z that odd comes with isn't finite everywhere: no error is shown" in said.err
    assert "relative L2 error" not in said.out
    assert set(meshio.read(tmp_path / "out/odd.vtu").point_data) == {"displacement_z_predicted"}
    assert (tmp_path / "out/odd_displacement_z.png").exists()


def test_a_part_whose_picture_can_not_be_drawn_leaves_no_files(
    box_dataset: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_dataset(box_dataset, "test").case_ids[0]
    draw = pictures.draw_prediction

    def draw_others(path: Path, part: Any, *rest: Any) -> None:
        if part.name == first:
            raise UsageError("it can't be drawn")
        draw(path, part, *rest)

    monkeypatch.setattr(pictures, "draw_prediction", draw_others)
    assert predict(str(trained_run), [box_dataset], out=str(tmp_path / "out")) == 1
    (other,) = set(load_dataset(box_dataset, "test").case_ids) - {first}
    found = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert found == sorted([f"{other}.vtu", f"{other}_displacement_z.png", "answer.html", "answers.json"])


def test_a_bad_source_or_case_does_not_stop_the_others(
    predicted: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_published(tmp_path / "published", {"test": [make_case(s, case_id=f"c{s}") for s in (0, 1)]})
    (data / "test/c0.npz").write_bytes(b"cut")
    (tmp_path / "bad.vtu").write_text("<VTKFile")
    good = next(predicted.glob("*.vtu"))
    capsys.readouterr()
    sources = [str(tmp_path / "bad.vtu"), str(tmp_path / "nothing"), str(data), str(good)]
    assert predict(str(trained_run), sources, out=str(tmp_path / "out"), pictures=False) == 1
    assert sorted(p.name for p in (tmp_path / "out").glob("*.vtu")) == sorted(["c1.vtu", good.name])
    said = capsys.readouterr().err
    for words in ("bad.vtu can't be read", "there is no", "case c0 (shard", "2 of 5 parts are predicted"):
        assert words in said


def test_a_hub_id_and_the_published_layout_are_predicted_on(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [make_case(seed, case_id=f"c{seed}") for seed in (0, 1)]
    published = write_published(tmp_path / "published", {"test": cases})
    (tmp_path / "ours").mkdir()
    ours = write_dataset(tmp_path / "ours", {"test": cases})
    with serve_hub({"user/lpbf": {"main": ours}, "user/published": {"main": published}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        for number, source in enumerate((str(published), "user/published", "user/lpbf")):
            out = tmp_path / f"out-{number}"
            assert predict(str(trained_run), [source], out=str(out), pictures=False) == 0
            for case in cases:
                mesh = meshio.read(out / f"{case.case_id}.vtu")
                np.testing.assert_array_equal(mesh.point_data["displacement_z"], case.fields["displacement"][:, 2])


def test_a_folder_of_several_seeds_is_refused_with_the_name_of_one(
    box_dataset: str, trained_run: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        shutil.copytree(trained_run, tmp_path / f"runs/seed-{seed}")
    words = f"runs holds the runs of 2 seeds; name one of them, such as {tmp_path / 'runs/seed-0'}"
    with pytest.raises(UsageError, match=re.escape(words)):
        predict(str(tmp_path / "runs"), [box_dataset], out=str(tmp_path / "out"))
    with pytest.raises(UsageError, match=re.escape(words)):
        spectrum(str(tmp_path / "runs"), box_dataset, out=str(tmp_path / "out"))
