"""The training recipe: hyperparameters. This module doesn't import torch, so that commands show their options fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from flare_model.sizes import Implementation
from lpbf_data.errors import UsageError

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Loss = Literal["relative_l2", "mse"]
CompileMode = Literal["off", "default", "reduce-overhead", "max-autotune"]

_POSITIVE: Final = (
    "epochs",
    "batch_size",
    "accumulate",
    "learning_rate",
    "clip_norm",
    "start_divisor",
    "end_divisor",
    "epsilon",
)

_ROUNDED: Final = 1024
"""Points that batches are filled up to a multiple of under step graphs: at most 50 sizes for parts of up to 50,000."""


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are what the FLARE paper says for LPBF (appendix C.3, Table 4).

    Args:
        epochs: Times that every case is seen (Table 4: 250).
        steps: Steps of the run, however many epochs they are, so that runs on unlike numbers of cases cost alike; 0 for
            the steps of so many epochs.
        batch_size: Cases in a batch, on each device (C.3: 1 for 3D problems).
        max_points: Points in a batch at most, on each device, so that steps of unlike parts cost alike: as many cases
            as fit, and no more than batch_size where that is above 1; 0 for batches of batch_size cases.
        accumulate: Batches in a step of the optimiser.
        loss: relative_l2 (C.3), the mean over cases of each one's relative error in physical units; or mse, the mean
            over points of squared errors in units of the target's standard deviation, for targets that may be zero
            everywhere in a part or lie far from zero.
        target_losses: Losses of single targets by name, where they aren't that of `loss`: {build_clearance_min: mse}.
        target_weights: Weight of a target's loss relative to those of the others, by name; 1 where it isn't
            named. The loss of a step is the weighted mean over the targets.
        gradient_weight: How much the relative L2 errors of the two differences along a grid add to the loss
            relative_l2 (Table 4: 0.1 for Darcy), for data sets of grids; there, what is predicted at the outermost
            points counts as 0, as it is at the boundary of Darcy's square.
        learning_rate: Peak of the OneCycle schedule (Table 4: 1e-3).
        warmup: Share of the steps in which the learning rate rises (C.3: 10 %); cosine decay follows.
        start_divisor: Peak over the rate of the first step. The paper is silent, PyTorch's default is taken; the
            published code divides by 1e4.
        end_divisor: Peak over the rate of the last step. The paper is silent, PyTorch's default is taken; the published
            code divides by 1e8, which it writes as 1e4 over the rate of the first step.
        cycle_beta1: Let beta1 run from 0.95 to 0.85 and back while the rate rises and falls, as the published code
            does. The paper says 0.9 throughout.
        beta2: Of AdamW (C.3: 0.999; 0.99 for LNO).
        epsilon: Of AdamW. The paper is silent, PyTorch's default is taken.
        weight_decay: Of AdamW (Table 4: 1e-4).
        decay: What the weight decay acts on: all parameters, as the paper's silence says; or, as in the published code,
            all but the biases and the latent queries; or, as in its later states (published_later), neither these nor
            the norms.
        clip_norm: Largest norm of the gradient (C.3: 1).
        ema_decay: Decay of an exponential moving average of the weights, which is then what is judged and kept; 0 for
            none (the paper uses none).
        precision: auto is bf16-mixed on a GPU and 32-true elsewhere. The paper's LPBF runs are FP32 (with TF32).
        tf32: Let FP32 matrix products on a GPU round their inputs to TF32, as the published runs did.
        mixer: How FLARE and FLARE++ mix: triton for the GPU's kernels, sdpa for attention calls, reference for matrices
            written out, auto for the kernels where they can run and sdpa elsewhere. With the kernels, FLARE's pointwise
            networks of 64 or 128 channels run in one kernel each under 16-bit precision, with the LayerNorm before
            them. It is no part of the model: what was trained with kernels predicts without.
        compile: Compile the model with torch.compile in this mode; reduce-overhead uses CUDA graphs of its own.
        step_graphs: Record whole steps, the optimiser's included, as CUDA graphs, and launch each at once: several
            times as fast for parts of up to some 50,000 points, whose steps wait for launches. On one GPU or several,
            for models that read nothing back to the host, such as FLARE by the kernels.
        round_points: Fill each batch up to a multiple of so many points, so that CUDA graphs meet few sizes; 0 for not,
            but for 1024 under step_graphs.
        activation_checkpointing: Keep only the input of each block and recompute the rest in the backward pass; not
            with step_graphs.
        deterministic: Ask for deterministic kernels on a GPU, where there are any.
    """

    epochs: int = 250
    steps: int = 0
    batch_size: int = 1
    max_points: int = 0
    accumulate: int = 1
    loss: Loss = "relative_l2"
    target_losses: dict[str, Loss] = field(default_factory=dict)
    target_weights: dict[str, float] = field(default_factory=dict)
    gradient_weight: float = 0.0
    learning_rate: float = 1e-3
    warmup: float = 0.1
    start_divisor: float = 25.0
    end_divisor: float = 2.5e5
    cycle_beta1: bool = False
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    decay: Literal["all", "published", "published_later"] = "all"
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    precision: Precision = "auto"
    tf32: bool = False
    mixer: Implementation = "auto"
    compile: CompileMode = "off"
    step_graphs: bool = False
    round_points: int = 0
    activation_checkpointing: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"--recipe.{name} must be positive, not {getattr(self, name)}")
        if not 0 < self.warmup < 1:
            raise UsageError(f"--recipe.warmup must lie between 0 and 1, not {self.warmup}")
        if not 0 < self.beta2 < 1:
            raise UsageError(f"--recipe.beta2 must lie between 0 and 1, not {self.beta2}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"--recipe.ema_decay must lie between 0 and 1, not {self.ema_decay}")
        for name in ("weight_decay", "round_points", "max_points", "steps", "gradient_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"--recipe.{name} must not be negative, but is {getattr(self, name)}")
        for name, weight in self.target_weights.items():
            if not 0 < weight < float("inf"):
                raise UsageError(f"--recipe.target_weights.{name} must be positive, not {weight}")
        self._check_step_graphs()

    def loss_of(self, target: str) -> Loss:
        """The loss of a target."""
        return self.target_losses.get(target, self.loss)

    def weight_of(self, target: str) -> float:
        """Weight of a target's loss; 1 for one that isn't named."""
        return self.target_weights.get(target, 1.0)

    def _check_step_graphs(self) -> None:
        if not self.step_graphs:
            return
        for unfit, what in (
            (
                self.max_points and self.batch_size == 1,
                "--recipe.max_points alone: each number of cases is a graph of its own; add --recipe.batch_size 16",
            ),
            (self.accumulate > 1, f"--recipe.accumulate {self.accumulate}: a graph holds one batch"),
            (self.precision == "16-mixed", "--recipe.precision 16-mixed, whose loss scale is decided by the host"),
            (self.cycle_beta1, "--recipe.cycle_beta1: a graph keeps the beta1 that it was recorded with"),
            (
                self.compile not in ("off", "default"),
                f"--recipe.compile {self.compile}, which records graphs of its own",
            ),
            (self.activation_checkpointing, "--recipe.activation_checkpointing: that was never tried in a recording"),
        ):
            if unfit:
                raise UsageError(f"--recipe.step_graphs doesn't go with {what}")

    @property
    def multiple(self) -> int:
        """Number that the points of a batch are filled up to a multiple of; 0 where they aren't filled up."""
        return self.round_points or (_ROUNDED if self.step_graphs else 0)


def check_device(recipe: Recipe, *, on_gpu: bool) -> None:
    """Refuse options that the device doesn't support.

    Raises:
        UsageError: If CUDA graphs are asked for on a CPU.
    """
    if recipe.step_graphs and not on_gpu:
        raise UsageError(
            "--recipe.step_graphs needs a GPU: there are no CUDA graphs without one; train with --recipe.step_graphs "
            "false here"
        )


def choose_precision(requested: Precision, *, on_gpu: bool) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """The precision to train in.

    Raises:
        UsageError: If 16-mixed is asked for on a CPU.
    """
    if requested == "16-mixed" and not on_gpu:
        raise UsageError("--recipe.precision 16-mixed needs a GPU; use 32-true or bf16-mixed on a CPU")
    if requested == "auto":
        return "bf16-mixed" if on_gpu else "32-true"
    return requested
