"""A model together with its normalisation: points in mm in, predictions in physical units out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flare_model.checkpoints.files import Description, Usage
from flare_model.checkpoints.hub import Pretrained
from flare_model.checkpoints.packaged_model import is_packaged, packaged_checkpoint
from flare_model.checkpoints.restore_model import restore_model
from flare_model.checkpoints.spec import ModelSpec, spec_of
from flare_model.data.non_finite import describe_non_finite
from lpbf_data.errors import SchemaError, UsageError


class Surrogate(nn.Module, Pretrained):
    """A model with all that is needed to use it in physical units.

    Args:
        model: Any model that keeps to the [contract][flare_model.models.contract].
        usage: Its normalisation, targets and features.
        spec: Its class and arguments; found by itself for the models of this package.
        origin: Origin of the weights, which checkpoints keep: data set, steps, errors, versions.
    """

    point_scale: Tensor
    point_shift: Tensor
    target_mean: Tensor
    target_std: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self, model: nn.Module, usage: Usage, spec: ModelSpec | None = None, origin: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.usage = usage
        self.spec = spec or spec_of(model)
        self.origin = dict(origin or {})
        for name, values in vars(usage.normalisation).items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(
        self, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Predict the targets in physical units.

        NumPy arrays, and tensors on any device, are taken; they are copied to the model's device.

        Args:
            points: Points in mm, [ΣN, 3], of any type; [B, N, 3] where the model takes padded meshes. For a data set
                that isn't one of printed parts, [ΣN, d] in the unit of its coordinates.
            features: Features in their own units, [ΣN, F]; None where the model takes none.
            offsets: First point of each mesh and the end of the last, [B + 1]; None for a single mesh.
            mask: True where a point exists, [B, N]; for padded meshes.

        Returns:
            [ΣN, T] or [B, N, T], float32, on the model's device.

        Raises:
            UsageError: If points have another number of coordinates than in training, a forward-mode derivative is
                asked for of attention that has none, or a coordinate or feature isn't finite. The last is not checked
                under `torch.func.vmap`, where values can't be read, nor in training: there batches were checked on the
                host, and a check on the device would have to wait for it.
        """
        exists = None if mask is None else torch.as_tensor(mask)
        scaled = self.scaled_points(self._taken(points, "points", exists))
        known = None
        if features is not None:
            known = (self._taken(features, "features", exists) - self.feature_mean) / self.feature_std
        padded = {} if exists is None else {"mask": exists.to(scaled.device)}
        try:
            normalised: Tensor = self.model(scaled, known, offsets, **padded)
        except NotImplementedError as error:
            if "forward AD" not in str(error):
                raise
            raise UsageError(
                "PyTorch's attention has no forward-mode derivative (jvp, jacfwd, hessian): take jacrev or grad, or "
                'compute FLARE by explicit matrices: flare_model.layers.mixer.mix_by(surrogate.model, "reference")'
            ) from error
        return normalised.float() * self.target_std + self.target_mean

    def scaled_points(self, points: Tensor) -> Tensor:
        """Points scaled as the model takes them, [..., d], from points in their unit on the model's device.

        Raises:
            UsageError: If they have another number of coordinates than those that it was trained on.
        """
        if points.shape[-1] != len(self.point_scale):
            raise UsageError(f"the model takes points of {len(self.point_scale)} coordinates, not {points.shape[-1]}")
        return (points - self.point_shift if len(self.point_shift) else points) / self.point_scale

    def need_parts(self, what: str) -> None:
        """Refuse a model that wasn't trained on printed parts.

        Args:
            what: What is for printed parts alone, as the subject of a sentence.

        Raises:
            UsageError: If it was trained on points of another kind.
        """
        if (point_schema := self.usage.point_schema) is not None:
            raise UsageError(
                f"the checkpoint was trained on points of {point_schema.name}; {what} is for printed parts alone"
            )

    def _taken(self, values: Any, name: str, exists: Tensor | None) -> Tensor:
        """Values as a tensor of the model's type on its device; refused where they aren't finite."""
        given = torch.as_tensor(values)
        if not self.training and _can_be_read(given) and not _is_finite(given):
            where = None if exists is None else exists.numpy(force=True)
            if said := describe_non_finite(_numbers(given), where):
                raise UsageError(f"the {name} given to the model aren't all finite numbers: {said}; leave those out")
        return given.to(self.point_scale)

    def description(self) -> Description:
        """Description that a checkpoint stores."""
        return Description(self.spec, self.usage, self.origin)

    def stored_weights(self) -> dict[str, Tensor]:
        """Weights of the bare model; the rest lies in the description."""
        return dict(self.model.state_dict())

    @classmethod
    def restored(cls, weights: dict[str, Tensor], description: Description, *, folder: Path, trust: str | None) -> Self:
        """The surrogate of a checkpoint."""
        if description.usage is None:
            name = description.model.class_path.rpartition(".")[2]
            raise SchemaError(
                f"the checkpoint {folder} holds a bare model without normalisation; open it with {name}.from_pretrained"
            )
        model = restore_model(weights, description.model, folder=folder, trust=trust)
        _check_fit(description.model, description.usage, folder)
        return cls(model, description.usage, description.model, description.origin).eval()


def _can_be_read(values: Tensor) -> bool:
    """Whether values can be read: not of tensors without memory, nor while a graph is traced or recorded."""
    if values.is_meta or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return not (values.is_cuda and torch.cuda.is_current_stream_capturing())


def _is_finite(values: Tensor) -> bool:
    """Whether all numbers are finite; assumed under `torch.func.vmap`, where values can't be read."""
    try:
        return bool(values.isfinite().all())
    except RuntimeError as error:
        if "vmap" in str(error):
            return True
        raise


def _numbers(values: Tensor) -> NDArray[np.float64]:
    """The numbers of a tensor, read one by one inside `torch.func.grad`, where it can't be read as a whole."""
    try:
        return values.double().numpy(force=True)
    except RuntimeError:
        return np.array([number.item() for number in values.reshape(-1)], np.float64).reshape(values.shape)


def _check_fit(spec: ModelSpec, usage: Usage, folder: Path) -> None:
    """Refuse a checkpoint whose normalisation or model has other numbers of targets or features than it names."""
    num_targets, num_features = (sum(t.width for t in named) for named in (usage.target_fields, usage.feature_fields))
    norm, coordinates = usage.normalisation, 3 if usage.point_schema is None else len(usage.point_schema.coordinates)
    wanted = {
        "point_scale": coordinates,
        "target_mean": num_targets,
        "target_std": num_targets,
        "feature_mean": num_features,
    }
    wanted |= {"point_shift": coordinates} if norm.point_shift else {}
    for name, count in (wanted | {"feature_std": num_features}).items():
        if len(getattr(norm, name)) != count:
            raise SchemaError(
                f"the checkpoint {folder} doesn't fit together: {name} has {len(getattr(norm, name))} numbers where "
                f"its targets and features have {count}; copy it again, or train it again"
            )
    if _contradict(spec.init_args, spec.fitted(coordinates + num_features, num_targets).init_args):
        raise SchemaError(
            f"the checkpoint {folder} doesn't fit together: its model is for other numbers of targets or features than "
            f"{', '.join((*usage.targets, *usage.features))}; copy it again, or train it again"
        )


def _contradict(stated: Mapping[str, Any], fitting: Mapping[str, Any]) -> bool:
    """Whether stated arguments differ from fitting ones; an argument that isn't stated has the model's default."""
    return any(
        _contradict(value, fitting[name]) if isinstance(value, Mapping) else value != fitting[name]
        for name, value in stated.items()
    )


def results_folder(checkpoint: str, kind: str) -> Path:
    """Default folder of results about a checkpoint: within the checkpoint's folder.

    For a checkpoint from the hub, and for the model that comes with the package, it is in the working directory.

    >>> results_folder("someone/model", "evaluation").as_posix()
    'someone--model/evaluation'
    """
    if is_packaged(checkpoint):
        return Path("own_model") / kind
    home = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint.replace("/", "--"))
    return home / kind


def from_pretrained(name: str | Path | None = None, *, trust: str | None = None, **download: Any) -> Surrogate:
    """A trained surrogate: the one that comes with the package, or one from a folder or from the Hugging Face hub.

    Args:
        name: Folder of a run or a checkpoint, or an id on the hub; the package's own model when None.
        trust: Class path of a model outside of this package that may be imported.
        download: Options of `huggingface_hub.snapshot_download`.

    Returns:
        The surrogate on the CPU, in evaluation mode.

    Raises:
        LpbfError: As `Pretrained.from_pretrained` says.
    """
    return Surrogate.from_pretrained(packaged_checkpoint() if name is None else name, trust=trust, **download)
