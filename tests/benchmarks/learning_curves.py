"""How does the error of `lpbf_accurate` change with more designs, with more steps, and without groups of features?

    python -m tests.benchmarks.learning_curves --data lpbf/ --work runs/curves --steps 8000 --processes 4
    python -m tests.benchmarks.learning_curves --draw

Each training begins from fresh weights and runs its schedule to the end; beside one with everything, one thing is
changed at a time: fewer designs, taken evenly from the train split, fewer steps, or input features left out by groups.
Errors are relative L2 on the validation split at the end of a training; the test split is not read.

Needs a GPU for its time's sake, and a corpus with the splits train and validation. Runs are stored in `--work`, and
those that are there are not done again. The result goes to results/learning_curves.json, and with `--draw` the picture
to results/learning_curves.png.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flare_model.data.splits import Split
from flare_model.train import open_device, open_splits, run_once
from flare_model.training.settings import Settings
from lpbf_data.case.feature_schema import SHAPE_FEATURES
from tests.benchmarks.accurate_trainings import accurate_settings, recipe_of_own_model
from tests.benchmarks.machine import RESULTS, describe_training_machine, kept_result, save_result
from tests.benchmarks.train_models import quiet
from tests.benchmarks.workers import training_pool

DESIGNS: Final = (500, 1000, 2000, 4000)
"""Numbers of designs of the train split, beside all of it."""

SHARES: Final = (0.125, 0.25, 0.5)
"""Shares of the steps, beside all of them."""

GROUPS: Final = {
    "neighbourhood": ("solid_share_4mm", "solid_share_12mm", "surface_distance"),
    "column": ("solid_above", "column_foot"),
    "slice": ("slice_area_log", "slice_growth", "slice_offset", "slice_radius"),
    "what is built above": ("part_above", "volume_above"),
    "part": ("footprint_log", "part_offset", "part_radius"),
    "section": ("section_centroid", "section_radius"),
}
"""Groups of features that describe similar things; together they are `--features geometry`."""


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        name: What is changed; also the name of its folder.
        data: The data set.
        steps: Number of steps.
        designs: Number of training cases; 0 for all.
        features: Input features of the model.
    """

    name: str
    data: str
    steps: int
    designs: int
    features: tuple[str, ...]

    def settings(self) -> Settings:
        """The settings that `flare_model.train --config lpbf_accurate` would be given."""
        return accurate_settings(
            self.data, recipe_of_own_model(self.steps), features=self.features,
            validate_steps=self.steps, checkpoint_every=self.steps,
        )  # fmt: skip


def jobs_of(data: str, steps: int, designs: int) -> list[Job]:
    """All trainings, the longest first.

    Args:
        data: The data set.
        steps: Steps of the longest trainings.
        designs: Number of cases in the train split.
    """
    told = tuple(name for group in GROUPS.values() for name in group)
    jobs = [Job("all", data, steps, 0, told)]
    jobs += [Job(f"designs-{count}", data, steps, count, told) for count in DESIGNS if count < designs]
    jobs += [
        Job(f"without-{name.replace(' ', '-')}", data, steps, 0, tuple(one for one in told if one not in group))
        for name, group in GROUPS.items()
    ]
    jobs += [Job("coordinates-alone", data, steps, 0, ())]
    return jobs + [Job(f"steps-{round(share * steps)}", data, round(share * steps), 0, told) for share in SHARES]


def carry_out(job: Job, work: Path) -> dict[str, Any]:
    """Train; the error on validation at the end, which is kept in the run's folder."""
    folder = work / job.name

    def train() -> dict[str, Any]:
        with quiet(folder.with_suffix(".log")):
            settings, fabric, precision = open_device(job.settings())
            splits = open_splits(settings)
            if job.designs:
                splits["train"] = splits["train"].evenly_chosen(job.designs)
            result = run_once(settings, fabric, precision, folder, splits)
        found = {"steps": job.steps, "train": len(splits["train"]), "features": list(job.features)}
        return found | {"validation": result["validation"]}

    return kept_result(folder / "curve.json", train)


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw the error of Z over designs and over steps, on logarithmic axes."""
    from matplotlib.figure import Figure

    runs = content["runs"]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axis, kind, key in zip(
        figure.subplots(1, 2, sharey=True), ("designs", "steps"), ("train", "steps"), strict=True
    ):
        rows = sorted((runs[name] for name in runs if name == "all" or name.startswith(kind)), key=lambda run: run[key])
        axis.loglog([run[key] for run in rows], [run["validation"]["displacement_z"] for run in rows], "o-")
        axis.set_xlabel("training designs" if kind == "designs" else "steps")
        axis.set_xticks([run[key] for run in rows], [f"{run[key]:,}" for run in rows])
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
    shown = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    figure.axes[0].set_yticks(shown, [f"{error:g}" for error in shown])
    figure.axes[0].set_ylabel("relative L2 of Z, validation")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a built data set with train and validation")
    parser.add_argument("--work", type=Path, help="folder of the runs, which are continued")
    parser.add_argument("--steps", type=int, default=8000, help="steps of the longest trainings")
    parser.add_argument("--processes", type=int, default=1, help="trainings that run at a time")
    parser.add_argument("--draw", action="store_true", help="only draw the stored result")
    asked = parser.parse_args()
    if asked.draw:
        draw(json.loads((RESULTS / "learning_curves.json").read_text("utf-8")), RESULTS / "learning_curves.png")
        return
    if not asked.data or not asked.work:
        parser.error("--data and --work are needed")
    assert {name for group in GROUPS.values() for name in group} == set(SHAPE_FEATURES)
    train = Split(asked.data, "train")
    content: dict[str, Any] = {
        "what": "relative L2 on validation parts over designs, steps and features; one seed",
        "groups": GROUPS,
        "data": {"sha256": train.data_digest, "train": len(train), "validation": len(Split(asked.data, "validation"))},
        "machine": describe_training_machine(),
        "runs": {},
    }
    started = time.monotonic()
    with training_pool(asked.processes) as pool:
        jobs = jobs_of(asked.data, asked.steps, len(train))
        waiting = {pool.submit(carry_out, job, asked.work): job for job in jobs}
        for future in as_completed(waiting):
            name = waiting[future].name
            content["runs"][name] = future.result()
            save_result("learning_curves", content)
            z = content["runs"][name]["validation"]["displacement_z"]
            print(f"{time.monotonic() - started:7.1f} s: {name}: {z:.3f}", flush=True)


if __name__ == "__main__":
    main()
