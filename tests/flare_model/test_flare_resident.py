"""Training cases that stay on the device: batches, losses and position are those of a loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flare_model.data.batches import Batch
from flare_model.data.point_fields import resolve_inputs, resolve_targets
from flare_model.data.splits import Split, open_loader
from flare_model.training.resident_cases import ResidentCases
from flare_model.training.run_log import TRAINING_ERROR_NAME, VALIDATION_NAME
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import LEARNING, assert_same_losses, run_training


@pytest.mark.parametrize(("symmetries", "seed"), [(True, 4), (True, 2**40 + 3), (False, 4)])
def test_batches_are_those_of_the_loader(box_dataset: str, symmetries: bool, seed: int) -> None:
    """The same bits over several epochs, with a budget of points, components out of order and vectors as features."""
    targets = resolve_targets(["displacement_y", "build_clearance_min", "displacement_x"], "")
    features = resolve_inputs(["part_above", "slice_radius", "part_offset_x", "section_centroid"], "")
    split = Split(box_dataset, "train", (*targets, *features))
    options: dict[str, Any] = {
        "batch_size": 3,
        "max_points": 200,
        "shuffle": True,
        "seed": seed,
        "symmetries": symmetries,
    }
    read, ordered = open_loader(split, **options), open_loader(split, **options)
    resident = ResidentCases(split, targets, features, torch.device("cpu"), seed=seed, symmetries=symmetries)
    seen = 0
    for _ in range(3):
        for ragged, kept in zip(read, ordered.each(resident.batch), strict=True):
            wanted = Batch.of(ragged, targets, features)
            assert kept.case_ids == wanted.case_ids
            assert all(np.array_equal(a, b) for a, b in zip(kept.tensors(), wanted.tensors(), strict=True))
            assert ordered.state_dict() == read.state_dict()
            seen += 1
    assert seen > 3


def test_a_run_has_the_losses_of_one_that_reads_cases_from_disk(box_dataset: str, tmp_path: Path) -> None:
    folders = [
        run_training(
            box_dataset, tmp_path / name, recipe=LEARNING, symmetries=True, resident=resident, judge_training=3
        )
        for name, resident in (("read", False), ("kept", True))
    ]
    assert_same_losses(*folders)
    for name in (VALIDATION_NAME, TRAINING_ERROR_NAME):
        read, kept = ((folder / name).read_text("utf-8") for folder in folders)
        assert read == kept
        assert read.count("\n") > 2


def test_thinned_cases_can_not_stay_on_the_device(box_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="thin_to"):
        run_training(box_dataset, tmp_path / "run", resident=True, thin_to=5)
