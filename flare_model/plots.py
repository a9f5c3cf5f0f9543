"""Curves and histograms as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from lpbf_data.durable import write_durably

mpl.rcParams["axes.spines.top"] = False
mpl.rcParams["axes.spines.right"] = False


def plot_curves(
    path: Path,
    training: Mapping[str, Sequence[float]],
    validation: Mapping[str, Sequence[float]],
    training_cases: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Loss, validation error and error on training cases over the steps, with the learning rate below.

    Args:
        path: The PNG.
        training: Columns step, loss, learning_rate.
        validation: Columns step and one a target.
        training_cases: The same columns for training cases, judged like those of the validation split.
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
    targets = [name for name in {**validation, **(training_cases or {})} if name not in ("step", "epoch", "mean")]
    for number, name in enumerate(targets, start=1):
        for table, what, style in ((validation, "validation", "-"), (training_cases or {}, "training cases", "--")):
            if name in table:
                above.plot(
                    table["step"], table[name], label=f"{what}, {name}", color=f"C{number}", linestyle=style, marker="."
                )
    if np.all(loss > 0):
        above.set_yscale("log")
    above.set_ylabel("relative L2 error")
    above.legend(loc="upper right", frameon=False)  # "best" looks at every step, for seconds in long runs
    below.plot(steps, training["learning_rate"], color="tab:green")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    _save(figure, path)


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
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="upper right", frameon=False)
    _save(figure, path)


def plot_detection(
    path: Path, curves: Mapping[str, Sequence[float]], chosen: Mapping[str, float | None] | None = None
) -> None:
    """Detection of hits: recall over false alarms (ROC), and precision over recall.

    Args:
        path: The PNG.
        curves: found, false_alarms and precision of every threshold, the highest first.
        chosen: recall and false_alarm_rate of the threshold that was chosen; None where none was.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.step(curves["false_alarms"], curves["found"], where="post")
    left.plot((0, 1), (0, 1), color="0.7", linestyle="--", label="by chance")
    if chosen and chosen["recall"] is not None and chosen["false_alarm_rate"] is not None:
        left.plot(chosen["false_alarm_rate"], chosen["recall"], "o", color="tab:red", label="the chosen threshold")
    left.set_xlabel("false alarms, share of parts without a hit")
    left.set_ylabel("recall, share of hits")
    left.legend(loc="lower right", frameon=False)
    right.step(curves["found"], curves["precision"], where="pre")
    right.set_xlabel("recall, share of hits")
    right.set_ylabel("precision, share of alarms that are hits")
    for axis in (left, right):
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
    _save(figure, path)


def plot_spectrum(path: Path, eigenvalues: Sequence[NDArray[np.float64]]) -> None:
    """Eigenvalues of the heads, one panel a block, one line a head, after Figure 7 of the FLARE paper.

    Args:
        path: The PNG.
        eigenvalues: Of each block, [H, M], largest first.
    """
    columns = min(4, len(eigenvalues))
    rows = -(-len(eigenvalues) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.7 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    epsilon = float(np.finfo(np.float32).eps)
    for number, panel in enumerate(panels.flat):
        if number >= len(eigenvalues):
            panel.set_visible(False)
            continue
        of_block = eigenvalues[number]
        index = np.arange(1, of_block.shape[1] + 1)
        for head in of_block:
            # Zeros, which a logarithmic axis doesn't have, are drawn at its lower end.
            panel.plot(index, np.maximum(head, epsilon**2), linewidth=1)
        panel.axvline(of_block.shape[1], color="tab:red", linestyle="--", linewidth=1, label="number of latents")
        panel.axhline(epsilon, color="black", linestyle="--", linewidth=1, label="FP32 precision")
        panel.set_yscale("log")
        panel.set_ylim(epsilon**1.5, 3)
        panel.set_title(f"block {number + 1}")
    for panel in panels[:, 0]:
        panel.set_ylabel("eigenvalue")
    for panel in panels[-1]:
        panel.set_xlabel("index")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG, which appears whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    write_durably(path, content.getvalue())
