"""Training and evaluation on data sets that aren't of printed parts: points in the plane, grids, normalisation."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.io import loadmat

from flare_model import from_pretrained
from flare_model.checkpoints.spec import ModelSpec
from flare_model.configs import FOLDER
from flare_model.data.batches import Batch
from flare_model.data.metrics import differences_loss, relative_l2_loss
from flare_model.data.point_fields import resolve_inputs, resolve_targets
from flare_model.data.splits import Split, normalisation_of, open_loader
from flare_model.models.contract import check_contract
from flare_model.models.grid_transolver import GridTransolver
from flare_model.sizes import GridTransolverConfig
from flare_model.train import open_splits, train
from flare_model.training.devices import open_fabric
from flare_model.training.loss import TrainingLoss
from flare_model.training.recipe import Recipe
from flare_model.training.resident_cases import ResidentCases
from flare_model.training.settings import make_settings
from flare_model.training.trainer import Trainer
from lpbf_data.case.point_schema import PointSchema
from lpbf_data.case.schema import FieldSpec
from lpbf_data.errors import LpbfError, SchemaError, UsageError
from lpbf_data.reading.catalog import read_points
from lpbf_data.stores.point_sets import PointCase, write_point_set
from pipelines.benchmarks.convert import convert
from pipelines.benchmarks.darcy import trivial_errors
from tests.commands import run_here
from tests.flare_model.flare_support import (
    TINY,
    assert_same_losses,
    grid_model,
    run_training,
    train_in_processes,
    write_grids,
)
from tests.pipelines.test_benchmark_data import write_airfoil, write_cars, write_elasticity, write_pipe

SMALL = [f"--model.config.{name}" for name in ("channels=16", "num_blocks=1", "num_heads=2", "num_latents=8")]


@pytest.fixture(scope="module")
def darcy_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve generated cases of Darcy's flow on 85 x 85 points, four of them for the test, by the commands."""
    root = tmp_path_factory.mktemp("darcy")
    with pytest.MonkeyPatch.context() as patch:
        # The same field on 85 cells instead of 421, where a case takes a hundredth of the time.
        patch.setattr("pipelines.benchmarks.darcy_solution.permeability.__defaults__", (85,))
        words = ["--cases", "12", "--test", "4", "--stride", "1", "--out", str(root / "files")]
        made = run_here("pipelines.benchmarks.darcy", *words)
    assert made.returncode == 0, made.stderr
    words = ["--src", str(root / "files"), "--out", str(root / "set"), "--train", "8", "--test", "4"]
    done = run_here("pipelines.benchmarks.convert", "darcy", *words)
    assert done.returncode == 0, done.stderr
    assert "samples whose pressure isn't 0 along the boundary" in " ".join(done.stdout.split())
    return root / "set"


@pytest.fixture(scope="module")
def darcy_run(darcy_set: Path) -> Path:
    """A short training run on `darcy_set`."""
    out = darcy_set.parent / "run"
    words = ["--config", "darcy", "--data", str(darcy_set), "--out", str(out), "--max_steps", "12", *SMALL]
    done = run_here("flare_model.train", *words, "--recipe.learning_rate=1e-2", "--accelerator", "cpu")
    assert done.returncode == 0, done.stderr
    return out


def test_darcy_from_its_generator_to_its_evaluation(darcy_set: Path, darcy_run: Path) -> None:
    with (darcy_run / "training.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 12
    done = run_here("flare_model.evaluate", "--checkpoint", str(darcy_run), "--data", str(darcy_set))
    assert done.returncode == 0, done.stderr
    assert "no intervals: they are made for printed parts alone" in done.stdout
    summary = json.loads((darcy_run / "evaluation/test/summary.json").read_text())
    scores = summary["scores"]["pressure"]
    surrogate = from_pretrained(darcy_run)
    test = Split(str(darcy_set), "test", (*surrogate.usage.target_fields, *surrogate.usage.feature_fields))
    assert (surrogate.usage.targets, surrogate.usage.features) == (("pressure",), ("permeability",))
    errors = []
    for number in range(4):
        sample = test.dataset[number]
        found = surrogate(sample["pos"], sample["permeability"]).detach().double()
        truth = sample["pressure"].double()
        errors.append(float((found - truth).norm() / truth.norm()))
    assert scores["model"]["relative_l2"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert scores["model"]["relative_l2"] < scores["zero"]["relative_l2"] == 1.0
    files = (next(darcy_set.parent.glob(f"files/*smooth{n}.mat")) for n in (1, 2))
    train, test = (loadmat(path)["sol"] for path in files)
    expected = trivial_errors(train, test)  # what the generator prints
    assert scores["mean_field"]["relative_l2"] == pytest.approx(expected["the mean field"], rel=1e-4)
    assert scores["mean"]["relative_l2"] == pytest.approx(expected["the mean number"], rel=1e-4)
    assert scores["model"]["published"] is None
    kept = pq.read_table(darcy_run / "evaluation/test/predictions.parquet")
    assert kept.column_names == ["case_id", "pressure"]
    assert (darcy_run / "evaluation/test/pressure_relative_l2.png").exists()
    again = run_here("flare_model.evaluate", "--checkpoint", str(darcy_run), "--data", str(darcy_set))
    assert "holds this evaluation already" in again.stderr


def test_a_checkpoint_records_what_it_was_trained_on_and_can_be_fine_tuned(darcy_set: Path, darcy_run: Path) -> None:
    usage = from_pretrained(darcy_run).usage
    points = read_points(darcy_set)
    assert usage.point_schema == points
    assert (usage.envelope, usage.normalisation.point_shift, usage.normalisation.point_scale) == (None, (), (1.0, 1.0))
    statistics = Split(str(darcy_set), "train").statistics
    assert usage.normalisation.feature_mean == (statistics["permeability"].mean,)
    assert usage.normalisation.target_std == (statistics["pressure"].std,)
    out = darcy_run.with_name("further")
    words = ["--data", str(darcy_set), "--init", str(darcy_run), "--out", str(out), "--max_steps", "1"]
    done = run_here("flare_model.train", *words, "--accelerator", "cpu")
    assert done.returncode == 0, done.stderr
    assert "the run predicts pressure from the features permeability" in done.stderr
    assert from_pretrained(out).usage == usage


def test_points_of_another_dimension_are_refused(darcy_run: Path) -> None:
    surrogate = from_pretrained(darcy_run)
    assert surrogate(np.zeros((5, 2)), np.zeros((5, 1))).shape == (5, 1)  # FLARE takes any points
    for width in (1, 3):
        with pytest.raises(UsageError, match=f"the model takes points of 2 coordinates, not {width}"):
            surrogate(np.zeros((5, width)), np.zeros((5, 1)))


def test_points_in_the_plane_are_thinned(darcy_set: Path, tmp_path: Path) -> None:
    run = run_training(str(darcy_set), tmp_path / "run", thin_to=50, max_steps=2, recipe=Recipe(batch_size=2))
    with (run / "training.csv").open(newline="") as file:
        assert [float(row["loss"]) > 0 for row in csv.DictReader(file)] == [True, True]
    split = Split(str(darcy_set), "train", resolve_targets(["pressure"], "", read_points(darcy_set)))
    (ragged, *_) = open_loader(split, thin_to=50)
    assert (ragged.pos.shape, ragged.fields["pressure"].shape) == ((50, 2), (50, 1))


def test_the_card_of_a_model_for_darcy_mentions_no_printed_parts(darcy_run: Path) -> None:
    card = str(from_pretrained(darcy_run).generate_model_card())
    assert "Predicts pressure at points of darcy (x, y) from the features permeability." in card
    assert "powder" not in card


def test_spectra_are_computed_for_points_in_the_plane(darcy_set: Path, darcy_run: Path) -> None:
    done = run_here("flare_model.spectrum", "--checkpoint", str(darcy_run), "--data", str(darcy_set))
    assert done.returncode == 0, done.stderr
    assert "eigenvalues of a head lie above" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--symmetries"], "--symmetries are those of a square build plate, and darcy isn't printed"),
        (["--features", "geometry"], "--features names geometry, which is derived from the hexahedra"),
        (["--features", "part_above"], "--features names part_above, which is derived from the hexahedra"),
        (["--targets", "stress"], "there is no field 'stress' at points of darcy; known are permeability, pressure"),
        (["--targets", "permeability"], "permeability can't be both a target and a feature"),
        (["--config", "elasticity"], "but the data set's points come with 3: two"),
        (["--config", "pipe_grid_transolver", "--model.config.in_dim=3"], "grids of 129 × 129 points alone, and"),
        (["--config", "darcy_grid_transolver", "--recipe.gradient_weight=0", "--thin_to", "9"], "leave out --thin_to"),
        (["--config", "darcy_grid_transolver", "--recipe.round_points", "1024"], "fill batches up by a mesh"),
        (["--config", "darcy", "--thin_to", "9"], "takes differences along a grid, which --thin_to leaves holes in"),
        (["--config", "darcy", "--recipe.loss", "mse"], "adds to the loss relative_l2, which no target has"),
        (["--recipe.gradient_weight", "-1"], "--recipe.gradient_weight must not be negative"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_the_points_are_refused_in_a_sentence(
    words: list[str], said: str, darcy_set: Path, tmp_path: Path
) -> None:
    done = run_here("flare_model.train", "--data", str(darcy_set), "--out", str(tmp_path / "run"), *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        ("pipelines.publish", ["{data}", "--repo", "a/b", "--license", "mit", "--workers", "0"], "publish is for"),
        ("pipelines.report", ["{data}"], "python -m pipelines.report is for printed parts alone"),
        ("pipelines.pack", ["--src", "{data}", "--out", "{out}"], "python -m pipelines.pack is for printed parts"),
        ("pipelines.build", ["--src", "{cases}", "--out", "{data}"], "python -m pipelines.build is for printed parts"),
        ("flare_model.predict", ["--src", "{data}", "--out", "{out}"], "holds points without cells"),
        ("flare_model.predict", ["--src", "{cases}", "--checkpoint", "{run}"], "a decision is for printed parts alone"),
        ("flare_model.evaluate", ["--data", "{data}"], "the checkpoint is for printed parts, and"),
        ("flare_model.evaluate", ["--data", "{boxes}", "--checkpoint", "{run}"], "is for points of darcy, and"),
        ("flare_model.train", ["--data", "{boxes}", "--init", "{run}", "--out", "{out}"], "is for points of darcy"),
    ],
)  # fmt: skip
def test_commands_for_printed_parts_refuse_other_points(
    module: str, words: list[str], said: str, darcy_set: Path, darcy_run: Path, box_dataset: str, tmp_path: Path
) -> None:
    cases = Path(box_dataset).with_name("cases")
    known = {"data": darcy_set, "out": tmp_path / "out", "run": darcy_run, "boxes": box_dataset, "cases": cases}
    before = sorted(darcy_set.rglob("*"))
    done = run_here(module, *(word.format(**known) for word in words))
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert sorted(darcy_set.rglob("*")) == before


def test_a_model_needs_the_coordinates_unit_and_fields_that_it_was_trained_on(darcy_run: Path, tmp_path: Path) -> None:
    usage = from_pretrained(darcy_run).usage
    points = usage.point_schema
    assert points is not None
    usage.check_data(dataclasses.replace(points, name="other", grid=None), "data")
    fields = tuple(dataclasses.replace(spec, unit="Pa") for spec in points.fields)
    for change, said in (
        ({"coordinates": ("r", "z")}, "with coordinates x, y"),
        ({"unit": "mm"}, r"x, y \(1\), and data has x, y \(mm\)"),
        ({"fields": fields}, "needs the field permeability"),
    ):
        with pytest.raises(UsageError, match=said):
            usage.check_data(dataclasses.replace(points, **change), "data")
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("model.safetensors", "config.json"):
        (broken / name).write_bytes((darcy_run / name).read_bytes())
    content = json.loads((broken / "config.json").read_text())
    content["usage"]["normalisation"]["point_shift"] = [0.5]
    (broken / "config.json").write_text(json.dumps(content))
    with pytest.raises(SchemaError, match="point_shift has 1 numbers"):
        from_pretrained(broken)
    content["usage"]["points"] = {"name": "darcy"}
    (broken / "config.json").write_text(json.dumps(content))
    with pytest.raises(LpbfError, match="the schema of its points can't be read"):
        from_pretrained(broken)


def test_checkpoints_for_printed_parts_hold_no_description_of_points(trained_run: Path) -> None:
    usage = json.loads((trained_run / "config.json").read_text())["usage"]
    assert "points" not in usage
    assert "point_shift" not in usage["normalisation"]


@pytest.mark.parametrize(
    ("system", "config"),
    [
        ("elasticity", "elasticity"),
        ("airfoil", "airfoil"),
        ("pipe", "pipe"),
        ("drivaerml", "drivaerml_40k"),
    ],
)
def test_configurations_train_on_the_data_that_they_name(system: Any, config: str, tmp_path: Path) -> None:
    writers = {"elasticity": write_elasticity, "airfoil": write_airfoil, "pipe": write_pipe, "drivaerml": write_cars}
    counts = {"points": 50} if system == "drivaerml" else {"train": 2, "test": 1}
    assert convert(system, str(writers[system](tmp_path / "src")), str(tmp_path / "set"), **counts) == 0
    words = ["--data", str(tmp_path / "set"), "--config", config, "--out", str(tmp_path / "run"), "--max_steps", "1"]
    done = run_here("flare_model.train", *words, "--accelerator", "cpu", *SMALL)
    assert done.returncode == 0, done.stderr
    norm, points = from_pretrained(tmp_path / "run").usage.normalisation, read_points(tmp_path / "set")
    assert points is not None
    if system == "drivaerml":
        assert norm.point_shift == (-0.9425, -1.1314, -0.3176)
        assert norm.point_scale == pytest.approx((4.1325 + 0.9425, 1.1317 + 1.1314, 1.2445 + 0.3176))
        assert (norm.target_mean, norm.target_std) == ((-229.845718,), (269.598572,))
    elif system == "pipe":
        assert tuple(zip(norm.point_shift, norm.point_scale, strict=True)) == (points.scales["x"], points.scales["y"])
    else:
        assert (norm.point_shift, norm.point_scale) == ((), (1.0, 1.0))


def test_a_model_for_grids_trains_on_grids(darcy_set: Path, tmp_path: Path) -> None:
    sizes = [f"--model.config.{name}" for name in ("channels=8", "num_blocks=1", "num_heads=2", "num_slices=4")]
    words = ["--data", str(darcy_set), "--config", "darcy_grid_transolver", "--out", str(tmp_path / "run"), *sizes]
    done = run_here("flare_model.train", *words, "--max_steps", "1", "--accelerator", "cpu")
    assert done.returncode == 0, done.stderr
    with pytest.raises(UsageError, match="takes grids of 85 × 85 = 7225 points alone"):
        from_pretrained(tmp_path / "run")(torch.zeros(7224, 2), torch.zeros(7224, 1))


def test_points_of_grids_are_shared_by_processes(tmp_path: Path) -> None:
    """The share of a process is no grid any more; the steps are those of one process that has whole grids."""
    data, recipe = write_grids(tmp_path), Recipe(steps=2, batch_size=2)
    single = run_training(data, tmp_path / "single", recipe=recipe, accelerator="cpu")
    options = {"recipe.steps": 2, "recipe.batch_size": 2}
    options |= {f"model.config.{name}": value for name, value in TINY["init_args"]["config"].items()}
    ended, said = train_in_processes(2, 2, data, tmp_path / "shared", **options)
    assert not any(ended), said
    assert_same_losses(tmp_path / "shared", single)


@pytest.mark.parametrize("name", ["Flare", "Transformer", "Transolver", "GridTransolver"])
def test_grids_of_one_size_are_stacked_without_filling(name: str, tmp_path: Path) -> None:
    """Loss and gradients are those of the same meshes joined. Cases that are thinned are joined, not stacked."""
    data, recipe = write_grids(tmp_path), Recipe(batch_size=3, gradient_weight=0.1, precision="32-true")
    settings = make_settings(
        ModelSpec(**grid_model(name)), ["bow"], ["load"], point_schema=read_points(data), data=data, recipe=recipe
    )
    trainer = Trainer(settings, *open_fabric(recipe, "cpu"), tmp_path / "run", open_splits(settings))
    stepper = trainer.stepper
    batch = Batch.of(next(iter(trainer.loader)), settings.targets, settings.features)
    shapes: list[tuple[int, ...]] = []
    stepper.surrogate.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    assert stepper._grid_points == 54
    assert stepper.padded_for_graph(batch) is batch
    weights, found = [p for p in stepper.surrogate.parameters() if p.requires_grad], []
    for points in (54, 0):
        stepper._grid_points = points
        loss = stepper.loss(batch)
        found.append([loss, *torch.autograd.grad(loss, weights)])
    assert shapes == [(3, 54, 2), (3 * 54, 2)]
    for mine, joined in zip(*found, strict=True):
        torch.testing.assert_close(mine, joined, rtol=1e-3, atol=1e-5)
    stepper.recipe = dataclasses.replace(recipe, round_points=64)
    assert stepper._points_of_grids(stepper.surrogate.model) == 0
    for change in ({"thin_to": 5}, {"point_schema": dataclasses.replace(settings.point_schema, grid=None)}):
        stepper.recipe = recipe
        stepper.settings = dataclasses.replace(
            settings, recipe=dataclasses.replace(recipe, gradient_weight=0.0), **change
        )
        assert stepper._points_of_grids(stepper.surrogate.model) == 0


def test_every_configuration_of_darcy_has_the_gradients_term() -> None:
    for path in FOLDER.glob("darcy*.yaml"):
        assert "gradient_weight: 0.1" in path.read_text(), path.name


def published_gradient_loss(prediction: np.ndarray, truth: np.ndarray, size: int) -> float:
    """The term as in the published code, case by case: zeros along the boundary, central differences."""
    total = 0.0
    for found, wanted in zip(prediction.reshape(-1, size, size), truth.reshape(-1, size, size), strict=True):
        inside = np.zeros_like(found)
        inside[1:-1, 1:-1] = found[1:-1, 1:-1]
        for axis in (0, 1):
            slopes = [
                (np.roll(a, -1, axis) - np.roll(a, 1, axis)).take(range(1, size + 1), 0).take(range(1, size + 1), 1)
                / 2
                * size
                for a in (np.pad(inside, 1), np.pad(wanted, 1))
            ]
            total += np.linalg.norm(slopes[0] - slopes[1]) / np.linalg.norm(slopes[1])
    return total / (len(prediction) / size**2)


def test_the_gradients_term_is_the_published_one() -> None:
    random = np.random.default_rng(0)
    prediction, truth = random.random((2, 3 * 49))
    tensors = [torch.from_numpy(values)[:, None] for values in (prediction, truth)]
    found = differences_loss(*tensors, torch.tensor([0, 49, 98, 147]), (7, 7))
    assert float(found) == pytest.approx(published_gradient_loss(prediction, truth, 7))
    # Predictions along the boundary have no effect.
    grid = prediction.reshape(3, 7, 7).copy()
    grid[:, 0], grid[:, :, -1] = 9, -9
    changed = torch.from_numpy(grid.reshape(-1))[:, None]
    assert float(differences_loss(changed, tensors[1], torch.tensor([0, 49, 98, 147]), (7, 7))) == float(found)


def test_the_gradients_term_is_added_with_its_weight(darcy_set: Path) -> None:
    points = read_points(darcy_set)
    recipe = Recipe(batch_size=2, gradient_weight=0.1)
    settings = make_settings(
        ModelSpec(**TINY), ["pressure"], ["permeability"], data=str(darcy_set), point_schema=points, recipe=recipe
    )
    split = open_splits(settings)["train"]
    (ragged, *_) = open_loader(split, batch_size=2)
    batch = Batch.of(ragged, settings.targets, settings.features)
    prediction = batch.targets + 1e-3 * torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(0))
    objective, scale = TrainingLoss(settings, {"pressure": 0.0}), torch.ones(1)
    plain = float(relative_l2_loss(prediction, batch.targets, batch.offsets))
    term = published_gradient_loss(prediction.double().numpy()[:, 0], batch.targets.double().numpy()[:, 0], 85)
    assert float(objective(prediction, batch, scale)) == pytest.approx(plain + 0.1 * term, rel=1e-4)
    # A batch that is filled up to a round number of points has the same loss.
    filled = batch.filled(1024)
    extra = torch.full((len(filled.points) - len(batch.points), 1), torch.nan)
    assert float(objective(torch.cat([prediction, extra]), filled, scale)) == float(objective(prediction, batch, scale))


def test_cases_on_the_device_give_the_loaders_batches(darcy_set: Path) -> None:
    targets, features = (
        resolve(names, "", read_points(darcy_set))
        for resolve, names in ((resolve_targets, ["pressure"]), (resolve_inputs, ["permeability"]))
    )
    split = Split(str(darcy_set), "train", (*targets, *features))
    resident = ResidentCases(split, targets, features, torch.device("cpu"), seed=0, symmetries=False)
    plain, gathered = (open_loader(split, batch_size=3, shuffle=True, seed=5) for _ in range(2))
    for one, other in zip(plain, gathered.each(resident.batch), strict=True):
        batch = Batch.of(one, targets, features)
        assert batch.case_ids == other.case_ids
        for mine, theirs in zip(batch.tensors(), other.tensors(), strict=True):
            assert torch.equal(mine, theirs)


def test_the_contract_of_a_model_for_grids_is_checked_on_grids(darcy_set: Path) -> None:
    grid = GridTransolver(
        GridTransolverConfig(in_dim=3, channels=8, num_blocks=1, num_heads=2, grid_rows=6, grid_columns=5)
    )
    check_contract(grid, 1, 1, name="it", coordinates=2)
    with pytest.raises(UsageError, match="3 numbers a point, but got 4"):
        check_contract(grid, 1, 1, name="it")


def test_a_model_for_grids_is_refused_where_there_are_none(box_dataset: str, tmp_path: Path) -> None:
    sizes = {"channels": 8, "num_blocks": 1, "num_heads": 2, "grid_rows": 6, "grid_columns": 5}
    with pytest.raises(UsageError, match=r"takes grids of 6 × 5 points alone, and .* holds none; take another model"):
        run_training(box_dataset, tmp_path / "run", {"class_path": "GridTransolver", "init_args": {"config": sizes}})
    with pytest.raises(UsageError, match="takes differences along a grid, and printed parts are none"):
        train(box_dataset, out=str(tmp_path / "run"), model=TINY, recipe=Recipe(gradient_weight=0.1))
    assert not (tmp_path / "run").exists()


def test_normalisation_without_features_has_the_scale_of_targets(tmp_path: Path, darcy_set: Path) -> None:
    split = Split(str(darcy_set), "train", resolve_inputs(["permeability"], "", read_points(darcy_set)))
    norm = normalisation_of(split, resolve_targets(["pressure"], "", split.point_schema), ())
    assert norm.feature_mean == ()
    assert norm.target_std[0] > 0


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.0, 1e6 + 0.1, 1e-9])
def test_a_constant_column_has_the_scale_one(tmp_path: Path, constant: float) -> None:
    """Its standard deviation is 0, but for rounding: nothing may be divided by that."""
    points = np.random.default_rng(0).random((50, 2))
    fields = tuple(FieldSpec(name, (), "1", "point", "a column") for name in ("load", "bow"))
    schema = PointSchema("plates", ("x", "y"), "1", fields, ("load",), ("bow",))
    cases = [
        PointCase(f"plate_{n}", points, {"load": np.full(50, constant), "bow": n + points[:, 0]}) for n in range(7)
    ]
    write_point_set(tmp_path / "plates", schema, {"train": cases[:-1], "test": cases[-1:]})
    targets, features = resolve_targets(["bow"], "", schema), resolve_inputs(["load"], "", schema)
    split = Split(str(tmp_path / "plates"), "train", (*targets, *features))
    norm = normalisation_of(split, targets, features)
    assert norm.feature_mean == pytest.approx((constant,), rel=1e-6)
    assert norm.feature_std == (1.0,)
    run = run_training(str(tmp_path / "plates"), tmp_path / "run", max_steps=2)
    predicted = from_pretrained(run)(points, np.full((50, 1), constant))
    assert torch.isfinite(predicted).all()
