"""Prediction: the numbers that the model gives, from every kind of input, with truth and warnings where they belong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import meshio
import numpy as np
import pytest
import torch
import trimesh

import flare_model.parts
from flare_model import from_pretrained
from flare_model.predict import predict
from flare_model.recipe import Recipe
from flare_model.train import train
from lpbf_data import load_dataset
from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.voxelize import load_surface, on_build_plate, voxelize_to_size
from tests.flare_support import TINY
from tests.netfabb_cases import Part, write_part


@pytest.fixture
def predicted(box_dataset: str, trained_run: Path, tmp_path: Path) -> Path:
    """Predictions on the test split."""
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
        np.testing.assert_allclose(mesh.point_data["displacement_z_predicted"], wanted, rtol=1e-5)
        np.testing.assert_array_equal(mesh.point_data["displacement_z"], case["y"][:, 0].numpy())
        np.testing.assert_allclose(mesh.point_data["displacement_z_error"], wanted - case["y"][:, 0].numpy(), atol=1e-6)


def test_a_mesh_gives_what_the_case_gave(predicted: Path, trained_run: Path, tmp_path: Path) -> None:
    source = next(predicted.glob("*.vtu"))
    mesh = meshio.read(source)
    bare = tmp_path / "bare.vtu"
    meshio.Mesh(mesh.points, mesh.cells).write(bare)
    assert predict(str(trained_run), [str(source), str(bare)], out=str(tmp_path / "again")) == 0
    name = "displacement_z_predicted"
    again, alone = meshio.read(tmp_path / "again" / source.name), meshio.read(tmp_path / "again/bare.vtu")
    np.testing.assert_array_equal(again.point_data[name], mesh.point_data[name])
    np.testing.assert_array_equal(alone.point_data[name], mesh.point_data[name])
    assert set(again.point_data) == {name, "displacement_z", "displacement_z_error"}
    assert set(alone.point_data) == {name}


def test_one_case_by_its_id(box_dataset: str, trained_run: Path, tmp_path: Path) -> None:
    case_id = load_dataset(box_dataset, "train").case_ids[3]
    predict(str(trained_run), [box_dataset], out=str(tmp_path), split="train", case=[case_id])
    assert [p.name for p in tmp_path.glob("*.vtu")] == [f"{case_id}.vtu"]
    with pytest.raises(UsageError, match="no case 'nobody'"):
        predict(str(trained_run), [box_dataset], out=str(tmp_path), case=["nobody"])


def test_a_folder_goes_on_behind_a_broken_file(
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


def test_a_part_unlike_the_training_is_predicted_with_a_warning(
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
    """The reader comes through an entry point, as an installed package brings it."""
    reader = EntryPoint("ensight", "pipelines.ensight", "flare_model.mesh_readers")
    monkeypatch.setattr(flare_model.parts, "entry_points", lambda group: [reader])
    root = write_part(tmp_path / "cases", Part("200000_22b839a0_1", cell=(6.0, 6.0, 12.0), shape=(2, 2, 2)))
    write_part(tmp_path / "cases", Part("200001_22b839a0_1", shape=(2, 2, 2)))
    truth = meshio.read(root / "mechanical.case").point_data["Displacement"][:, 2]
    for source, count in ((root / "mechanical.case", 1), (root, 1), (tmp_path / "cases", 2)):
        out = tmp_path / f"out-{source.name}"
        assert predict(str(trained_run), [str(source)], out=str(out), pictures=False) == 0
        assert len(list(out.iterdir())) == count
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
    assert "16 mm out of the build volume along x" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "off").iterdir()] == ["box.vtu"]


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
        ("empty", "neither a data set nor a folder"),
        ("garbage.vtu", "can't be read as a mesh"),
        ("open.stl", "not watertight"),
    ],
)
def test_what_is_no_part_is_refused(trained_run: Path, tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "garbage.vtu").write_text("<VTKFile")
    (tmp_path / "empty").mkdir()
    holed = trimesh.creation.box()
    holed.update_faces(np.arange(len(holed.faces)) > 0)
    holed.export(tmp_path / "open.stl")
    with pytest.raises(LpbfError, match=words):
        predict(str(trained_run), [str(tmp_path / source)], out=str(tmp_path / "out"))


def test_features_must_come_with_the_part(box_dataset: str, tmp_path: Path) -> None:
    run, targets = tmp_path / "run", ["displacement", "temperature"]
    train(
        box_dataset, out=str(run), model=TINY, targets=targets, features=["von_mises_stress"], recipe=Recipe(epochs=1)
    )
    assert predict(str(run), [box_dataset], out=str(tmp_path / "out")) == 0
    source = next((tmp_path / "out").glob("*.vtu"))
    mesh = meshio.read(source)
    assert mesh.point_data["displacement_predicted"].shape == (len(mesh.points), 3)
    assert mesh.point_data["temperature_error"].shape == (len(mesh.points),)
    with pytest.raises(UsageError, match="needs the field von_mises_stress at every point"):
        predict(str(run), [str(source)], out=str(tmp_path / "again"))
