"""Checkpoints load as the same model, are refused where something doesn't fit, and execute no code."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from flare_model import Flare, Surrogate, Transformer, from_pretrained
from flare_model.checkpoints.files import Usage
from flare_model.checkpoints.packaged_model import packaged_checkpoint
from flare_model.checkpoints.spec import ModelSpec, model_words, spec_of
from flare_model.checkpoints.surrogate import results_folder
from flare_model.data.envelope import Envelope, Range, reasons_outside
from flare_model.data.normalisation import Normalisation
from flare_model.training.training_checkpoint import (
    latest_state,
    random_state,
    read_state,
    set_random_state,
    write_state,
)
from lpbf_data.errors import LpbfError, SchemaError, StoreError, UsageError
from tests.flare_model.flare_hub import running_hub
from tests.flare_model.flare_support import tiny_flare, tiny_surrogate
from tests.rounding import assert_same_predictions

POINTS = torch.rand(23, 3) * 30


class Pointwise(nn.Module):
    """A model that isn't part of the package."""

    def __init__(self, in_dim: int, out_dim: int, width: int = 8) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(in_dim, width), nn.GELU(), nn.Linear(width, out_dim))

    def forward(self, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        known = points if features is None else torch.cat([points, features], dim=-1)
        return self.network(known)  # type: ignore[no-any-return]


POINTWISE = f"{__name__}.Pointwise"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_surrogate().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_saved_surrogate_predicts_the_same(saved: Path) -> None:
    assert_same_predictions(from_pretrained(saved)(POINTS), tiny_surrogate()(POINTS))
    assert from_pretrained(saved).usage == tiny_surrogate().usage
    for ours, wanted in zip(
        from_pretrained(saved).state_dict().values(), tiny_surrogate().state_dict().values(), strict=True
    ):
        assert torch.equal(ours, wanted)
    assert not from_pretrained(saved).training
    for points in (POINTS.double(), POINTS.double().numpy()):
        assert_same_predictions(from_pretrained(saved)(points), tiny_surrogate()(POINTS))


def test_a_bare_model_loads_from_either_kind_of_checkpoint(saved: Path, tmp_path: Path) -> None:
    tiny_flare().save_pretrained(tmp_path / "bare")
    for folder in (saved, tmp_path / "bare"):
        assert_same_predictions(Flare.from_pretrained(folder)(POINTS), tiny_flare()(POINTS))
    with pytest.raises(SchemaError, match=r"bare model .* Flare.from_pretrained"):
        from_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="holds a Flare, not a Transformer"):
        Transformer.from_pretrained(saved)


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_usage_origin_and_description_are_saved_and_loaded(tmp_path: Path) -> None:
    envelope = Envelope(3, Range(10, 99), Range(1.5, 60), Range(1, 2), ("ti64",), 40.0)
    normalisation = Normalisation((30.0, 30.0, 60.0), (0.5, -1.0, 3.0), (1.0, 2.0, 3.0), (7.0,), (0.1,))
    usage = Usage(normalisation, ("displacement",), ("temperature",), envelope)
    surrogate = Surrogate(tiny_flare(in_dim=4, out_dim=3), usage, origin={"seed": 3}).eval()
    surrogate.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert (again.usage, again.origin, again.spec) == (usage, {"seed": 3}, surrogate.spec)
    features = torch.rand(23, 1)
    assert_same_predictions(again(POINTS, features), surrogate(POINTS, features))


def test_a_surrogate_scales_points_and_returns_targets_in_their_unit() -> None:
    surrogate = tiny_surrogate()
    wanted = surrogate.model(POINTS / torch.tensor([30.0, 30.0, 60.0])) * 0.3 + 0.02
    assert_same_predictions(surrogate(POINTS), wanted)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"checkpoint_version": 1}, SchemaError, "version 1, this package reads 2"),
        ({"checkpoint_version": None}, SchemaError, "version None"),
        ({"weights_sha256": "0" * 64}, StoreError, "isn't the file that config.json describes"),
        ({"model": {"class_path": "flare_model.Flare"}}, SchemaError, "doesn't describe a checkpoint"),
        ({"usage": {"targets": []}}, SchemaError, "doesn't describe a checkpoint"),
        ({"model": {"class_path": "Flare", "init_args": {"config": {"channels": 32}}}}, SchemaError, "don't fit"),
        ({"model": {"class_path": "Flare", "init_args": {"config": {"chanels": 32}}}}, UsageError, "chanels"),
        ({"model": {"class_path": "Flare", "init_args": {"config": {"num_blocks": 10**9}}}}, UsageError, "num_blocks"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    saved: Path, values: dict[str, object], error: type[LpbfError], words: str
) -> None:
    change_config(saved, **values)
    with pytest.raises(error, match=words):
        from_pretrained(saved)


def test_a_configuration_with_a_wrong_size_allocates_no_memory(saved: Path) -> None:
    """A million channels would be terabytes; the shapes are compared before anything is allocated."""
    change_config(saved, model={"class_path": "Flare", "init_args": {"config": {"channels": 1 << 20, "num_heads": 1}}})
    with pytest.raises(SchemaError, match="don't fit"):
        from_pretrained(saved)


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_weights_that_are_cut_off_are_refused(saved: Path, cut: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StoreError, match="no readable checkpoint"):
        from_pretrained(saved)


def test_a_pickle_in_place_of_weights_is_not_opened(saved: Path, tmp_path: Path) -> None:
    class TouchesFile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "executed",)  # type: ignore[return-value]

    (saved / "model.safetensors").write_bytes(pickle.dumps(TouchesFile()))
    with pytest.raises(StoreError, match="no readable checkpoint"):
        from_pretrained(saved)
    assert not (tmp_path / "executed").exists()


def test_a_missing_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no readable checkpoint in"):
        from_pretrained(tmp_path)
    with pytest.raises(
        StoreError, match=r"neither a folder nor a model on the Hugging Face hub.* is called packaged"
    ) as e:
        from_pretrained("no/such/folder/here")
    assert e.value.__suppress_context__  # a single traceback


def test_packaged_names_the_packaged_model() -> None:
    named, own = from_pretrained("packaged"), from_pretrained()
    assert named.usage == own.usage
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), own.parameters(), strict=True))


def test_results_of_the_packaged_model_are_in_no_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a folder would be taken for the checkpoint the next time."""
    monkeypatch.chdir(tmp_path)
    assert results_folder("packaged", "evaluation") == results_folder(packaged_checkpoint(), "evaluation")
    (tmp_path / "packaged").mkdir()
    assert results_folder("packaged", "evaluation") == Path("packaged/evaluation")
    with pytest.raises(StoreError, match="no readable checkpoint in"):
        from_pretrained("packaged")


def test_a_model_of_another_package_must_be_trusted_by_name(tmp_path: Path) -> None:
    spec = ModelSpec(POINTWISE, {"in_dim": 3, "out_dim": 1})
    model = spec.build()
    surrogate = Surrogate(model, Usage(Normalisation(), ("displacement_z",)), spec)
    surrogate.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"--trust {POINTWISE}"):
        from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="must be trusted"):
        from_pretrained(tmp_path, trust="tests.other.Model")
    assert_same_predictions(from_pretrained(tmp_path, trust=POINTWISE)(POINTS), surrogate(POINTS))


def test_an_untrusted_class_is_not_even_imported(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "hostile_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change_config(saved, model={"class_path": "hostile_module.Model", "init_args": {}})
    code = f"from flare_model import from_pretrained\nfrom_pretrained({str(saved)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "must be trusted by name" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_pushing_to_a_hub_and_loading_from_it(tmp_path: Path) -> None:
    code = """
import torch
from flare_model import from_pretrained
from tests.flare_model.flare_support import tiny_surrogate
surrogate = tiny_surrogate()
surrogate.push_to_hub("someone/surrogate", token="hf_none")
again = from_pretrained("someone/surrogate").state_dict()
assert all(torch.equal(again[name], values) for name, values in surrogate.state_dict().items())
"""
    with running_hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        card = hub.repositories["someone/surrogate"].pop("README.md").decode()
        assert set(hub.repositories["someone/surrogate"]) == {"config.json", "model.safetensors"}
    assert 'from_pretrained("someone/surrogate")' in card
    assert "displacement_z" in card


def test_specifications_name_build_and_fit_models() -> None:
    assert ModelSpec("Flare") == ModelSpec("flare_model.Flare")
    assert spec_of(tiny_flare()).build().config == tiny_flare().config
    fitted = ModelSpec("Transolver", {"config": {"num_blocks": 2, "out_dim": 9}}).fitted(5, 2)
    assert fitted.init_args == {"config": {"num_blocks": 2, "in_dim": 5, "out_dim": 2}}
    assert ModelSpec(POINTWISE, {"width": 3}).fitted(4, 1).init_args == {"width": 3, "in_dim": 4, "out_dim": 1}
    with pytest.raises(UsageError, match="no model of this package"):
        spec_of(Pointwise(3, 1))
    assert model_words(["--model=Flare", "--model.init_args.width", "3"]) == [
        "--model.class_path=Flare",
        "--model.init_args.width",
        "3",
    ]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module.Model", "no model 'no_such_module.Model'"),
        ("flare_model.models.flare.Nothing", "no model"),
        ("Nothing", "no model"),
        ("math.sin", "no class of torch modules"),
        ("pathlib.Path", "no class of torch modules"),
    ],
)
def test_class_paths_of_no_model_are_refused(path: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ModelSpec(path).build()


def write_training_state(step: int, tmp_path: Path) -> Path:
    surrogate = tiny_surrogate()
    return write_state(
        tmp_path,
        step,
        surrogate.description(),
        {"model": surrogate.stored_weights()},
        {"step": step, "random": [random_state()]},
    )


def test_a_training_state_replaces_older_ones(tmp_path: Path) -> None:
    assert latest_state(tmp_path) is None
    write_training_state(9, tmp_path)
    folder = write_training_state(10, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    assert latest_state(tmp_path) == folder
    weights, rest = read_state(folder)
    assert rest["step"] == 10
    assert weights["model"].keys() == tiny_flare().state_dict().keys()
    assert_same_predictions(from_pretrained(folder)(POINTS), tiny_surrogate()(POINTS))


def test_a_training_state_is_read_without_executing_pickled_code(tmp_path: Path) -> None:
    folder = write_training_state(1, tmp_path)
    assert torch.load(folder / "training.pt", weights_only=True)["step"] == 1
    (folder / "training.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(StoreError, match="remove it to start the run again"):
        read_state(folder)


def test_random_states_are_restored(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(1))]  # noqa: NPY002

    np.random.randn()  # noqa: NPY002  Leaves a cached second number behind.
    _, rest = read_state(write_training_state(1, tmp_path))
    wanted = draw()
    assert draw() != wanted
    set_random_state(rest["random"][0])
    assert draw() == wanted


def test_weights_are_plain_safetensors(saved: Path) -> None:
    assert safetensors.torch.load_file(saved / "model.safetensors").keys() == tiny_flare().state_dict().keys()


def test_parts_outside_of_the_envelope_are_reported_with_reasons() -> None:
    envelope = Envelope(3, Range(5, 50), Range(1, 20), Range(1, 2), ("ti64",), 20.0)
    inside = torch.rand(23, 3).numpy() * [30, 30, 10]
    inside[0, 2], inside[1, 2] = 0, 10
    assert reasons_outside(envelope, inside, aspect_ratio=1.5, material="ti64") == []
    assert reasons_outside(envelope, inside) == []
    reasons = reasons_outside(envelope, inside * [1, 1, 7] + [12, 0, 0], aspect_ratio=9.0, material="in718")
    assert len(reasons) == 5
    assert "mm out of the build volume along x" in reasons[0]
    assert "10 mm out of the build volume along z (0 … " in reasons[1]
    assert "height 70 mm lies outside 1 … 20 mm" in reasons[2]
    assert "aspect ratio of its worst cell, 9," in reasons[3]
    assert "in718 is none of those seen in training: ti64" in reasons[4]
    assert "number of points 2" in reasons_outside(envelope, inside[:2])[0]
    assert reasons_outside(None, inside) == []
    long_cells = Envelope(3, Range(5, 50), Range(1, 20), Range(3, 4), ("ti64",), 20.0)
    assert reasons_outside(long_cells, inside, aspect_ratio=1.0) == []
    assert reasons_outside(long_cells, inside, aspect_ratio=4.5) == [
        "the aspect ratio of its worst cell, 4.5, lies above 4, the largest in training"
    ]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"targets": ["displacement"]}, "target_mean has 1 numbers where"),
        ({"normalisation": {"target_std": [1.0, 2.0]}}, "target_std has 2 numbers where"),
        ({"normalisation": {"point_scale": [1.0]}}, "point_scale has 1 numbers where"),
        (
            {"targets": ["displacement"], "normalisation": {"target_mean": [0.0] * 3, "target_std": [1.0] * 3}},
            "its model is for other numbers of targets or features",
        ),
    ],
)
def test_an_inconsistent_checkpoint_is_refused(saved: Path, changed: dict[str, Any], words: str) -> None:
    usage = json.loads((saved / "config.json").read_text())["usage"]
    norm = usage["normalisation"] | changed.get("normalisation", {})
    change_config(saved, usage=usage | changed | {"normalisation": norm})
    with pytest.raises(SchemaError, match=words):
        from_pretrained(saved)


class WithDefaults(Pointwise):
    """Has defaults for its numbers of inputs and targets."""

    def __init__(self, in_dim: int = 3, out_dim: int = 1) -> None:
        super().__init__(in_dim, out_dim)


def test_a_specification_may_leave_out_the_defaults_of_its_model(tmp_path: Path) -> None:
    usage = Usage(Normalisation(), ("displacement_z",))
    for model, spec in (
        (WithDefaults(), ModelSpec(f"{__name__}.WithDefaults")),
        (Flare(), ModelSpec("Flare", {"config": {}})),
    ):
        surrogate = Surrogate(model, usage, spec).eval()
        surrogate.save_pretrained(tmp_path / spec.class_path)
        opened = from_pretrained(tmp_path / spec.class_path, trust=spec.class_path)
        assert_same_predictions(opened(POINTS), surrogate(POINTS))
