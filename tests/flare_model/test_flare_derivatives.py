"""Derivatives, and predictions of several parts or by several models at once, by `torch.func`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

from flare_model.layers.mixer import mix_by
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import tiny_surrogate

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
PARTS = torch.rand(3, 20, 3, generator=torch.Generator().manual_seed(0)) * 40 - 20


def test_parts_of_equal_size_are_predicted_together_by_vmap() -> None:
    surrogate = tiny_surrogate()
    wanted = torch.stack([surrogate(part) for part in PARTS])
    torch.testing.assert_close(vmap(surrogate)(PARTS), wanted)

    def bend(part: Tensor) -> Tensor:
        return surrogate(part).square().sum()

    torch.testing.assert_close(vmap(grad(bend))(PARTS), torch.stack([grad(bend)(part) for part in PARTS]))


def test_several_models_predict_a_part_together_by_vmap() -> None:
    surrogate = tiny_surrogate()
    weights = {name: torch.stack([w, 1.1 * w]).detach() for name, w in surrogate.named_parameters()}
    found = vmap(lambda one: functional_call(surrogate, one, (PARTS[0],)))(weights)
    for number, prediction in enumerate(found):
        alone = functional_call(surrogate, {name: w[number] for name, w in weights.items()}, (PARTS[0],))
        torch.testing.assert_close(prediction, alone)


def test_forward_mode_derivatives_of_attention_are_refused_with_alternatives() -> None:
    surrogate = tiny_surrogate()
    mix_by(surrogate.model, "sdpa")
    wanted = jacrev(surrogate)(PARTS[0])
    with pytest.raises(UsageError, match=r"no forward-mode derivative .*: take jacrev or grad, or .*mix_by"):
        jacfwd(surrogate)(PARTS[0])
    mix_by(surrogate.model, "reference")
    torch.testing.assert_close(jacfwd(surrogate)(PARTS[0]), wanted, rtol=1e-3, atol=1e-5)


def test_points_that_are_not_finite_are_refused_by_jacrev_and_grad() -> None:
    broken = PARTS[0].clone()
    broken[3, 1] = torch.nan
    for derived in (jacrev, grad):
        with pytest.raises(UsageError, match="aren't all finite"):
            derived(lambda part: tiny_surrogate()(part).sum())(broken)
