"""How much do a few results of a user's own improve the model that comes with the package?

    python -m pipelines.simulate --out simulated/ --cases 500 --points 2000 --seed 151 --calibration netfabb
    python -m pipelines.build --src simulated/ --out lpbf_netfabb/ --fields displacement --filters.preset all
    python -m tests.benchmarks.fine_tuning --data lpbf_netfabb/ --work runs/fine_tuning --processes 4

That model was trained on this project's simulator as calibrated to NIST's bridges. Here it is evaluated on results of
another calibration: as it is; with its displacements times one factor (the one that fits the chosen training cases
best, by least squares); and after fine-tuning (`flare_model.train --init`) on 10, 50 and 200 cases. Beside these
stands a model trained from fresh weights on 200 cases, with as many steps. Cases are taken evenly from the train
split, `--draws` times with another first one; errors are relative L2 on the test split, mean over its cases, and
nothing is chosen by them.

Needs a GPU for its time's sake. Runs are stored in `--work`, and those that are there are not done again. The result
goes to results/fine_tuning.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from flare_model.checkpoints.packaged_model import packaged_checkpoint
from flare_model.checkpoints.surrogate import Surrogate, from_pretrained
from flare_model.data.splits import Split
from flare_model.judging.judge import judge, predictions, summaries_of
from flare_model.train import open_device, open_splits, run_once
from flare_model.training.settings import Settings
from tests.benchmarks.accurate_trainings import accurate_settings
from tests.benchmarks.machine import describe_training_machine, kept_result, save_result
from tests.benchmarks.train_models import quiet, spread
from tests.benchmarks.workers import training_pool

COUNTS: Final = (10, 50, 200)
TARGETS: Final = ("displacement_x", "displacement_y", "displacement_z")


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        folder: Folder of the run.
        data: The data set.
        cases: Number of training cases.
        draw: Number of the selection of these cases; also the seed.
        steps: Number of steps.
        fresh: Whether it starts from fresh weights instead of the package's own.
    """

    folder: Path
    data: str
    cases: int
    draw: int
    steps: int
    fresh: bool = False

    def settings(self) -> Settings:
        """Settings of `lpbf_accurate` from fresh weights, or from the package's own with a smaller learning rate."""
        recipe = {"steps": self.steps, "ema_decay": 0.99} | ({} if self.fresh else {"learning_rate": 3e-4})
        init = None if self.fresh else packaged_checkpoint()
        return accurate_settings(self.data, recipe, init=init, seed=self.draw, checkpoint_every=self.steps)


def drawn(split: Split, cases: int, draw: int) -> Split:
    """A number of cases taken evenly from a split, beginning with another one for each draw."""
    numbers = [(draw * 7 + place * len(split) // cases) % len(split) for place in range(cases)]
    return split.only(split.case_ids[number] for number in numbers)


def errors_of(surrogate: Surrogate, split: Split) -> dict[str, float]:
    """Relative L2 error of each target, mean over the cases of a split."""
    surrogate = surrogate.to("cuda" if torch.cuda.is_available() else "cpu")
    found = summaries_of(judge(surrogate, split)[0])
    return {target: found[target]["model"]["relative_l2"] for target in TARGETS}


def carry_out(job: Job) -> dict[str, float]:
    """Train and evaluate; the errors are kept in the run's folder, and a run that has them is not done again."""

    def train_and_judge() -> dict[str, float]:
        with quiet(job.folder.with_suffix(".log")):
            settings, fabric, precision = open_device(job.settings())
            train = drawn(open_splits(settings)["train"], job.cases, job.draw)
            run_once(settings, fabric, precision, job.folder, {"train": train})
            return errors_of(from_pretrained(job.folder), Split(job.data, "test"))

    return kept_result(job.folder / "errors.json", train_and_judge)


def products(surrogate: Surrogate, split: Split) -> NDArray[np.float64]:
    """Inner products p·p, p·t, t·t of prediction p and truth t of each case and target, [cases, targets, 3] float64."""
    rows = []
    for batch, predicted in predictions(surrogate, split):
        p, t = predicted[:, : len(TARGETS)].astype(np.float64), batch.targets[:, : len(TARGETS)].double().numpy()
        rows.append(np.stack([(p * p).sum(0), (p * t).sum(0), (t * t).sum(0)], axis=-1))
    return np.stack(rows)


def scaled(seen: NDArray[np.float64], test: NDArray[np.float64]) -> dict[str, float]:
    """Errors on test cases after one factor on all displacements, and the factor.

    It minimises the squared relative error over the training cases `seen`, each with equal weight.

    Args:
        seen: Inner products of training cases, as from `products`.
        test: Those of test cases.
    """
    pp, pt, tt = np.moveaxis(seen.sum(axis=1), -1, 0)
    factor = float((pt / tt).sum() / (pp / tt).sum())
    pp, pt, tt = np.moveaxis(test, -1, 0)
    errors = np.sqrt((factor**2 * pp - 2 * factor * pt + tt) / tt).mean(axis=0)
    return dict(zip(TARGETS, errors.tolist(), strict=True)) | {"factor": factor}


def spreads(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation over the draws, by target."""
    return {key: spread([row[key] for row in rows]) for key in rows[0]} | {"draws": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set of another calibration, with the splits train and test")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs, which are continued")
    parser.add_argument("--steps", type=int, default=600, help="steps of each training")
    parser.add_argument("--draws", type=int, default=2, help="repetitions with other cases and seeds")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time")
    asked = parser.parse_args()
    train = Split(asked.data, "train")
    counts = [count for count in COUNTS if count <= len(train)]
    jobs = {
        (kind, count): [
            Job(asked.work / f"{kind}-{count}-{draw}", asked.data, count, draw, asked.steps, fresh=kind == "fresh")
            for draw in range(asked.draws)
        ]
        for kind, count in [*(("tuned", count) for count in counts), ("fresh", counts[-1])]
    }
    started = time.monotonic()
    with training_pool(asked.processes) as pool:
        waiting = {pool.submit(carry_out, job): job for jobs_of in jobs.values() for job in jobs_of}
        for future in as_completed(waiting):
            print(f"{time.monotonic() - started:7.1f} s: {waiting[future].folder.name}: {future.result()}", flush=True)
    own, test = from_pretrained(), Split(asked.data, "test")
    products_of_test = products(own, test)
    content = {
        "what": "relative L2 on test cases of another calibration, of the package's own model and after fine-tuning",
        "steps": asked.steps,
        "data": {"sha256": train.data_digest, "train": len(train), "test": len(test)},
        "machine": describe_training_machine(),
        "as it is": errors_of(own, test),
        "times one number": {
            str(count): spreads(
                [scaled(products(own, drawn(train, count, draw)), products_of_test) for draw in range(asked.draws)]
            )
            for count in counts
        },
        "tuned": {str(c): spreads([carry_out(job) for job in of]) for (kind, c), of in jobs.items() if kind == "tuned"},
        "fresh": {str(c): spreads([carry_out(job) for job in of]) for (kind, c), of in jobs.items() if kind == "fresh"},
    }
    print(json.dumps({key: content[key] for key in ("as it is", "times one number", "tuned", "fresh")}, indent=1))
    print(save_result("fine_tuning", content))


if __name__ == "__main__":
    main()
