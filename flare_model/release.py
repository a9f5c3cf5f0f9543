"""`python -m flare_model.release --checkpoint runs/accurate --data lpbf/`: make the model that comes with the package.

Weights and configuration of a run, with its auxiliary files (intervals, risk model, shapes of the training parts) and a
model card.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lpbf_data.command_line import run
from lpbf_data.console import follow, open_console
from lpbf_data.durable import sha256_of_file, write_durably
from lpbf_data.errors import StoreError, UsageError

if TYPE_CHECKING:
    from flare_model.data.likeness import TrainingShapes

CARD_NAME: Final = "README.md"


def release(
    checkpoint: str,
    data: str,
    *,
    out: str | None = None,
    split: str = "test",
    evaluation: str | None = None,
    threshold_cases: int = 1000,
    shapes: int = 2000,
    trust: str | None = None,
    accelerator: str = "auto",
) -> int:
    """Make the checkpoint that is shipped with the package: weights, auxiliary files, model card.

    Args:
        checkpoint: Folder of a run or checkpoint, or an id on the Hugging Face hub.
        data: The data set that it was trained on, with validation and test splits.
        out: Folder of the result; that of the package's own model by default.
        split: The split whose errors the card states.
        evaluation: Folder of an evaluation of these weights on this data set, whose numbers are taken instead of
            evaluating again.
        threshold_cases: Training cases, at most, that the risk model is fitted to in addition to those of validation.
        shapes: Training cases, at most, from which the shapes of the training parts are described.
        trust: Class path of a model outside of this package that may be imported.
        accelerator: auto, cpu or gpu.

    Returns:
        Exit status.
    """
    if split == "train":
        raise UsageError("--split must not be train: errors on parts that were trained on say nothing")
    if shapes < 1:
        raise UsageError(f"--shapes must be 1 or more, not {shapes}")

    from flare_model.checkpoints.files import CONFIG_NAME, WEIGHTS_NAME
    from flare_model.checkpoints.hub import AUXILIARY_NAMES, fetch_checkpoint
    from flare_model.checkpoints.packaged_model import PACKAGED_FOLDER
    from flare_model.checkpoints.surrogate import from_pretrained
    from flare_model.data.likeness import write_training_shapes
    from flare_model.data.splits import Split
    from flare_model.evaluate import evaluate
    from flare_model.judging.card import card_of

    place = PACKAGED_FOLDER if out is None else Path(out)
    loaded = fetch_checkpoint(checkpoint)
    surrogate = from_pretrained(loaded, trust=trust)
    surrogate.need_parts("python -m flare_model.release")
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / "model"
        aside.mkdir()
        for name in (WEIGHTS_NAME, CONFIG_NAME):
            write_durably(aside / name, (loaded / name).read_bytes())
        judged = Path(folder) / "judged" if evaluation is None else Path(evaluation)
        if evaluation is None:
            evaluate(
                str(aside), data, split=split, out=str(judged), worst=0, threshold_cases=threshold_cases, trust=trust,
                accelerator=accelerator,
            )  # fmt: skip
        summary = _take_over(judged, aside, sha256_of_file(aside / WEIGHTS_NAME))
        training_shapes = training_shapes_of(data, shapes, summary["identity"]["weights_sha256"])
        write_training_shapes(aside, training_shapes)
        weights = sum(parameter.numel() for parameter in surrogate.parameters())
        # An envelope counts the parts of every training that led here, the same ones twice.
        cases = len(Split(data, "train"))
        card = card_of(surrogate.usage, surrogate.origin, summary, training_shapes, weights, cases)
        write_durably(aside / CARD_NAME, card.encode())
        for name in (WEIGHTS_NAME, CONFIG_NAME, *AUXILIARY_NAMES, CARD_NAME):
            if (aside / name).exists():
                write_durably(place / name, (aside / name).read_bytes())
            else:
                (place / name).unlink(missing_ok=True)  # of another model
    open_console().print(f"the model lies in {place}")
    return 0


def _take_over(judged: Path, aside: Path, weights_sha256: str) -> dict[str, Any]:
    """The summary of an evaluation; intervals and risk model are copied next to the weights.

    Raises:
        UsageError: If the folder holds no evaluation, or one of other weights.
    """
    from flare_model.data.intervals import INTERVALS_NAME
    from flare_model.judging.risk_model import RISK_NAME
    from flare_model.judging.stored_evaluation import SUMMARY_NAME

    try:
        summary: dict[str, Any] = json.loads((judged / SUMMARY_NAME).read_text(encoding="utf-8"))
        of = summary["identity"]["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{judged} holds no evaluation ({error!r}); leave --evaluation out to evaluate again"
        ) from error
    if of != weights_sha256:
        raise UsageError(f"the evaluation in {judged} is of other weights; leave --evaluation out to evaluate again")
    for name in (INTERVALS_NAME, RISK_NAME):
        if (judged / name).exists():
            write_durably(aside / name, (judged / name).read_bytes())
    return summary


def training_shapes_of(data: str, most: int, weights_sha256: str) -> TrainingShapes:
    """Distribution of the shapes of a data set's training parts.

    Args:
        data: The data set.
        most: Most cases to take, evenly spaced over all.
        weights_sha256: SHA-256 of the file of weights that were trained on it.

    Raises:
        StoreError: If a case can't be read.
    """
    from flare_model.data.likeness import TrainingShapes, describe_shape
    from flare_model.data.splits import Split
    from flare_model.prediction.parts import Unreadable, cases_of

    chosen = Split(data, "train").evenly_chosen(most).case_ids
    shapes = []
    for part in follow(cases_of(data, "train", chosen, fields=()), len(chosen), "train", "case"):
        if isinstance(part, Unreadable):
            raise StoreError(f"{part.name}: {part.error}")
        shapes.append(describe_shape(part.points, part.cells))
    return TrainingShapes.of(shapes, weights_sha256)


def main() -> None:
    """Entry point of `lpbf-release`."""
    run(release, "python -m flare_model.release")


if __name__ == "__main__":
    main()
