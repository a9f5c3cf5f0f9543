"""Starting a run from the weights of a checkpoint (`--init`): what must match, and what is taken over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from flare_model.checkpoints.files import WEIGHTS_NAME
from flare_model.checkpoints.hub import fetch_checkpoint
from flare_model.checkpoints.spec import ModelSpec
from flare_model.checkpoints.surrogate import Surrogate, from_pretrained
from flare_model.data.normalisation import Normalisation
from flare_model.data.point_fields import resolve_inputs, resolve_targets
from flare_model.training.settings import DEFAULT_TARGETS, InitialCheckpoint, Settings
from lpbf_data.case.point_schema import PointSchema
from lpbf_data.console import say
from lpbf_data.durable import sha256_of_file
from lpbf_data.errors import StoreError, UsageError

_WARNING_RATIO: Final = 10.0
_MAX_RATIO: Final = 200.0
"""Ratios of a target's or feature's size to that in the checkpoint's training: beyond the first there is a warning,
beyond the second an error, since the unit must differ (metres for millimetres: 1000, pascals for megapascals: 1e6)."""


def load_initial_checkpoint(start: InitialCheckpoint, trust: str) -> Surrogate:
    """The surrogate that a run starts from, on the CPU.

    Args:
        start: The checkpoint.
        trust: Class path of the requested model, which may be imported even from outside of this package.

    Raises:
        StoreError: If it can't be read, or its weights are others than when the run began.
        UsageError: If it needs trust.
    """
    folder = fetch_checkpoint(start.checkpoint)
    surrogate = from_pretrained(folder, trust=trust)
    if sha256_of_file(folder / WEIGHTS_NAME) != start.weights_sha256:
        raise StoreError(f"--init {start.checkpoint}: its weights changed while they were read; give the command again")
    return surrogate


def adopt_checkpoint(
    checkpoint: str,
    model: ModelSpec,
    targets: Sequence[str],
    features: Sequence[str],
    point_schema: PointSchema | None = None,
) -> tuple[InitialCheckpoint, ModelSpec, list[str], list[str]]:
    """Model, targets and features of the checkpoint that a run starts from.

    Arguments at their defaults count as not asked for, since command lines spell out every default.

    Args:
        checkpoint: Its folder, or its id on the hub.
        model: The model as it was asked for.
        targets: Names of the targets, as asked for.
        features: Names of the input features, as asked for.
        point_schema: Coordinates and fields of the data set, where it isn't one of printed parts.

    Returns:
        The checkpoint, the model, names of targets, names of features.

    Raises:
        UsageError: If something else was asked for than the checkpoint has.
        StoreError: If the checkpoint can't be read.
    """
    folder = fetch_checkpoint(checkpoint)
    try:
        digest = sha256_of_file(folder / WEIGHTS_NAME)
    except OSError as error:
        raise StoreError(f"no readable checkpoint in {folder} ({error}); training writes one") from error
    start = InitialCheckpoint(checkpoint, digest)
    surrogate = load_initial_checkpoint(start, model.class_path)
    surrogate.usage.check_data(point_schema, "the data set of this run")
    available = {"--targets": list(surrogate.usage.targets), "--features": list(surrogate.usage.features)}
    requested = {
        "--targets": DEFAULT_TARGETS
        if list(targets) == DEFAULT_TARGETS
        else [t.name for t in resolve_targets(targets, "--targets", point_schema)],
        "--features": [f.name for f in resolve_inputs(features, "--features", point_schema)],
    }
    for option, default in (("--targets", DEFAULT_TARGETS), ("--features", [])):
        if requested[option] not in (available[option], default):
            named = " ".join(available[option]) or "none"
            raise UsageError(
                f"--init {checkpoint} doesn't fit: it was trained with {option} {named}, and this run asks for "
                f"{' '.join(requested[option])}; leave {option} out, or start without --init"
            )
    _check_model(checkpoint, model, surrogate.spec)
    features_named = f" from the features {', '.join(available['--features'])}" if available["--features"] else ""
    say(
        f"--init {checkpoint}: the run predicts {', '.join(available['--targets'])}{features_named}, as that model does"
    )
    chosen = ModelSpec(surrogate.spec.class_path, surrogate.spec.chosen["init_args"])
    return start, chosen, available["--targets"], available["--features"]


def _check_model(checkpoint: str, requested: ModelSpec, stored: ModelSpec) -> None:
    """Refuse a requested model that differs from that of the checkpoint."""
    if requested.class_path != stored.class_path:
        is_default = requested.class_path == ModelSpec().class_path and not requested.differing(ModelSpec())
        different = [] if is_default else [f"--model: {stored.class_path} → {requested.class_path}"]
    else:
        different = requested.differing(stored)
    if different:
        raise UsageError(
            f"--init {checkpoint} doesn't fit: it holds another model than the one that is asked for "
            f"({'; '.join(different)}); leave --model out, or start without --init"
        )


def initial_normalisation(initial: Surrogate, measured: Normalisation, settings: Settings) -> Normalisation:
    """The normalisation of the run: the checkpoint's, for which its weights were trained.

    Args:
        initial: The checkpoint.
        measured: Normalisation from the training cases of this run, for comparison.
        settings: Targets and features.

    Raises:
        UsageError: If values are so unlike those of the checkpoint's training that they must have another unit.
    """
    stored = initial.usage.normalisation
    for kind, named in (("target", settings.targets), ("feature", settings.features)):
        columns = [column for one in named for column in one.columns]
        old_scale, new_scale = (_scales(norm, kind) for norm in (stored, measured))
        for column, old, new in zip(columns, old_scale, new_scale, strict=True):
            _compare_scales(str(settings.init.checkpoint if settings.init else ""), column, old, new)
    return replace(stored)


def _scales(norm: Normalisation, kind: str) -> list[float]:
    """Root mean square of each column, over the training points."""
    means, deviations = getattr(norm, f"{kind}_mean"), getattr(norm, f"{kind}_std")
    return [math.hypot(mean, deviation) for mean, deviation in zip(means, deviations, strict=True)]


def _compare_scales(checkpoint: str, column: str, old: float, new: float) -> None:
    ratio = max(new / old, old / new)
    values = f"the root mean square of {column} is {new:.3g} in the training cases here and was {old:.3g} in those"
    if ratio > _MAX_RATIO:
        raise UsageError(
            f"--init {checkpoint} doesn't fit: {values} of its training; look at the unit, or start without --init"
        )
    if ratio > _WARNING_RATIO:
        say(f"warning: {values} of the training of {checkpoint}, whose scale is kept")
