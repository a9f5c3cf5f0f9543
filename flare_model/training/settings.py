"""Settings of a run: everything that decides its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from flare_model.checkpoints.spec import ModelSpec
from flare_model.data.point_fields import PointField, column_names, did_you_mean, resolve_inputs, resolve_targets
from flare_model.training.recipe import Recipe
from lpbf_data.case.point_schema import PointSchema
from lpbf_data.errors import UsageError

Accelerator = Literal["auto", "cpu", "gpu"]

OPTIONS_ADDED_LATER: Final[Mapping[str, Any]] = {
    "step_graphs": False,
    "max_points": 0,
    "mixer": "auto",
    "steps": 0,
    "target_losses": {},
    "target_weights": {},
    "beta2": 0.999,
    "epsilon": 1e-8,
    "gradient_weight": 0.0,
}
"""Options of the recipe that were added later, with the values that correspond to the behaviour before: with these,
runs that began without the options resume."""

DEFAULT_TARGETS: Final = ["displacement_z"]

_COORDINATES: Final = 3
"""Number of coordinates of a point of a printed part."""

_IN_WORDS: Final = {1: "one coordinate", 2: "two coordinates", 3: "three coordinates"}


@dataclass(frozen=True)
class InitialCheckpoint:
    """The checkpoint that a run starts from.

    Attributes:
        checkpoint: Its folder, or its id on the hub.
        weights_sha256: SHA-256 of its file of weights.
    """

    checkpoint: str
    weights_sha256: str


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        data: The data set.
        model: The model, fitted to targets and features.
        targets: Targets.
        features: Input features.
        recipe: How it is trained.
        seed: Seed of weights and order.
        max_steps: Stop after so many steps, and cut the schedule to them.
        thin_to: Points that a training case is thinned to at random, others in each epoch.
        symmetries: Show each training case mirrored and turned at random, as a square build plate allows.
        validate_every: Epochs between validations.
        validate_steps: Steps between validations instead; None to count epochs.
        judge_training: Number of training cases whose error is computed at each validation, as for validation cases.
        init: The checkpoint that it starts from; None for fresh weights.
        checkpoint_every: Steps between checkpoints.
        num_workers: Processes that read ahead.
        resident: Keep the cases of training and validation on the device.
        accelerator: Where to train.
        point_schema: Coordinates and fields of the data set, where it isn't one of printed parts.
        points_over: Processes that share the points of each case.
    """

    data: str
    model: ModelSpec = field(default_factory=ModelSpec)
    targets: tuple[PointField, ...] = ()
    features: tuple[PointField, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    max_steps: int | None = None
    thin_to: int | None = None
    symmetries: bool = False
    validate_every: int = 1
    validate_steps: int | None = None
    judge_training: int = 0
    init: InitialCheckpoint | None = None
    checkpoint_every: int = 1000
    num_workers: int = 0
    resident: bool = False
    accelerator: Accelerator = "auto"
    point_schema: PointSchema | None = None
    points_over: int = 1

    def __post_init__(self) -> None:
        if not self.targets:
            raise UsageError("--targets names nothing to predict")
        if both := set(column_names(self.targets)) & set(column_names(self.features)):
            raise UsageError(f"{min(both)} can't be both a target and a feature")
        check_ranges(vars(self))
        self._check_points()
        self._check_sharing()
        names = [target.name for target in self.targets]
        for option in ("target_losses", "target_weights"):
            for name in getattr(self.recipe, option):
                if name not in names:
                    raise UsageError(
                        f"--recipe.{option} names {name!r}, which is no target of this run{did_you_mean(name, names)}; "
                        f"its targets are {', '.join(names)}"
                    )

    def _check_points(self) -> None:
        """Refuse options that don't go with the points of the data set."""
        if self.resident and self.thin_to:
            raise UsageError("--resident keeps whole cases on the device; leave out --thin_to")
        if self.point_schema is not None and self.symmetries:
            raise UsageError(
                f"--symmetries are those of a square build plate, and {self.point_schema.name} isn't printed; leave "
                "them out"
            )
        if self.recipe.gradient_weight:
            self._check_gradient()

    def _check_sharing(self) -> None:
        """Refuse options that need all points of a case in one process."""
        if self.points_over == 1:
            return
        for unfit, what in (
            (self.recipe.step_graphs, "--recipe.step_graphs, which can't record exchanges between processes"),
            (
                self.recipe.compile != "off",
                f"--recipe.compile {self.recipe.compile}, which can't compile exchanges between processes",
            ),
            (self.recipe.gradient_weight, "--recipe.gradient_weight, which takes differences between all points"),
        ):
            if unfit:
                raise UsageError(f"--points_over {self.points_over} doesn't go with {what}; leave one out")

    def _check_gradient(self) -> None:
        """Refuse the loss of differences on data that aren't grids, or where no target has the loss that it adds to."""
        option = f"--recipe.gradient_weight {self.recipe.gradient_weight:g}"
        if self.point_schema is None or self.point_schema.grid is None:
            what = "printed parts are" if self.point_schema is None else f"{self.point_schema.name} is"
            raise UsageError(f"{option} takes differences along a grid, and {what} none; leave it out")
        if self.thin_to:
            raise UsageError(f"{option} takes differences along a grid, which --thin_to leaves holes in; leave one out")
        if all(self.recipe.loss_of(target.name) != "relative_l2" for target in self.targets):
            raise UsageError(f"{option} adds to the loss relative_l2, which no target has; leave it out")

    @property
    def identity(self) -> dict[str, Any]:
        """All options that decide the numbers of a run, but for the data set, whose digest is compared instead."""
        return {
            "model": asdict(self.model),
            "targets": [t.name for t in self.targets],
            "features": [f.name for f in self.features],
            "recipe": {
                k: v
                for k, v in asdict(self.recipe).items()
                if k not in OPTIONS_ADDED_LATER or v != OPTIONS_ADDED_LATER[k]
            },
            "seed": self.seed,
            "max_steps": self.max_steps,
            "thin_to": self.thin_to,
            "validate_every": self.validate_every,
            **({"symmetries": True} if self.symmetries else {}),
            **({"validate_steps": self.validate_steps} if self.validate_steps else {}),
            **({"points_over": self.points_over} if self.points_over > 1 else {}),
            **({"init": {"weights_sha256": self.init.weights_sha256}} if self.init else {}),
        }

    @property
    def options(self) -> dict[str, Any]:
        """All options of the run, as the command line takes them, with the data set."""
        return {
            "data": self.data,
            **self.identity,
            "model": self.model.chosen,
            "seed": [self.seed],
            "init": self.init.checkpoint if self.init else None,
            "checkpoint_every": self.checkpoint_every,
            "judge_training": self.judge_training,
            "num_workers": self.num_workers,
            "resident": self.resident,
            "accelerator": self.accelerator,
            "points_over": self.points_over,
        }


def check_ranges(options: Mapping[str, Any]) -> None:
    """Refuse numbers out of range.

    Args:
        options: Attributes of Settings; others are left alone.

    Raises:
        UsageError: For the first that is.
    """
    for name in ("max_steps", "thin_to", "validate_every", "validate_steps", "checkpoint_every", "points_over"):
        value = options[name]
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be 1 or more, not {value}")
    for name in ("num_workers", "judge_training"):
        if options[name] < 0:
            raise UsageError(f"--{name} must not be negative, but is {options[name]}")


def make_settings(
    model: ModelSpec,
    targets: Sequence[str],
    features: Sequence[str],
    *,
    point_schema: PointSchema | None = None,
    **others: Any,
) -> Settings:
    """Settings from names, with the model fitted to them.

    Args:
        model: The model as it was asked for.
        targets: Names of the targets.
        features: Names of the input features.
        point_schema: Coordinates and fields of the data set, where it isn't one of printed parts.
        others: Attributes of Settings.

    Raises:
        UsageError: If a name is unknown, a number out of range, the model can't be found, or its configuration is for
            other data than these.
    """
    target_fields = resolve_targets(targets, "--targets", point_schema)
    feature_fields = resolve_inputs(features, "--features", point_schema)
    coordinates = _COORDINATES if point_schema is None else len(point_schema.coordinates)
    num_inputs, predicted = coordinates + sum(f.width for f in feature_fields), sum(t.width for t in target_fields)
    _check_numbers(model.stated_numbers(), coordinates, num_inputs, predicted)
    fitted = model.fitted(num_inputs, predicted)
    return Settings(model=fitted, targets=target_fields, features=feature_fields, point_schema=point_schema, **others)


def _check_numbers(stated: Mapping[str, int], coordinates: int, num_inputs: int, predicted: int) -> None:
    """Refuse a configuration whose numbers of inputs and outputs aren't those of the data set and targets."""
    if stated.get("in_dim", num_inputs) != num_inputs:
        raise UsageError(
            f"the model is configured for {stated['in_dim']} numbers a point (in_dim), but the data set's points come "
            f"with {num_inputs}: {_IN_WORDS.get(coordinates, f'{coordinates} coordinates')} and "
            f"{num_inputs - coordinates} components of --features. Such a configuration is for data of another kind; "
            "choose another one, or leave in_dim out of it"
        )
    if stated.get("out_dim", predicted) != predicted:
        raise UsageError(
            f"the model is configured to predict {stated['out_dim']} numbers a point (out_dim), but --targets has "
            f"{predicted}; name other targets, or leave out_dim out of the configuration"
        )


def changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Which options differ, as `name: before → now`."""
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"--{prefix}{name}: {old} → {new}")
    return found
