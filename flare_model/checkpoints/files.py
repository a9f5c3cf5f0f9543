"""A checkpoint on disk: weights as safetensors, and `config.json` with everything that is needed to use them.

Opening one never runs code that came with it: no pickle, and no class but those of this package unless the caller
names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

from flare_model.checkpoints.spec import ModelSpec, split_execution
from flare_model.data.envelope import Envelope, Range
from flare_model.data.metrics import floor_of
from flare_model.data.normalisation import Normalisation
from flare_model.data.point_fields import PointField, column_names, resolve_inputs, resolve_targets, spans
from lpbf_data.case.point_schema import PointSchema
from lpbf_data.durable import write_durably, write_json
from lpbf_data.errors import SchemaError, StoreError, UsageError

WEIGHTS_NAME: Final = "model.safetensors"
CONFIG_NAME: Final = "config.json"
CHECKPOINT_VERSION: Final = 2


@dataclass(frozen=True)
class Usage:
    """How to use a bare model in physical units: normalisation, targets, input features, envelope of its training.

    Attributes:
        normalisation: Scales and shifts between physical units and the numbers that the model takes and returns.
        targets: Names of the fields or components that it predicts.
        features: Names of its input features: fields of the data set, and features of the shape.
        envelope: Ranges of points, height and aspect ratio of its training parts, and their materials, where known.
        point_schema: Coordinates and fields of the data set that it was trained on; None where that is one of printed
            parts. Called `points` in config.json.
    """

    normalisation: Normalisation
    targets: tuple[str, ...]
    features: tuple[str, ...] = ()
    envelope: Envelope | None = None
    point_schema: PointSchema | None = None

    @property
    def target_fields(self) -> tuple[PointField, ...]:
        """Fields or components that it predicts, in the order of its output."""
        return resolve_targets(self.targets, "the checkpoint", self.point_schema)

    @property
    def feature_fields(self) -> tuple[PointField, ...]:
        """Its input features, in the order of its input."""
        return resolve_inputs(self.features, "the checkpoint", self.point_schema)

    @property
    def columns(self) -> list[str]:
        """Columns of the targets, in the order of the predicted numbers."""
        return column_names(self.target_fields)

    @property
    def materials(self) -> tuple[str, ...]:
        """Materials of the training data; empty where none is known."""
        return self.envelope.materials if self.envelope else ()

    def floors(self) -> dict[str, float]:
        """Target to the root mean square up to which a truth counts as zero everywhere."""
        std = self.normalisation.target_std
        return {name: floor_of(std[c]) for name, c in spans(self.target_fields).items()}

    def check_data(self, point_schema: PointSchema | None, data: str) -> None:
        """Refuse a data set of another kind than the one that the model was trained on.

        Args:
            point_schema: Coordinates and fields of the data set; None where it is one of printed parts.
            data: Its name, for the message.

        Raises:
            UsageError: If coordinates, or fields that the model predicts or takes as features, are others.
        """
        expected = self.point_schema
        if expected is None or point_schema is None:
            if expected is not point_schema:
                kinds = ["printed parts" if of is None else f"points of {of.name}" for of in (expected, point_schema)]
                raise UsageError(f"the checkpoint is for {kinds[0]}, and {data} holds {kinds[1]}")
            return
        if (expected.coordinates, expected.unit) != (point_schema.coordinates, point_schema.unit):
            kinds = [f"{', '.join(of.coordinates)} ({of.unit})" for of in (expected, point_schema)]
            raise UsageError(f"the checkpoint is for points with coordinates {kinds[0]}, and {data} has {kinds[1]}")
        available = {spec.name: (spec.components, spec.unit) for spec in point_schema.fields}
        for spec in expected.fields:
            needed = any(target.field == spec.name for target in (*self.target_fields, *self.feature_fields))
            if needed and available.get(spec.name) != (spec.components, spec.unit):
                raise UsageError(
                    f"the checkpoint needs the field {spec.name} ({spec.unit}), and {data} has no such field"
                )


@dataclass(frozen=True)
class Description:
    """Description of a checkpoint, stored in `config.json` with its weights.

    Attributes:
        model: The model.
        usage: How to use it in physical units; None for a bare model.
        origin: Origin of the weights: data, steps, errors, versions.
    """

    model: ModelSpec
    usage: Usage | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


def encode_weights(weights: Mapping[str, Tensor]) -> bytes:
    """Weights as safetensors; tied weights, which share memory, are stored under each of their names."""
    apart = {name: values.detach().cpu().clone().contiguous() for name, values in weights.items()}
    return safetensors.torch.save(apart)


def write_checkpoint(folder: Path, weights: Mapping[str, Tensor], description: Description) -> None:
    """Write a checkpoint; each file is replaced whole, and the configuration names the digest of its weights.

    Args:
        folder: Where to; made when absent.
        weights: Parameters and buffers of the model.
        description: Its description.
    """
    data = encode_weights(weights)
    content = {
        "checkpoint_version": CHECKPOINT_VERSION,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        **_content_of(description),
    }
    write_durably(folder / WEIGHTS_NAME, data)
    write_json(folder / CONFIG_NAME, content)


def _content_of(description: Description) -> dict[str, Any]:
    """A description as JSON.

    For printed parts, keys that only other data sets need are left out, so that earlier versions of this package, which
    don't know these keys, can open the checkpoint.
    """
    content = asdict(description)
    if (usage := description.usage) is not None:
        content["usage"].pop("point_schema")
        content["usage"] |= {} if usage.point_schema is None else {"points": usage.point_schema.as_dict()}
        if not usage.normalisation.point_shift:
            content["usage"]["normalisation"].pop("point_shift")
    return content


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Description]:
    """Read a checkpoint, and check that weights and configuration belong together.

    Raises:
        StoreError: If a file is missing, can't be read, or belongs to another checkpoint.
        SchemaError: If it is of another version.
    """
    try:
        content = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        data = (folder / WEIGHTS_NAME).read_bytes()
        weights = safetensors.torch.load(data)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise StoreError(
            f"no readable checkpoint in {folder} ({error}); it needs {WEIGHTS_NAME} and {CONFIG_NAME}, which training "
            "writes after its first validation"
        ) from error
    version = content.get("checkpoint_version") if isinstance(content, dict) else None
    if version != CHECKPOINT_VERSION:
        raise SchemaError(
            f"the checkpoint {folder} has version {version}, this package reads {CHECKPOINT_VERSION}; train it again, "
            "or use the version of the package that wrote it"
        )
    if content.get("weights_sha256") != hashlib.sha256(data).hexdigest():
        raise StoreError(
            f"{folder}: {WEIGHTS_NAME} isn't the file that {CONFIG_NAME} describes; copy both again from one checkpoint"
        )
    try:
        return weights, _description_of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(f"{folder / CONFIG_NAME} doesn't describe a checkpoint of this package: {error!r}") from error


def _description_of(content: Mapping[str, Any]) -> Description:
    # Checkpoints of earlier versions name the implementation of the mixing among the sizes of the model.
    spec, _ = split_execution(ModelSpec(str(content["model"]["class_path"]), dict(content["model"]["init_args"])))
    usage = content["usage"]
    if usage is None:
        return Description(spec, None, content["origin"])
    normalisation = {name: tuple(map(float, values)) for name, values in usage["normalisation"].items()}
    envelope = usage["envelope"]
    if envelope is not None:
        ranges = {name: Range(**value) for name, value in envelope.items() if isinstance(value, dict)}
        envelope = Envelope(**(envelope | ranges | {"materials": tuple(envelope["materials"])}))
    names = {key: tuple(map(str, usage[key])) for key in ("targets", "features")}
    point_schema = PointSchema.from_dict(usage["points"]) if usage.get("points") else None
    made = Usage(Normalisation(**normalisation), envelope=envelope, point_schema=point_schema, **names)
    return Description(spec, made, content["origin"])
