"""Models with features of the shape as input: they are the same in training, evaluation and prediction."""

from __future__ import annotations

import json
from pathlib import Path

import meshio
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import trimesh

from flare_model.checkpoints.surrogate import from_pretrained
from flare_model.data.batches import Batch
from flare_model.data.point_fields import resolve_inputs, resolve_targets
from flare_model.data.splits import Split, open_loader
from flare_model.evaluate import CASES_NAME, evaluate
from flare_model.predict import predict, predict_part
from flare_model.prediction.parts import Meshing, Part, read_parts
from lpbf_data.case.feature_schema import SHAPE_FEATURES
from lpbf_data.errors import UsageError
from lpbf_data.geometry.shape_features import shape_features
from tests.flare_model.flare_support import LEARNING, run_training
from tests.rounding import PREDICTIONS, SINGLE, assert_same_predictions


@pytest.fixture(scope="module")
def shape_run(box_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all features of the shape as input, and with symmetries."""
    folder = tmp_path_factory.mktemp("shape_run") / "run"
    return run_training(box_dataset, folder, recipe=LEARNING, features=["geometry"], symmetries=True)


def test_the_checkpoint_names_every_feature_and_its_scale(shape_run: Path, box_dataset: str) -> None:
    surrogate = from_pretrained(shape_run)
    assert surrogate.usage.features == tuple(SHAPE_FEATURES)
    split = Split(box_dataset, "train", resolve_inputs(["geometry"], "--features"))
    values = np.concatenate([split.dataset[i]["part_above"].numpy() for i in range(len(split))])
    place = [column for spec in SHAPE_FEATURES.values() for column in spec.columns].index("part_above")
    norm = surrogate.usage.normalisation
    assert norm.feature_mean[place] == pytest.approx(values.mean(dtype=np.float64), rel=2**4 * SINGLE)
    assert norm.feature_std[place] == pytest.approx(values.std(dtype=np.float64), rel=2**4 * SINGLE)
    assert min(norm.feature_std) > 0  # also for features that are the same at every point of these boxes
    configuration = json.loads((shape_run / "run.json").read_text())["configuration"]
    assert configuration["features"] == list(SHAPE_FEATURES)


def test_a_part_has_the_same_features_from_a_data_set_and_from_a_mesh(
    shape_run: Path, box_dataset: str, tmp_path: Path
) -> None:
    surrogate = from_pretrained(shape_run)
    targets, features = resolve_targets(["displacement_z"], ""), resolve_inputs(["geometry"], "")
    batch = Batch.of(next(iter(open_loader(Split(box_dataset, "test", (*targets, *features))))), targets, features)
    wanted = surrogate(batch.points, batch.features)
    from lpbf_data.serving.datasets import load_dataset

    case = next(c for c in load_dataset(box_dataset, "test") if c.case_id == batch.case_ids[0])
    mesh = meshio.Mesh(case.pos.numpy(), [("hexahedron", case.cells.numpy())])
    mesh.write(tmp_path / "part.vtu")
    part = next(read_parts(tmp_path / "part.vtu"))
    assert isinstance(part, Part)
    found = predict_part(surrogate, part).fields["displacement_z"]
    assert_same_predictions(torch.from_numpy(found).reshape(wanted.shape), wanted)


def test_features_are_derived_from_the_mesh_of_a_surface(shape_run: Path, tmp_path: Path) -> None:
    trimesh.creation.box((20, 10, 12)).export(tmp_path / "part.stl")
    part = next(read_parts(tmp_path / "part.stl", Meshing(600)))
    assert isinstance(part, Part)
    surrogate = from_pretrained(shape_run)
    features = shape_features(part.points, part.cells)
    known = np.concatenate([values.reshape(len(part.points), -1) for values in features.values()], axis=1)
    wanted = torch.as_tensor(surrogate(np.array(part.points), known))
    found = predict_part(surrogate, part).fields["displacement_z"]
    assert_same_predictions(torch.from_numpy(found).reshape(wanted.shape), wanted)


def test_an_evaluation_gives_the_validation_error_of_the_training(
    shape_run: Path, box_dataset: str, tmp_path: Path
) -> None:
    assert evaluate(str(shape_run), box_dataset, split="validation", out=str(tmp_path / "judged"), worst=0) == 0
    judged = pq.read_table(tmp_path / "judged" / CASES_NAME).to_pandas()
    own = judged[judged["predictor"] == "model"]["relative_l2"].mean()
    validated = json.loads((shape_run / "result.json").read_text())["validation"]["displacement_z"]
    assert own == pytest.approx(validated, rel=PREDICTIONS)


def test_a_mesh_of_other_cells_than_boxes_is_refused_in_a_sentence(
    shape_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = np.array([[x, y, z] for z in (0, 2) for x, y in ((0, 0), (3, 0), (3.4, 3), (0, 3))], dtype=np.float32)
    meshio.Mesh(part, [("hexahedron", np.arange(8)[None])]).write(tmp_path / "skewed.vtu")
    assert predict(str(shape_run), [str(tmp_path / "skewed.vtu")], out=str(tmp_path / "out")) == 1
    said = capsys.readouterr().err
    wanted = "skewed: features of the shape need a mesh of boxes along the axes, and 1 of 1 cells are none"
    assert wanted in said
    assert "this model can't do without them" in said


def test_inputs_are_found_by_name() -> None:
    inputs = resolve_inputs(["temperature", "section_radius_yy", "solid_above"], "--features")
    assert [(t.name, t.components, t.is_shape_feature) for t in inputs] == [
        ("temperature", (0,), False),
        ("section_radius_yy", (1,), True),
        ("solid_above", (0,), True),
    ]
    assert [t.name for t in resolve_inputs(["geometry"], "")] == list(SHAPE_FEATURES)
    with pytest.raises(UsageError, match="--features names a field twice"):
        resolve_inputs(["geometry", "solid_above"], "--features")
    with pytest.raises(UsageError, match=r"nothing called 'thickness' at points; .*solid_above.*geometry: all"):
        resolve_inputs(["thickness"], "--features")
    with pytest.raises(UsageError, match="there is no field 'solid_above' at points"):
        resolve_targets(["solid_above"], "--targets")
