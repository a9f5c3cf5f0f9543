"""Spectra: against a dense eigen-decomposition, without overflow, in bounded memory."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flare_model.models.spectra
from flare_model import Flare, FlareConfig
from flare_model.models.backbone import Block
from flare_model.models.spectra import block_inputs, eigenvectors, spectra
from flare_model.spectrum import spectrum
from flare_model.train import train
from flare_model.training.recipe import Recipe
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import TINY, tiny_flare
from tests.rounding import SAME, assert_same

pytestmark = pytest.mark.numeric


def communication(block: Block, x: torch.Tensor) -> torch.Tensor:
    """W = W_decode · W_encode of every head as a matrix, [H, N, N] float64."""
    queries = block.mixer.latent_queries.double()
    keys = block.mixer.keys(block.mixer_norm(x)).view(len(x), len(queries), -1).double()
    scores = torch.einsum("hmd,nhd->hmn", queries, keys)
    return scores.softmax(dim=1).mT @ scores.softmax(dim=2)


@pytest.mark.parametrize("chunk", [1 << 22, 4 * 6 * 7])
def test_eigenvalues_are_those_of_the_dense_matrix(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flare_model.models.spectra, "_CHUNK_NUMBERS", chunk)
    model, points = tiny_flare().double(), torch.randn(40, 3)
    found = list(spectra(model, points))
    assert len(found) == 2
    with torch.no_grad():
        for (block, x), ours in zip(block_inputs(model, points), found, strict=True):
            matrix = communication(block, x)
            dense = torch.linalg.eigvals(matrix).real.sort(dim=1, descending=True).values[:, :6]
            np.testing.assert_allclose(ours.eigenvalues, dense.numpy(), atol=SAME, rtol=0)
            vectors = torch.from_numpy(eigenvectors(block, x, ours, 4))
            values = torch.from_numpy(ours.eigenvalues[:, None, :4])
            assert (matrix @ vectors - vectors * values).norm() <= SAME * vectors.norm()
            # Of eigenvalues that lie close together, vectors are known the less the closer they lie.
            gap = torch.from_numpy(ours.eigenvalues[:, :1] - ours.eigenvalues[:, 1:2])
            assert ((vectors[:, :, 0] / vectors[:, :1, 0] - 1).abs() <= SAME / gap).all()


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 300.0), st.integers(0, 5))
def test_scores_of_any_size_give_eigenvalues_from_zero_to_one(scale: float, seed: int) -> None:
    """exp of a score of 800 overflows even float64; nothing here may."""
    model = tiny_flare(num_blocks=1)
    with torch.no_grad():
        model.blocks[0].mixer.latent_queries.mul_(scale)
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(seed))
    (found,) = spectra(model, points)
    assert np.isfinite(found.eigenvalues).all()
    # A score that is rounded changes its exponential by the score's size; SAME leaves room for scores to ten thousand.
    assert found.eigenvalues.max() <= 1 + SAME
    assert found.eigenvalues.min() >= -SAME
    np.testing.assert_allclose(found.eigenvalues[:, 0], 1, atol=SAME, rtol=0)


def test_the_chunked_forward_pass_is_that_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flare_model.models.spectra, "_CHUNK_NUMBERS", 4 * 6 * 7)
    model, points = tiny_flare(num_blocks=3).double(), torch.randn(40, 3, dtype=torch.float64)
    with torch.no_grad():
        hidden = model.enter(points)[None]
        for (_, x), block in zip(block_inputs(model, points), model.blocks, strict=True):
            assert_same(x, hidden[0])
            hidden = block(hidden, flare_model.models.backbone.Layout())


def test_autocast_is_off(trained_run: Path) -> None:
    model, points = tiny_flare(), torch.randn(30, 3)
    plain = [s.eigenvalues for s in spectra(model, points)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = [s.eigenvalues for s in spectra(model, points)]
    for a, b in zip(again, plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_command_leaves_numbers_and_pictures(
    box_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spectrum(str(trained_run), box_dataset, split="train", cases=2, out=str(tmp_path)) == 0
    table = pq.read_table(tmp_path / "eigenvalues.parquet").to_pandas()
    assert len(table) == 2 * 1 * 2 * 8
    assert table["case_id"].nunique() == 2
    assert (table[table["index"] == 0]["eigenvalue"] - 1).abs().max() <= SAME
    pictures = sorted(tmp_path.glob("*.png"))
    assert [p.stem for p in pictures] == sorted(table["case_id"].unique())
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    assert "eigenvalues of a head lie above 0.01" in capsys.readouterr().out
    wanted = table["case_id"].iloc[-1]
    spectrum(str(trained_run), box_dataset, split="train", case=[wanted], out=str(tmp_path / "one"))
    one = pq.read_table(tmp_path / "one/eigenvalues.parquet").to_pandas()
    np.testing.assert_array_equal(one["eigenvalue"], table[table["case_id"] == wanted]["eigenvalue"])


def test_what_has_no_spectrum_is_refused(box_dataset: str, trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no case 'nobody'"):
        spectrum(str(trained_run), box_dataset, case=["nobody"], out=str(tmp_path))
    with pytest.raises(UsageError, match="--cases"):
        spectrum(str(trained_run), box_dataset, cases=0, out=str(tmp_path))
    other = {"class_path": "Transformer", "init_args": {"config": {"channels": 8, "num_heads": 2, "num_blocks": 1}}}
    train(box_dataset, out=str(tmp_path / "run"), model=other, recipe=Recipe(epochs=1))
    with pytest.raises(UsageError, match="holds a Transformer"):
        spectrum(str(tmp_path / "run"), box_dataset)
    assert TINY["class_path"] == "Flare"


@pytest.mark.slow
def test_a_million_points_take_bounded_memory() -> None:
    """32 latents, 2 heads: all scores of a block would be 512 MB in float64; chunks of 32 MB do."""
    model = Flare(FlareConfig(num_blocks=1, channels=16, num_heads=2, num_latents=32)).eval()
    list(spectra(model, torch.rand(10_000, 3)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (found,) = spectra(model, torch.rand(1_000_000, 3))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 450
    np.testing.assert_allclose(found.eigenvalues[:, 0], 1, atol=SAME, rtol=0)
