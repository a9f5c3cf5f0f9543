"""Curves and histograms as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

mpl.rcParams["axes.spines.top"] = False
mpl.rcParams["axes.spines.right"] = False


def plot_curves(path: Path, training: Mapping[str, Sequence[float]], validation: Mapping[str, Sequence[float]]) -> None:
    """Loss and validation error over the steps, with the learning rate below.

    Args:
        path: The PNG.
        training: Columns step, loss, learning_rate.
        validation: Columns step and one a target.
    """
    if not training:
        return
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps, loss = np.asarray(training["step"]), np.asarray(training["loss"])
    above.plot(steps, loss, color="0.8", linewidth=0.6, label="training loss, a step")
    width = max(1, len(loss) // 50)
    if width > 1:
        mean = np.convolve(loss, np.full(width, 1 / width), mode="valid")
        above.plot(steps[width - 1 :], mean, color="tab:blue", label=f"its mean over {width} steps")
    for name, values in validation.items():
        if name not in ("step", "epoch", "mean"):
            above.plot(validation["step"], values, marker=".", label=f"validation, {name}")
    if np.all(loss > 0):
        above.set_yscale("log")
    above.set_ylabel("relative L2 error")
    above.legend(frameon=False)
    below.plot(steps, training["learning_rate"], color="tab:green")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    figure.savefig(path, dpi=120)


def plot_histogram(path: Path, series: Mapping[str, ArrayLike], label: str) -> None:
    """Histograms of several series on one axis.

    Args:
        path: The PNG.
        series: Name to values.
        label: What the values are.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    values = {name: np.asarray(v, dtype=float) for name, v in series.items()}
    finite = np.concatenate([v[np.isfinite(v)] for v in values.values()])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1.0, 41)
    for name, v in values.items():
        axis.hist(v[np.isfinite(v)], bins=edges.tolist(), alpha=0.6, label=name)
    axis.set_xlabel(label)
    axis.set_ylabel("cases")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
