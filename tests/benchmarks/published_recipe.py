"""What does the paper's recipe for LPBF reach on simulated parts of published sizes?

    python -m tests.benchmarks.published_recipe --run RUN --data DATA --test TEST [--speed training_speed.json]

Of a training with the configuration `lpbf` that has ended: 250 epochs of 1,100 parts, one a step. Told are the time
that its steps took, beside that of recorded steps alone where a file of `training_speed` on the same data and machine
is given; sizes of its parts beside those of the published data set; and, by `flare_model.evaluate` on designs that it
never saw, the relative L2 error and the published kind of figure, each under its own name, beside those of predicting
zero and the mean.

Needs a run, its data set and a built test split; no GPU. The result is results/published_recipe.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from flare_model.data.splits import Split
from flare_model.evaluate import evaluate
from flare_model.judging.stored_evaluation import SUMMARY_NAME
from flare_model.training.run_log import TRAINING_ERROR_NAME, TRAINING_NAME, VALIDATION_NAME, read_table
from tests.benchmarks.machine import describe_machine, save_result

PUBLISHED_QUARTERS: Final = (10_229, 19_743, 30_503)
"""Points of the published parts: a quarter, a half and three quarters have at most so many (table 6 of the paper)."""

PUBLISHED_FIGURE: Final = 0.018
"""The figure that the paper gives for FLARE on LPBF, which isn't a relative L2 error."""


def quarters(sizes: np.ndarray[Any, np.dtype[np.int64]]) -> list[int]:
    """Sizes that a quarter, a half and three quarters of parts have at most."""
    return [int(size) for size in np.quantile(sizes, (0.25, 0.5, 0.75))]


def training_of(run: Path, sizes: np.ndarray[Any, np.dtype[np.int64]], speed: Path | None) -> dict[str, Any]:
    """Pace and time of the steps of a run, and the errors that it told meanwhile."""
    table, validation, known = (
        read_table(run / name) for name in (TRAINING_NAME, VALIDATION_NAME, TRAINING_ERROR_NAME)
    )
    steps, pace = int(table["step"][-1]), table["points_per_second"][-1]
    found = {
        "steps": steps,
        "points_per_second": pace,
        "seconds": round(steps * float(sizes.mean()) / pace),
        "waiting_for_data": table["data_wait"][-1],
        "loss_over_the_last_thousand_steps": round(float(np.mean(table["loss"][-1000:])), 4),
        "last_validation": {name: column[-1] for name, column in validation.items()},
        "last_on_training_parts": {name: column[-1] for name, column in known.items()},
    }
    if speed is None:
        return found
    (row,) = json.loads(speed.read_text(encoding="utf-8"))["rows"].values()
    alone = float(row["resident"]["steps_alone"])
    return found | {"steps_alone_points_per_second": round(alone), "over_steps_alone": round(pace / alone, 3)}


def main() -> None:
    """Evaluate the run, and write what it reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training")
    parser.add_argument("--data", required=True, help="the data set that it was of")
    parser.add_argument("--test", required=True, help="a data set with the split test")
    parser.add_argument("--speed", type=Path, help="what training_speed wrote for that data")
    asked = parser.parse_args()
    parts, test = Split(asked.data, "train"), Split(asked.test, "test")
    if shared := set(parts.case_ids) & set(test.case_ids):
        raise SystemExit(f"{len(shared)} of the test parts were trained on")
    sizes, test_sizes = (np.array(split.dataset.sizes) for split in (parts, test))
    out = asked.run / "evaluation" / "test"
    evaluate(str(asked.run), asked.test, threshold_cases=0, out=str(out))
    summary = json.loads((out / SUMMARY_NAME).read_text(encoding="utf-8"))
    content = {
        "evaluated_on": describe_machine(("numpy", "torch", "pyarrow")),
        "run": json.loads((asked.run / "run.json").read_text(encoding="utf-8")),
        "parts": {
            "training": len(sizes),
            "mean_points": round(float(sizes.mean())),
            "quarters": quarters(sizes),
            "published_quarters": list(PUBLISHED_QUARTERS),
            "test": len(test_sizes),
            "test_quarters": quarters(test_sizes),
        },
        "training": training_of(asked.run, sizes, asked.speed),
        "test": summary["scores"],
        "published_figure_of_the_paper": PUBLISHED_FIGURE,
    }
    print(json.dumps({name: content[name] for name in ("parts", "training", "test")}, indent=2))
    save_result("published_recipe", content)


if __name__ == "__main__":
    main()
