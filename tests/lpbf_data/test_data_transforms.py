"""Transforms undo themselves, keep what they are given, and draw the same for the same case and epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpbf_data import load_dataset
from lpbf_data.case.schema import SYMMETRIC_TENSOR
from lpbf_data.case.tensor_order import as_matrices
from lpbf_data.errors import UsageError
from lpbf_data.geometry.hexahedra import hex_edges
from lpbf_data.serving.transforms import AddHexEdges, Compose, RandomSymmetry, ScalePoints, Standardise, SubsamplePoints
from tests.rounding import SINGLE

pytestmark = pytest.mark.numeric


@pytest.fixture(params=["torch", "pyg"])
def sample(request: pytest.FixtureRequest, small_dataset: Path) -> Any:
    return load_dataset(small_dataset, format=request.param)[4]


def snapshot(sample: Any) -> dict[str, torch.Tensor]:
    names = sample if isinstance(sample, dict) else sample.keys()
    return {name: sample[name].clone() for name in names if isinstance(sample[name], torch.Tensor)}


def assert_restored(found: torch.Tensor, original: torch.Tensor) -> None:
    """Scaled, shifted and back in float32: a few roundings of the largest."""
    assert (found - original).abs().max() <= 8 * SINGLE * original.abs().max()


def test_points_are_divided_by_the_build_volume(sample: Any) -> None:
    before = snapshot(sample)
    scale = ScalePoints()
    scaled = scale(sample)
    np.testing.assert_allclose(scaled["pos"], before["pos"] / torch.tensor([30.0, 30.0, 60.0]), rtol=SINGLE)
    np.testing.assert_allclose(scale.inverse(scaled)["pos"], before["pos"], rtol=2 * SINGLE)
    assert torch.equal(sample["pos"], before["pos"])
    assert type(scaled) is type(sample)


def test_standardised_training_data_has_mean_zero_and_spread_one(small_dataset: Path) -> None:
    train = load_dataset(small_dataset, format="torch")
    standardise = Standardise.of(train, ["y", "displacement", "von_mises_stress", "temperature"])
    samples = [standardise(train[index]) for index in range(len(train))]
    for name in ("y", "displacement", "von_mises_stress"):
        values = torch.cat([sample[name] for sample in samples]).double()
        # What rounding of mean and values leaves, in units of their deviation.
        whole = torch.cat([train[index][name] for index in range(len(train))]).double()
        rounding = 4 * SINGLE * whole.abs().max(dim=0).values / whole.std(dim=0)
        assert (values.mean(dim=0).abs() <= rounding).all()
        assert ((values.std(dim=0, correction=0) - 1).abs() <= rounding).all()
    # The temperature is 25 everywhere: nothing to divide by.
    assert torch.cat([sample["temperature"] for sample in samples]).abs().max() <= 25 * SINGLE
    original, restored = train[3], standardise.inverse(samples[3])
    for name in ("y", "displacement", "von_mises_stress", "temperature"):
        assert_restored(restored[name], original[name])
    assert_restored(standardise.restore("y", samples[3]["y"]), original["y"])


def test_standardise_uses_the_statistics_of_its_split(small_dataset: Path, small_cases: Any) -> None:
    for split in ("train", "validation"):
        standardise = Standardise.of(load_dataset(small_dataset, split))
        values = np.concatenate([case.fields["displacement"][:, 2] for case in small_cases[split]]).astype(np.float64)
        assert standardise.mean["y"][0] == pytest.approx(values.mean())
        assert standardise.std["y"][0] == pytest.approx(values.std())
    part = load_dataset(small_dataset)[2:5]
    few = np.concatenate([case.fields["displacement"][:, 2] for case in small_cases["train"][2:5]])
    assert Standardise.of(part).mean["y"][0] == pytest.approx(few.astype(np.float64).mean())


@pytest.mark.parametrize("count", [1, 7, 10_000])
def test_a_subset_is_a_subset_and_comes_back(sample: Any, count: int) -> None:
    before = snapshot(sample)
    subsample = SubsamplePoints(count)
    drawn = subsample(sample, np.random.default_rng(3))
    kept = min(count, len(before["pos"]))
    index = drawn["point_index"]
    assert len(index) == len(set(index.tolist())) == kept
    for name in ("pos", "y", "displacement", "temperature"):
        assert torch.equal(drawn[name], before[name][index])
    assert "cells" not in drawn
    whole = subsample.inverse(drawn)
    for name in ("pos", "y", "displacement"):
        assert whole[name].shape == before[name].shape
        assert torch.equal(whole[name][index], before[name][index])
        assert int(whole[name][:, 0].isnan().sum()) == len(before["pos"]) - kept
    assert "point_index" not in whole
    assert all(torch.equal(sample[name], values) for name, values in before.items())


@given(st.integers(0, 2**32), st.integers(2, 40))
def test_every_point_is_as_likely_as_any_other(seed: int, count: int) -> None:
    sample = {"pos": torch.arange(120.0).reshape(40, 3), "case_id": "a"}
    subsample = SubsamplePoints(count)
    first = subsample(sample, np.random.default_rng(seed))["point_index"]
    assert torch.equal(first, subsample(sample, np.random.default_rng(seed))["point_index"])


def test_subsets_cover_all_points_evenly() -> None:
    sample = {"pos": torch.zeros(50, 3), "case_id": "a"}
    generator = np.random.default_rng(0)
    counts = torch.zeros(50)
    for _ in range(4000):
        counts[SubsamplePoints(10)(sample, generator)["point_index"]] += 1
    # Binomial: mean 800, standard deviation 25.
    assert (counts - 800).abs().max() < 5 * 25


def test_edges_are_those_of_the_mesh(sample: Any) -> None:
    added = AddHexEdges()(sample)
    np.testing.assert_array_equal(added["edge_index"], hex_edges(sample["cells"].numpy()))
    assert "edge_index" not in sample
    assert "edge_index" not in AddHexEdges().inverse(added)
    with pytest.raises(UsageError, match="cells=True"):
        AddHexEdges()({"pos": sample["pos"]})


def test_a_chain_goes_there_and_back(small_dataset: Path) -> None:
    train = load_dataset(small_dataset, format="torch")
    chain = Compose(ScalePoints(), Standardise.of(train), SubsamplePoints(15))
    assert chain.random
    assert not Compose(ScalePoints()).random
    sample = train[6]
    drawn = chain(sample, np.random.default_rng(1))
    assert len(drawn["pos"]) == 15
    index = drawn["point_index"]
    back = chain.inverse(drawn)
    for name in ("pos", "y"):
        assert_restored(back[name][index], sample[name][index])


def test_data_sets_apply_them(small_dataset: Path) -> None:
    plain = load_dataset(small_dataset, format="torch")
    scaled = load_dataset(small_dataset, format="torch", transform=ScalePoints())
    torch.testing.assert_close(scaled[2]["pos"], plain[2]["pos"] / torch.tensor([30.0, 30.0, 60.0]))
    subset = load_dataset(small_dataset, transform=SubsamplePoints(11))
    assert subset[2].pos.shape == (11, 3)
    assert not torch.equal(subset[2].pos, subset[2].pos)
    subset.set_epoch(0)
    assert torch.equal(subset[2].pos, subset[2].pos)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: ScalePoints((1.0, 0.0, 1.0)), "three positive lengths"),
        (lambda d: SubsamplePoints(0), "at least one point"),
        (lambda d: Standardise.of(d, ["speed"]), "unknown field 'speed'"),
        (lambda d: Standardise.of(d, ["cauchy_stress"]), "no statistics of 'cauchy_stress_xx'"),
    ],
)
def test_impossible_transforms_are_refused(small_dataset: Path, make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(load_dataset(small_dataset))


@pytest.mark.parametrize("bits", range(8))
def test_a_symmetry_moves_points_vectors_and_tensors_alike(sample: Any, bits: int) -> None:
    mirror_x, mirror_y, exchange = bool(bits & 1), bool(bits & 2), bool(bits & 4)
    matrix = np.diag([-1.0 if mirror_x else 1.0, -1.0 if mirror_y else 1.0, 1.0])
    if exchange:
        matrix = matrix[[1, 0, 2]]
    before = snapshot(sample)
    moved = RandomSymmetry().apply(sample, mirror_x=mirror_x, mirror_y=mirror_y, exchange=exchange)
    for name in ("pos", "displacement"):
        np.testing.assert_allclose(moved[name], before[name].numpy() @ matrix.T, rtol=1e-6)
    assert torch.equal(moved["y"], before["y"])
    assert torch.equal(moved["von_mises_stress"], before["von_mises_stress"])
    assert type(moved) is type(sample)
    assert torch.equal(sample["pos"], before["pos"])


@pytest.mark.parametrize("bits", range(8))
def test_a_symmetry_turns_a_stress_tensor_as_its_matrix_says(bits: int) -> None:
    mirror_x, mirror_y, exchange = bool(bits & 1), bool(bits & 2), bool(bits & 4)
    matrix = np.diag([-1.0 if mirror_x else 1.0, -1.0 if mirror_y else 1.0, 1.0])
    if exchange:
        matrix = matrix[[1, 0, 2]]
    xx, yy, zz, xy, xz, yz = components = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    cube = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]])
    sample = {
        "pos": torch.tensor(cube, dtype=torch.float32),
        "cauchy_stress": torch.tensor([components] * 8),
        "cells": torch.arange(8).unsqueeze(0),
    }
    moved = RandomSymmetry().apply(sample, mirror_x=mirror_x, mirror_y=mirror_y, exchange=exchange)
    expected = matrix @ tensor @ matrix.T
    found = moved["cauchy_stress"][3].tolist()
    assert found == [expected[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
    corners = moved["pos"][moved["cells"][0]].numpy()
    edges = corners[[1, 3, 4]] - corners[0]
    assert np.linalg.det(edges) == pytest.approx(1)  # a mirrored cell isn't inside out


@pytest.mark.parametrize("bits", range(8))
def test_a_symmetry_turns_the_eigenvectors_of_a_tensor(bits: int) -> None:
    mirror_x, mirror_y, exchange = bool(bits & 1), bool(bits & 2), bool(bits & 4)
    rng = np.random.default_rng(bits)
    values, vectors = np.array([500.0, 20.0, -300.0]), np.linalg.qr(rng.normal(size=(9, 3, 3)))[0]
    full = np.einsum("nik,k,njk->nij", vectors, values, vectors)
    packed = np.stack([full[:, "xyz".index(a), "xyz".index(b)] for a, b in SYMMETRIC_TENSOR], axis=1)
    sample = {"pos": torch.zeros(9, 3), "cauchy_stress": torch.from_numpy(packed)}
    for k, size in enumerate(("max", "mid", "min")):
        sample[f"principal_stress_direction_{size}"] = torch.from_numpy(vectors[:, :, k].copy())
    moved = RandomSymmetry().apply(sample, mirror_x=mirror_x, mirror_y=mirror_y, exchange=exchange)
    turned = as_matrices(moved["cauchy_stress"].numpy(), SYMMETRIC_TENSOR)
    for value, size in zip(values, ("max", "mid", "min"), strict=True):
        direction = moved[f"principal_stress_direction_{size}"].numpy()
        assert np.allclose(np.einsum("nij,nj->ni", turned, direction), value * direction)


def test_symmetries_are_drawn_evenly_and_again_the_same() -> None:
    sample = {"pos": torch.tensor([[1.0, 2.0, 3.0]])}
    seen = {tuple(RandomSymmetry()(sample, np.random.default_rng(seed))["pos"][0].tolist()) for seed in range(100)}
    assert len(seen) == 8
    twice = [RandomSymmetry()(sample, np.random.default_rng(5))["pos"] for _ in range(2)]
    assert torch.equal(*twice)
