"""Charts of benchmarks' results for the README files; not a command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def line_figure(
    path: Path, x_values: Sequence[float], curves: Mapping[str, Sequence[float]], *, x: str, y: str, title: str
) -> None:
    """Draw curves over common x values; those whose name begins with "measured" as points."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), dpi=110)
    for name, values in curves.items():
        style = "o" if name.startswith("measured") else "-"
        axes.plot(x_values, values, style, label=name, markersize=5, linewidth=1.6)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def draw_or_show(
    asked: argparse.Namespace,
    draw: Callable[[dict[str, Any], Path], None],
    tables_of: Callable[[dict[str, Any]], list[str]],
) -> None:
    """Carry out `--draw` and `--show` on the figures in `--out`: draw a picture beside that file, print tables."""
    content = json.loads(asked.out.read_text(encoding="utf-8"))
    if asked.draw:
        picture = asked.out.with_suffix(".png")
        draw(content, picture)
        print(picture)
    if asked.show:
        print("\n".join(tables_of(content)))
