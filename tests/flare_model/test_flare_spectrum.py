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
from flare_model.models.spectra import BlockSpectrum, spectra
from flare_model.spectrum import spectrum
from flare_model.train import train
from flare_model.training.recipe import Recipe
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import TINY, tiny_flare
from tests.rounding import SAME, spread

pytestmark = pytest.mark.numeric

Tensors = list[torch.Tensor]


def by_formulas(model: Flare, x: torch.Tensor) -> tuple[Tensors, Tensors, Tensors]:
    """The forward pass and the spectra once more, written out in float64 for points [N, 3].

    Returns:
        For each block W = W_decode · W_encode of every head, [H, N, N]; eigenvalues of J Jᵀ, largest first, [H, M]; and
        the four leading eigenvectors of W that Algorithm 1 gives, Λ_N^½ Jᵀ U Σ⁻¹, [H, N, 4].
    """
    matrices, values, vectors = [], [], []
    x = model.enter(x)
    for block in model.blocks:
        mixer, normed = block.mixer, block.mixer_norm(x)
        heads = (len(x), *mixer.latent_queries.shape[::2])
        scores = torch.einsum("hmd,nhd->hmn", mixer.latent_queries, mixer.keys(normed).view(heads))
        latent_sums, point_sums = scores.logsumexp(dim=2, keepdim=True), scores.logsumexp(dim=1, keepdim=True)
        matrices.append(scores.softmax(dim=1).mT @ scores.softmax(dim=2))
        j = (scores - 0.5 * latent_sums - 0.5 * point_sums).exp()
        squares, modes = torch.linalg.eigh(j @ j.mT)
        values.append(squares.flip(1))
        leading = modes.flip(2)[:, :, :4] * values[-1][:, None, :4].rsqrt()
        vectors.append((-0.5 * point_sums).exp().mT * (j.mT @ leading))
        mixed = torch.einsum("hnp,phd->nhd", matrices[-1], mixer.values(normed).view(heads))
        x = x + mixer.leave(mixed.flatten(1))
        x = x + block.pointwise(block.pointwise_norm(x))
    return matrices, values, vectors


@pytest.mark.parametrize("chunk", [1 << 22, 4 * 6 * 7])
@torch.no_grad()
def test_eigenvalues_are_those_of_the_dense_matrix(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flare_model.models.spectra, "_CHUNK_NUMBERS", chunk)
    model, points = tiny_flare(num_blocks=3).double(), torch.randn(40, 3)
    found = spectra(model, points)
    assert [one.block for one in found] == [0, 1, 2]
    for ours, matrix, formula, vectors in zip(found, *by_formulas(model, points.double()), strict=True):
        np.testing.assert_allclose(ours.eigenvalues, formula.numpy(), atol=SAME, rtol=0)
        dense = torch.linalg.eigvals(matrix).real.sort(dim=1, descending=True).values[:, :6]
        np.testing.assert_allclose(ours.eigenvalues, dense.numpy(), atol=SAME, rtol=0)
        values = torch.from_numpy(ours.eigenvalues[:, None, :4])
        assert (matrix @ vectors - vectors * values).norm() <= SAME * vectors.norm()
        # The closer two eigenvalues are, the less accurate are their eigenvectors.
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
    # Rounding a score changes its exponential in proportion to the score; SAME allows for scores up to 10,000.
    assert found.eigenvalues.max() <= 1 + SAME
    assert found.eigenvalues.min() >= -SAME
    np.testing.assert_allclose(found.eigenvalues[:, 0], 1, atol=SAME, rtol=0)


def assert_near_formulas(found: list[BlockSpectrum], model: Flare, x: torch.Tensor) -> None:
    """Assert that eigenvalues of a model in float32 are those of the formulas, up to rounding."""
    wanted = spread(lambda: by_formulas(model, x)[1], torch.float32)
    for ours, values, error in zip(found, *wanted, strict=True):
        assert np.linalg.norm(ours.eigenvalues - values.numpy()) <= 4 * error


@torch.no_grad()
def test_spectra_use_the_forward_pass_of_the_model() -> None:
    """A subclass may change the forward pass: spectra are those of what its mixers then get."""

    class Doubling(Flare):
        def forward(self, points: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
            return super().forward(2 * points, *rest)

    model, points = tiny_flare(num_blocks=3), torch.randn(40, 3)
    other = Doubling(model.config)
    other.load_state_dict(model.state_dict())
    before = model(points)
    found = spectra(other, points)
    assert_near_formulas(found, model.double(), 2 * points.double())
    spectra(model.float(), points)
    torch.testing.assert_close(model(points), before, atol=0, rtol=0)
    assert not any(module._forward_pre_hooks for module in (*model.modules(), *other.modules()))


def test_spectra_take_features_into_account() -> None:
    model, points, features = tiny_flare(in_dim=5), torch.randn(30, 3), torch.randn(30, 2)
    found = spectra(model, points, features)
    with torch.no_grad():
        assert_near_formulas(found, model.double(), torch.cat([points, features], dim=1).double())


def test_spectra_are_the_same_under_autocast(trained_run: Path) -> None:
    model, points = tiny_flare(), torch.randn(30, 3)
    plain = [s.eigenvalues for s in spectra(model, points)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = [s.eigenvalues for s in spectra(model, points)]
    for a, b in zip(again, plain, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("drawn_charts")
def test_the_command_writes_numbers_and_pictures(
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


def test_impossible_requests_and_models_without_a_spectrum_are_refused(
    box_dataset: str, trained_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no case 'nobody'"):
        spectrum(str(trained_run), box_dataset, case=["nobody"], out=str(tmp_path))
    with pytest.raises(UsageError, match="--accelerator must be auto, cpu or gpu, not tpu"):
        spectrum(str(trained_run), box_dataset, accelerator="tpu", out=str(tmp_path))
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
    spectra(model, torch.rand(10_000, 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (found,) = spectra(model, torch.rand(1_000_000, 3))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 450
    np.testing.assert_allclose(found.eigenvalues[:, 0], 1, atol=SAME, rtol=0)
