"""Inputs of a surrogate: arrays and tensors of any type and device, with finite numbers only."""

from __future__ import annotations

import math
from pathlib import Path

import meshio
import numpy as np
import pytest
import torch

from flare_model.checkpoints.files import Usage
from flare_model.checkpoints.spec import ModelSpec
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.batches import Batch
from flare_model.data.non_finite import describe_non_finite
from flare_model.data.normalisation import Normalisation
from flare_model.data.point_fields import resolve_targets
from flare_model.predict import predict, predict_part
from flare_model.prediction.parts import Part
from lpbf_data.errors import CaseError, StoreError, UsageError
from lpbf_data.serving.collating import RaggedBatch
from tests.flare_model.flare_support import tiny_surrogate
from tests.flare_model.test_flare_checkpoints import POINTWISE, Pointwise

POINTS = np.random.default_rng(0).uniform(-20, 20, (12, 3))


def test_arrays_and_tensors_are_moved_to_the_device_of_the_model() -> None:
    """On PyTorch's device `meta`, which every machine has and which computes shapes alone."""
    usage = Usage(Normalisation(feature_mean=(0.0,), feature_std=(1.0,)), ("displacement_z",), ("temperature",))
    surrogate = Surrogate(Pointwise(4, 1), usage, ModelSpec(POINTWISE)).eval().to("meta")
    for points in (POINTS, POINTS.astype(np.float32), torch.from_numpy(POINTS)):
        for offsets in (None, torch.tensor([0, 5, 12])):
            found = surrogate(points, points[:, :1], offsets)
            assert (found.device.type, found.shape, found.dtype) == ("meta", (12, 1), torch.float32)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_points_that_are_not_finite_are_refused(wrong: float, dtype: torch.dtype) -> None:
    surrogate = tiny_surrogate()
    points = torch.tensor(POINTS, dtype=dtype)
    points[[4, 7], 1] = wrong
    words = rf"points given to the model .*: 2 of 12 points are not finite, the first is number 4 \(.*, {wrong}, .*\)"
    with pytest.raises(UsageError, match=words):
        surrogate(points)
    padded, exists = points.view(2, 6, 3), torch.ones(2, 6, dtype=torch.bool)
    exists[0, 4] = False
    with pytest.raises(UsageError, match="1 of 11 points is not finite, the first is number 1 of mesh 1"):
        surrogate(padded, mask=exists)
    exists[1, 1] = False
    assert surrogate(padded, mask=exists)[exists].isfinite().all()


def test_finite_numbers_give_no_description() -> None:
    assert describe_non_finite(POINTS) == ""
    assert describe_non_finite(np.empty((0, 3))) == ""


def test_a_batch_with_points_that_are_not_finite_names_the_case() -> None:
    points = torch.tensor(POINTS).float()
    points[9, 2] = math.nan
    ragged = RaggedBatch(points, points[:, :1], torch.tensor([0, 5, 12]), ("a", "b"), {"temperature": points[:, 0]})
    with pytest.raises(
        CaseError, match=r"case b: non_finite: coordinates .*: 1 of 7 points is not finite, .* number 4"
    ):
        Batch.of(ragged, resolve_targets(["temperature"], ""), ())


def test_a_part_with_points_that_are_not_finite_is_named(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = np.array([[x, y, z] for z in (0, 10) for x, y in ((0, 0), (10, 0), (10, 10), (0, 10))], float)
    cube[6, 0] = math.nan
    cells = np.arange(8)[None]
    with pytest.raises(StoreError, match=r"points of odd .*: 1 of 8 points is not finite, the first is number 6 \(nan"):
        predict_part(tiny_surrogate(), Part("odd", cube.astype(np.float32), cells.astype(np.int32)))
    meshio.Mesh(cube, [("hexahedron", cells)]).write(tmp_path / "odd.vtu")
    assert predict(str(trained_run), [str(tmp_path / "odd.vtu")], out=str(tmp_path / "out")) == 1
    assert "odd.vtu: coordinates aren't finite numbers: 1 of 8 points is not finite" in capsys.readouterr().err
