"""Reading the auxiliary files of a checkpoint; those that were made for other weights are left out."""

from __future__ import annotations

from pathlib import Path

from flare_model.checkpoints.files import WEIGHTS_NAME
from flare_model.checkpoints.hub import fetch_checkpoint
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.intervals import INTERVALS_NAME
from flare_model.data.likeness import read_training_shapes
from flare_model.decision.answer import Auxiliary
from flare_model.decision.material_scale import scale_for_material
from flare_model.judging.interference import risk_target
from flare_model.judging.part_intervals import stored_intervals
from flare_model.judging.risk_model import read_risk
from flare_model.judging.stored_evaluation import read_evaluation
from lpbf_data.durable import sha256_of_file


def read_auxiliary(
    checkpoint: str, surrogate: Surrogate, material: str | None = None
) -> tuple[Auxiliary, tuple[str, ...]]:
    """Read intervals, risk model, statistics of the training parts, and the verdict of the evaluation.

    Args:
        checkpoint: A folder, or an id on the Hugging Face hub.
        surrogate: The model of that checkpoint.
        material: The material that predictions are scaled to; None for that of the training.

    Returns:
        The auxiliary data, None for files that are missing or left out; and a sentence for each that is left out, which
        says why.

    Raises:
        SchemaError: If a file can't be read.
        UsageError: If the model's predictions can't be scaled to the material, or it isn't one of printed parts.
    """
    surrogate.need_parts("a decision")
    material_scale = scale_for_material(material, surrogate.usage) if material is not None else None
    folder = fetch_checkpoint(checkpoint)
    intervals, doubt = stored_intervals(checkpoint, surrogate)
    doubts = [doubt] if doubt else []
    digest = sha256_of_file(folder / WEIGHTS_NAME)
    risk_model, training_shapes = read_risk(folder), read_training_shapes(folder)
    if risk_model is not None and (
        risk_model.weights_sha256 != digest or risk_model.target != risk_target(tuple(surrogate.usage.targets))
    ):
        doubts.append(
            f"the risk model in {checkpoint} was made for other weights, and is left out; make a new one: "
            "python -m flare_model.evaluate"
        )
        risk_model = None
    if training_shapes is not None and training_shapes.weights_sha256 != digest:
        doubts.append(
            f"the statistics of training parts in {checkpoint} were made for other weights, and are left out; make new "
            "ones: "
            "python -m flare_model.release"
        )
        training_shapes = None
    model_doubts = _doubts_about(folder, digest, has_intervals=intervals is not None or bool(doubt))
    return Auxiliary(intervals, risk_model, training_shapes, material_scale, model_doubts), tuple(doubts)


def _doubts_about(folder: Path, digest: str, *, has_intervals: bool) -> tuple[str, ...]:
    """Whether its evaluation found a model no better than predicting zero, and why it has no intervals."""
    evaluation = read_evaluation(folder, digest)
    doubts = [evaluation.doubt()] if evaluation and evaluation.doubt() else []
    if not has_intervals and evaluation and evaluation.no_intervals:
        doubts.append(f"how sure predictions are isn't known: {evaluation.no_intervals}")
    elif not has_intervals:
        doubts.append(
            f"how sure predictions are isn't known: the checkpoint has no {INTERVALS_NAME}; python -m "
            "flare_model.evaluate makes it, from a data set with a validation split"
        )
    return tuple(doubts)
