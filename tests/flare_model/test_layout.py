"""How batches are divided into meshes: what is refused, what padding may hold, and the checks of a compiled model."""

from __future__ import annotations

import pytest
import torch

from flare_model.layers.layout import Layout
from flare_model.models.transformer import Transformer, TransformerConfig
from flare_model.models.transolver import Transolver, TransolverConfig
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import tiny_flare
from tests.rounding import assert_same

pytestmark = pytest.mark.numeric

MODELS = {
    "flare": tiny_flare,
    "transformer": lambda: Transformer(TransformerConfig(channels=16, num_heads=2, num_blocks=1)),
    "transolver": lambda: Transolver(TransolverConfig(channels=16, num_heads=2, num_blocks=1, num_slices=4)),
}


@pytest.mark.parametrize("offsets", [[0, 4], [3, 9], [0, 10], [0, 0], [9, 0], [0, 3, 8], [0, 5, 3, 9]])
def test_offsets_must_add_up(offsets: list[int]) -> None:
    with pytest.raises(UsageError, match="offsets must rise from 0 to the number of points, 9"):
        Layout.of(torch.zeros(9, 3), torch.tensor(offsets), None)


@pytest.mark.parametrize(
    "offsets",
    [torch.tensor([], dtype=torch.int64), torch.tensor([0]), torch.tensor([0.0, 9.0]), torch.tensor([[0, 9]])],
)
def test_offsets_must_be_whole_numbers_in_a_row(offsets: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="offsets must be two or more whole numbers"):
        Layout.of(torch.zeros(9, 3), offsets, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_masks_must_be_boolean(dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match=f"the mask must be of bool.* not of {dtype}"):
        Layout.of(torch.zeros(1, 9, 3), None, torch.ones(1, 9, dtype=dtype))


@pytest.mark.parametrize("name", MODELS)
def test_values_of_padding_may_be_anything(name: str) -> None:
    model = MODELS[name]()
    points, mask = torch.randn(2, 9, 3), torch.arange(9) < torch.tensor([[9], [4]])
    found = []
    for filler in (0.0, float("nan"), float("inf")):
        filled = torch.where(mask.unsqueeze(-1), points, filler).requires_grad_()
        out = model(filled, mask=mask)[mask]
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), [filled, *model.parameters()])))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=0, rtol=0)
    assert all(t.isfinite().all() for t in found[0])


@pytest.mark.compiles
def test_a_compiled_model_checks_offsets() -> None:
    torch.compiler.reset()
    model = tiny_flare().double()
    del model.blocks[1:]
    fast = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    points = torch.randn(9, 3, dtype=torch.float64)
    for good in ([0, 5, 9], [0, 1, 9]):
        assert_same(fast(points, None, torch.tensor(good)), model(points, None, torch.tensor(good)))
    for bad in ([0, 5, 7], [0, 9, 9], [3, 5, 9]):
        with pytest.raises(RuntimeError, match="offsets must rise"):
            fast(points, None, torch.tensor(bad))


@pytest.mark.slow
@pytest.mark.compiles
def test_a_model_that_computes_in_several_chunks_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """With activation checkpoints, more points than a chunk holds, and any number of them."""
    monkeypatch.setattr("flare_model.models.backbone._CHUNK", 8)
    torch.compiler.reset()
    model = tiny_flare().double()
    del model.blocks[1:]
    model.activation_checkpointing = True
    fast = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (20, 21):
        points = torch.randn(size, 3, dtype=torch.float64)
        found, wanted = (torch.autograd.grad(m(points).square().sum(), list(model.parameters())) for m in (fast, model))
        assert_same(found, wanted)
