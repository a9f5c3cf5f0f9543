"""What do FLARE's blocks, latents, depths of networks and heads contribute, on Darcy? Figures 5, 9 and 10 of its paper.

    python -m tests.benchmarks.paper_ablations --data darcy_set/ --work runs/ablations --steps 1000 --processes 6
    python -m tests.benchmarks.paper_ablations --draw          # draws paper_ablations.png from the JSON, without a GPU
    python -m tests.benchmarks.paper_ablations --show          # prints it as tables

The paper has Darcy in figure 5 alone, and in the others elasticity, which can't be had here; and it trains for 500
epochs. Here all models are trained on Darcy for the same, few steps of its recipe, and evaluated once on the test
split. One thing is changed at a time of Darcy's configuration (8 blocks, 256 latents, 16 heads of 4 channels, 3
residual layers in the networks of keys and values and in the pointwise one); for figure 5 two are, blocks and latents.

First weights have a standard deviation of `--deviation`, 0.08: with the 0.02 of the published code a small FLARE was
at a relative L2 of 0.62 after 300 steps, with 0.08 at 0.22, where the mean of the training cases at each point is at
0.25.

Needs a GPU, and a Darcy data set (`darcy_league` says how it is made). `--processes` trainings run at a time, spread
over all visible GPUs. Figures go to `--out`, by default results/paper_ablations.json, after each training, and
trainings that are in the file are not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flare_model.sizes import FlareConfig
from tests.benchmarks.machine import RESULTS, describe_training_machine

NORMAL: Final = {"num_blocks": 8, "num_latents": 256, "num_heads": 16, "mixer_layers": 3, "pointwise_layers": 3}
"""Sizes of Darcy's configuration, which has 64 channels."""

CHANNELS: Final = 64

FIGURES: Final[Mapping[str, tuple[Mapping[str, int], ...]]] = {
    "5": tuple({"num_blocks": b, "num_latents": m} for b in (8, 4, 2) for m in (256, 64, 16)),
    "9": (
        *({"mixer_layers": layers} for layers in (3, 0, 1, 2, 4)),
        *({"pointwise_layers": layers} for layers in (3, 0, 1, 2, 4)),
    ),
    "10": tuple({"num_heads": heads} for heads in (16, 8, 4, 2)),
}
"""Figure to the changed sizes of each of its models; the first model of each is Darcy's configuration."""

LETTERS: Final = {"num_blocks": "b", "num_latents": "m", "num_heads": "h", "mixer_layers": "k", "pointwise_layers": "p"}
REDUCED: Final = {"channels": 32, "projection_layers": 0}


def sizes_of(figures: Sequence[str]) -> list[dict[str, int]]:
    """Sizes of all models of some figures, each once."""
    found: list[dict[str, int]] = []
    for figure in figures:
        for change in FIGURES[figure]:
            if (sizes := {**NORMAL, **change}) not in found:
                found.append(sizes)
    return found


def key_of(sizes: Mapping[str, int], asked: Mapping[str, Any], seed: int) -> str:
    """Name of a training in the file."""
    letters = "-".join(f"{LETTERS[name]}{sizes[name]}" for name in NORMAL)
    return f"{letters}-{asked['steps']}-steps-{asked['precision']}-from-{asked['deviation']:g}-seed-{seed}"


def errors_of(content: Mapping[str, Any], **change: int) -> list[Mapping[str, Any]]:
    """Runs of one model, one for each seed, with the settings of the last call.

    Args:
        content: Content of the file.
        change: Sizes that differ from the configuration's.
    """
    wanted = {**NORMAL, **change}
    of = [run for run in content["runs"].values() if run["asked"] == content["asked"] and run.get("test_relative_l2")]
    return [run for run in of if {name: run["sizes"].get(name) for name in NORMAL} == wanted]


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return sum(run[name] for run in runs) / len(runs) if runs else None


def curve(content: Mapping[str, Any], name: str, values: Sequence[int], **change: int) -> list[tuple[int, float]]:
    """Values of one size, each with its test error, as far as it was measured."""
    found = [(value, _mean(errors_of(content, **{**change, name: value}), "test_relative_l2")) for value in values]
    return [(value, error) for value, error in found if error is not None]


def values_of(figure: str, name: str) -> list[int]:
    """The values that a figure gives to a size, ascending."""
    return sorted({change[name] for change in FIGURES[figure] if name in change})


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Draw a panel for each figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    blocks = values_of("5", "num_blocks")
    for latents in values_of("5", "num_latents"):
        _line(left, curve(content, "num_blocks", blocks, num_latents=latents), f"M = {latents}")
    left.set(xlabel="blocks", title="blocks and latents (figure 5)", xticks=blocks)
    for name, label in (("mixer_layers", "keys and values"), ("pointwise_layers", "pointwise network")):
        _line(middle, curve(content, name, values_of("9", name)), label)
    middle.set(xlabel="residual layers", title="depth of networks (figure 9)", xticks=values_of("9", "mixer_layers"))
    by_heads = curve(content, "num_heads", values_of("10", "num_heads"))
    _line(right, sorted((CHANNELS // heads, error) for heads, error in by_heads), "C = 64")
    right.set(xlabel="channels a head", title="channels a head (figure 10)", xscale="log")
    depths = [CHANNELS // heads for heads in values_of("10", "num_heads")]
    right.set_xticks(depths, labels=[str(depth) for depth in depths])
    right.minorticks_off()
    for panel in (left, middle, right):
        panel.set_ylabel("relative L2 on the test")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(frameon=False, fontsize=8)
    start = content["asked"].get("deviation") or FlareConfig.initial_deviation
    title = f"FLARE on Darcy, {content['asked']['steps']:,} steps, first weights of deviation {start:g}"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _line(panel: Any, points: Sequence[tuple[int, float]], label: str) -> None:
    if points:
        panel.plot(*zip(*points, strict=True), marker="o", label=label)


def tables_of(content: Mapping[str, Any]) -> list[str]:
    """Markdown tables: figure 5 as blocks by latents, of the others a row for each change."""
    latents = values_of("5", "num_latents")
    lines = [
        "| relative L2 × 1e-3 | " + " | ".join(f"M = {m}" for m in latents) + " |",
        "|---" * (len(latents) + 1) + "|",
    ]
    for b in values_of("5", "num_blocks"):
        cells = [_error(errors_of(content, num_blocks=b, num_latents=m)) for m in latents]
        lines.append(f"| {b} blocks | " + " | ".join(cells) + " |")
    lines += ["", "| changed | relative L2 × 1e-3 | parameters | ms a step |", "|---|---|---|---|"]
    for name, label in (
        ("mixer_layers", "{} layers for keys and values"), ("pointwise_layers", "{} layers in the pointwise network"),
        ("num_heads", "{} heads"),
    ):  # fmt: skip
        for value in values_of("10" if name == "num_heads" else "9", name):
            if runs := errors_of(content, **{name: value}):
                what = label.format(value) + (f" of {CHANNELS // value} channels" if name == "num_heads" else "")
                figures = f"{runs[0]['parameters']:,} | {_mean(runs, 'ms_a_step'):.1f}"
                lines.append(f"| {what} | {_error(runs)} | {figures} |")
    return lines


def _error(runs: Sequence[Mapping[str, Any]]) -> str:
    error = _mean(runs, "test_relative_l2")
    return "" if error is None else f"{error * 1e3:.1f}"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="darcy", help="data set made by pipelines.benchmarks.convert darcy")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "paper_ablations.json", help="JSON file of the figures")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(FIGURES), default=list(FIGURES), help="these figures of the paper"
    )
    parser.add_argument("--steps", type=int, default=1000, help="steps of each training")
    parser.add_argument("--processes", type=int, default=6, help="trainings that run at a time")
    parser.add_argument("--precision", choices=("recipe", "bf16-mixed"), default="recipe")
    parser.add_argument("--graphs", choices=("auto", "yes", "no"), default="auto", help="steps as CUDA graphs")
    parser.add_argument("--deviation", type=float, default=0.08, help="of the first weights; Darcy's own is 0.02")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reduced", action="store_true", help="small models, to see that everything runs")
    parser.add_argument("--draw", action="store_true", help="only draw the picture of the figures in --out")
    parser.add_argument("--show", action="store_true", help="only print the tables of the figures in --out")
    return parser.parse_args(words)


def run(asked: argparse.Namespace) -> None:
    """Train the models that were asked for and aren't in the file."""
    from tests.benchmarks.darcy_runs import Job, Kept, Slots, clock, opened, ways_of

    note = clock()
    recipe: dict[str, Any] = {"steps": asked.steps, "tf32": True}
    if asked.precision != "recipe":
        recipe["precision"] = asked.precision
    more = {"initial_deviation": asked.deviation, **(REDUCED if asked.reduced else {})}
    what_was_asked = {"steps": asked.steps, "precision": asked.precision, "deviation": asked.deviation}
    jobs = [
        Job(
            key_of(sizes, what_was_asked, asked.seed), asked.data, "darcy", asked.work,
            {**sizes, **more}, recipe, seed=asked.seed, facts={"asked": what_was_asked},
        )
        for sizes in sizes_of(asked.only)
    ]  # fmt: skip
    kept = Kept(
        asked.out,
        {
            "what": ("REDUCED: small models; figures show only that everything runs. " if asked.reduced else "")
            + "FLARE on Darcy in place of elasticity, the same few steps of Darcy's recipe for all, test split",
            "data": {"sha256": opened(asked.data, "train").data_digest},
            "asked": what_was_asked,
            "processes": asked.processes,
            "machine": describe_training_machine(),
        },
    )

    def tell(job: Job, found: dict[str, Any] | None, failures: dict[str, str]) -> None:
        kept.note(job.key, found, failures)
        note(f"{job.key}: {found['test_relative_l2'] if found else ''} {failures or ''}")

    with Slots(asked.processes, ways_of(asked.graphs)) as slots:
        slots.each([job for job in jobs if job.key not in kept.runs], tell)
    print(asked.out)


def main() -> None:
    asked = parse()
    if asked.draw or asked.show:
        from tests.benchmarks.figures import draw_or_show

        draw_or_show(asked, draw, tables_of)
    else:
        run(asked)


if __name__ == "__main__":
    main()
