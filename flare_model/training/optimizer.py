"""The optimiser and the learning rate schedule of a recipe."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from flare_model.training.recipe import Recipe

_NORMS: Final = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def make_optimizer(
    model: nn.Module, recipe: Recipe, device: torch.device | None = None, *, recorded: bool = False
) -> torch.optim.AdamW:
    """AdamW as the recipe says (beta1 is 0.9).

    Args:
        model: The model in training.
        recipe: Learning rate, betas, epsilon and weight decay.
        device: Where the parameters will lie; on a GPU one kernel updates them all.
        recorded: Make the steps fit for CUDA graphs: the learning rate is a tensor on the device.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    norms = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = recipe.decay != "all" and (name.endswith("bias") or "latent" in name)
            spared = spared or (recipe.decay == "published_later" and id(parameter) in norms)
            groups[not spared].append(parameter)
    parameters = [
        {"params": members, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for decayed, members in groups.items()
        if members
    ]
    rate: float | torch.Tensor = recipe.learning_rate
    if recorded:
        rate = torch.tensor(rate, device=device)
    # Under 16-mixed the loss scale comes off before clipping; the fused kernel would take it off itself.
    fused = device is not None and device.type == "cuda" and recipe.precision != "16-mixed"
    betas = (0.9, recipe.beta2)
    return torch.optim.AdamW(
        parameters, lr=rate, betas=betas, eps=recipe.epsilon, capturable=recorded, fused=fused or None
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> OneCycleLR:
    """OneCycle over all steps of the run: the rate rises to its peak, then falls along a cosine.

    Args:
        optimizer: The optimiser whose learning rate it sets.
        recipe: Peak rate, share of the steps in which the rate rises, rates at both ends, and the cycle of beta1.
        steps: Steps of the run.
    """
    total = max(steps, 2)
    return OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=total,
        # PyTorch divides by zero where the rate is to reach its peak with the first step.
        pct_start=max(recipe.warmup, 1.5 / total),
        cycle_momentum=recipe.cycle_beta1,
        div_factor=recipe.start_divisor,
        # PyTorch counts from the rate of the first step.
        final_div_factor=recipe.end_divisor / recipe.start_divisor,
    )
