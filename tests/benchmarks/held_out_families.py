"""How well does a model predict families of parts that it never saw?

    python -m tests.benchmarks.held_out_families --data lpbf/ --work runs/families --steps 10000 --processes 2

For each of four fixed groups of the simulator's families, `lpbf_accurate` is trained from fresh weights on the train
split without the group's parts, and evaluated on parts of the group, of all splits, at most `--judged` of each family
and size. Compared with that is the error of the same model on the test split's parts of all other families, which it
knows.

Needs a GPU for its time's sake, and the surrogate's corpus (results/corpus.json), whose manifest names families. Runs
are stored in `--work`, and those that are there are not done again. The result goes to results/held_out_families.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from flare_model.checkpoints.surrogate import Surrogate, from_pretrained
from flare_model.data.splits import Split
from flare_model.judging.interval_calibration import families_of
from flare_model.judging.judge import judge
from flare_model.train import open_device, open_splits, run_once
from flare_model.training.settings import Settings
from tests.benchmarks.accurate_trainings import accurate_settings, recipe_of_own_model
from tests.benchmarks.machine import describe_training_machine, kept_result, save_result
from tests.benchmarks.train_models import quiet
from tests.benchmarks.workers import training_pool

GROUPS: Final = {
    "a": ("truss", "plate", "shaft", "bracket"),
    "b": ("gear", "bridge", "housing", "tee"),
    "c": ("flange", "heat_sink", "clevis"),
    "d": ("impeller", "ribbed_plate", "cantilever"),
}
LARGE: Final = 7000
"""Parts of more points count as large (about 20,000), others as small (about 2,000)."""

TARGETS: Final = ("displacement_x", "displacement_y", "displacement_z")


def settings_of(data: str, steps: int) -> Settings:
    """Settings of `lpbf_accurate` with the recipe of the package's own model, for a number of steps."""
    return accurate_settings(data, recipe_of_own_model(steps), validate_steps=steps, checkpoint_every=steps)


def errors_by_family(
    surrogate: Surrogate, splits: Iterable[Split], judged: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean relative L2 error by target, for each family and size.

    Args:
        surrogate: The model.
        splits: Splits whose parts are evaluated.
        judged: Largest number of parts of each family and size.
    """
    found: dict[str, dict[str, list[float]]] = {}
    left: dict[str, int] = {}
    for split in splits:
        families = families_of(split)
        points = {c: r.measures.num_points for c, r in split.records.items() if r.measures}
        kinds = {c: f"{families[c]} {'large' if points[c] > LARGE else 'small'}" for c in split.case_ids}
        taken = []
        for case_id, kind in kinds.items():
            left[kind] = left.get(kind, judged) - 1
            taken += [case_id] if left[kind] >= 0 else []
        scores, _ = judge(surrogate, split.only(taken))
        for score in scores:
            if score.predictor == "model" and score.target in TARGETS and score.relative_l2 is not None:
                found.setdefault(kinds[score.case_id], {}).setdefault(score.target, []).append(score.relative_l2)
    return {
        kind: {t: float(np.mean(values)) for t, values in by_target.items()} | {"parts": len(by_target[TARGETS[0]])}
        for kind, by_target in sorted(found.items())
    }


def parts_of(split: Split, group: str, *, inside: bool) -> Split:
    """The parts of a split that are of a group's families, or those that aren't."""
    families = families_of(split)
    return split.only(c for c in split.case_ids if (families.get(c) in GROUPS[group]) == inside)


def train_without(group: str, data: str, folder: Path, steps: int) -> None:
    """Train on all parts but those of a group."""
    settings, fabric, precision = open_device(settings_of(data, steps))
    left = {name: parts_of(split, group, inside=False) for name, split in open_splits(settings).items()}
    run_once(settings, fabric, precision, folder, left)


def carry_out(group: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Train without a group and evaluate on it; the errors are kept in the run's folder."""
    folder = asked.work / group

    def train_and_judge() -> dict[str, Any]:
        with quiet(folder.with_suffix(".log")):
            if not asked.judge_only:
                train_without(group, asked.data, folder, asked.steps)
            surrogate = from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")
            whole = [Split(asked.data, name) for name in ("test", "validation", "train")]
            return {
                "trained_on": len(parts_of(whole[-1], group, inside=False)),
                "held_out": errors_by_family(surrogate, [parts_of(s, group, inside=True) for s in whole], asked.judged),
                "known": errors_by_family(surrogate, [parts_of(whole[0], group, inside=False)], asked.judged),
            }

    return kept_result(folder / "families.json", train_and_judge)


def over_families(groups: Sequence[dict[str, Any]], kind: str, size: str) -> dict[str, dict[str, float]] | None:
    """Mean and worst error over the families, each with equal weight; that of a known family is a mean over groups."""
    rows: dict[str, dict[str, list[float]]] = {}
    for group in groups:
        for name, of in group[kind].items():
            if name.endswith(f" {size}"):
                for target in TARGETS:
                    rows.setdefault(target, {}).setdefault(name, []).append(of[target])
    if not rows:
        return None
    means = {target: {n: float(np.mean(v)) for n, v in by_name.items()} for target, by_name in rows.items()}
    return {
        target: {"mean": float(np.mean(list(by.values()))), "worst": max(by.values()), "worst_of": max(by, key=by.get)}  # type: ignore[arg-type, dict-item]
        for target, by in means.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set whose manifest names families")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs, which are continued")
    parser.add_argument("--steps", type=int, default=10000, help="steps of each of the four trainings")
    parser.add_argument("--judged", type=int, default=40, help="largest number of evaluated parts of a family and size")
    parser.add_argument("--processes", type=int, default=1, help="trainings that run at a time")
    parser.add_argument("--judge_only", action="store_true", help="only evaluate the models in --work")
    asked = parser.parse_args()
    started, found = time.monotonic(), {}
    with training_pool(asked.processes) as pool:
        waiting = {pool.submit(carry_out, group, asked): group for group in GROUPS}
        for future in as_completed(waiting):
            found[waiting[future]] = future.result()
            print(f"{time.monotonic() - started:7.1f} s: without group {waiting[future]}", flush=True)
    train = Split(asked.data, "train")
    groups = [found[name] for name in GROUPS]
    content = {
        "what": "relative L2 on families that were left out of training, beside families that were not",
        "groups": GROUPS,
        "steps": asked.steps,
        "data": {"sha256": train.data_digest, "train": len(train)},
        "machine": describe_training_machine(),
        "over_families": {
            f"{kind}, {size}": over_families(groups, kind, size)
            for kind in ("held_out", "known")
            for size in ("small", "large")
        },
        "by_group": found,
    }
    print(json.dumps(content["over_families"], indent=1))
    print(save_result("held_out_families", content))


if __name__ == "__main__":
    main()
