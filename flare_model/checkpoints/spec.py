"""Which model: a class by its import path and the arguments of its constructor, as `--model` and checkpoints say it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import yaml

from flare_model.sizes import (
    FlareConfig,
    FlarePlusPlusConfig,
    GNOTConfig,
    GridTransolverConfig,
    LNOConfig,
    PerceiverConfig,
    TransformerConfig,
    TransolverConfig,
)
from lpbf_data.errors import LpbfError, UsageError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from torch import nn

SHIPPED: Final[Mapping[str, type[Any]]] = {
    "Flare": FlareConfig,
    "FlarePlusPlus": FlarePlusPlusConfig,
    "GNOT": GNOTConfig,
    "GridTransolver": GridTransolverConfig,
    "LNO": LNOConfig,
    "PerceiverIO": PerceiverConfig,
    "Transformer": TransformerConfig,
    "Transolver": TransolverConfig,
}
"""Models of this package, with what each is made from; a checkpoint may name them and no other, unless the caller
trusts it."""

_IMPORT_PATHS: Final = {
    "flare_model.model.Flare": "Flare",
    "flare_model.transformer.Transformer": "Transformer",
    "flare_model.transolver.Transolver": "Transolver",
    "flare_model.models.flare.Flare": "Flare",
    "flare_model.models.flare_plus_plus.FlarePlusPlus": "FlarePlusPlus",
    "flare_model.models.gnot.GNOT": "GNOT",
    "flare_model.models.grid_transolver.GridTransolver": "GridTransolver",
    "flare_model.models.lno.LNO": "LNO",
    "flare_model.models.perceiver.PerceiverIO": "PerceiverIO",
    "flare_model.models.transformer.Transformer": "Transformer",
    "flare_model.models.transolver.Transolver": "Transolver",
}
"""Their import paths, as runs and checkpoints may name them; the first three are those of earlier versions."""

_OPTIONS_ADDED_LATER: Final[Mapping[str, tuple[str, ...]]] = {
    "Flare": ("separate_decoding", "scaled_scores", "pointwise", "mlp_ratio", "latent_layers"),
}
"""Options of models that were added later. At their defaults they are left out of what is written, so that runs that
began without them resume and earlier versions open what this one writes."""

_DIMENSIONS: Final = ("in_dim", "out_dim")
_EXECUTION: Final = "mixer"
"""Implementation of the mixing: an option of the recipe, which earlier versions named among the sizes of a model."""


@dataclass(frozen=True)
class ModelSpec:
    """A model before it is made.

    Attributes:
        class_path: Import path of its class; the models of this package go by their name alone as well.
        init_args: Arguments of its constructor; a dataclass among them as a dictionary.
    """

    class_path: str = "flare_model.Flare"
    init_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = _IMPORT_PATHS.get(self.class_path, self.class_path)
        name = name.removeprefix("flare_model.")
        if name in SHIPPED:
            object.__setattr__(self, "class_path", f"flare_model.{name}")
            object.__setattr__(self, "init_args", _without_added_later(name, self.init_args))

    @property
    def is_shipped(self) -> bool:
        """Whether the class is one of this package."""
        return self.class_path in {f"flare_model.{name}" for name in SHIPPED}

    def fitted(self, in_dim: int, out_dim: int) -> ModelSpec:
        """The same model with the data's numbers of inputs and outputs.

        Where the constructor, or a dataclass among its arguments, takes `in_dim` or `out_dim`, they are set.

        Args:
            in_dim: Number of coordinates and features of a point.
            out_dim: Number of values to predict at a point.
        """
        numbers = dict(zip(_DIMENSIONS, (in_dim, out_dim), strict=True))
        arguments = dict(self.init_args)
        for name, annotation in self._parameters().items():
            if name in numbers:
                arguments[name] = numbers[name]
            elif dataclasses.is_dataclass(annotation):
                known = {f.name for f in dataclasses.fields(annotation)}
                arguments[name] = dict(arguments.get(name, {})) | {k: v for k, v in numbers.items() if k in known}
        return ModelSpec(self.class_path, arguments)

    def stated_numbers(self) -> dict[str, int]:
        """`in_dim` and `out_dim`, as far as the arguments state them.

        A number that is the default of the model counts as not stated: command lines spell out every default.
        """
        stated: dict[str, int] = {}
        for name, annotation in self._parameters().items():
            given = self.init_args.get(name)
            if name in _DIMENSIONS:
                stated |= {name: given} if given not in (None, self._default(name)) else {}
            elif dataclasses.is_dataclass(annotation) and isinstance(given, Mapping):
                defaults = {f.name: f.default for f in dataclasses.fields(annotation) if f.name in _DIMENSIONS}
                stated |= {n: given[n] for n, default in defaults.items() if given.get(n, default) != default}
        return stated

    def _default(self, name: str) -> Any:
        return inspect.signature(import_class(self.class_path).__init__).parameters[name].default

    def _parameters(self) -> dict[str, Any]:
        """Parameters of the constructor; known for the models of this package before torch is imported."""
        if self.is_shipped:
            return {"config": SHIPPED[self.class_path.rpartition(".")[2]]}
        return _parameters(import_class(self.class_path))

    @property
    def chosen(self) -> dict[str, Any]:
        """The given arguments without `in_dim` and `out_dim`, which follow from the data set and the targets."""
        return {"class_path": self.class_path, "init_args": _without_dimensions(self.init_args)}

    def spelled_out(self) -> dict[str, Any]:
        """All arguments, defaults included, without `in_dim` and `out_dim`, which follow from data set and targets."""
        spelled = self._defaults()
        for name, value in self.init_args.items():
            below = spelled.get(name)
            nested = isinstance(below, Mapping) and isinstance(value, Mapping)
            spelled[name] = {**below, **value} if nested else value  # type: ignore[dict-item]
        return _without_dimensions(spelled)

    def differing(self, other: ModelSpec) -> list[str]:
        """Arguments that are no defaults and differ from another model's of the same class, as texts "other → own"."""
        mine, theirs, defaults = (_flat(a) for a in (self.spelled_out(), other.spelled_out(), self._defaults()))
        stated = {name: value for name, value in mine.items() if name not in defaults or value != defaults[name]}
        return [f"--model.{n}: {theirs.get(n)} → {value}" for n, value in stated.items() if theirs.get(n) != value]

    def _defaults(self) -> dict[str, Any]:
        """Defaults of the constructor's arguments; a dataclass among them as a dictionary."""
        if self.is_shipped:
            return {"config": dataclasses.asdict(SHIPPED[self.class_path.rpartition(".")[2]]())}
        parameters = list(inspect.signature(import_class(self.class_path).__init__).parameters.values())[1:]
        found = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        return {n: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for n, v in found.items()}  # type: ignore[arg-type]

    def build(self) -> nn.Module:
        """Make the model, with fresh weights.

        Raises:
            UsageError: If the class can't be imported, is no torch module, or doesn't take these arguments.
        """
        model_class = import_class(self.class_path)
        annotations = _parameters(model_class)
        try:
            arguments = {name: _instance(annotations.get(name), value) for name, value in self.init_args.items()}
            return model_class(**arguments)
        except LpbfError:
            raise
        except Exception as error:  # Whatever a foreign constructor raises.
            given = dict(self.init_args)
            said = str(error) if isinstance(error, TypeError | ValueError) else f"{type(error).__name__} {error}"
            raise UsageError(f"the model {self.class_path} can't be made from {given}: {said}") from error


def _without_dimensions(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_dimensions(value) if isinstance(value, Mapping) else value
        for name, value in arguments.items()
        if name not in _DIMENSIONS
    }


def _without_added_later(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of a model of this package without options that came later and are at their defaults."""
    config = arguments.get("config")
    if name not in _OPTIONS_ADDED_LATER or not isinstance(config, Mapping):
        return arguments
    unsaid = {f.name: f.default for f in dataclasses.fields(SHIPPED[name]) if f.name in _OPTIONS_ADDED_LATER[name]}
    return {**arguments, "config": {k: v for k, v in config.items() if k not in unsaid or v != unsaid[k]}}


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested arguments by dotted names."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _instance(annotation: Any, value: Any) -> Any:
    """A dataclass from its dictionary; anything else as it is."""
    if inspect.isclass(annotation) and dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        return annotation(**value)
    return value


def spec_of(model: nn.Module) -> ModelSpec:
    """The specification of a model of this package.

    Raises:
        UsageError: If it is none; the specification must be given then.
    """
    spec = ModelSpec(type(model).__name__)
    if not spec.is_shipped:
        raise UsageError(f"{type(model).__name__} is no model of this package; give its specification, a ModelSpec")
    return ModelSpec(spec.class_path, {"config": dataclasses.asdict(model.config)})  # type: ignore[call-overload]


def split_execution(spec: ModelSpec) -> tuple[ModelSpec, str | None]:
    """Separate the implementation of a model's mixing, which earlier versions stored among its sizes.

    Args:
        spec: As an earlier version may have written it.

    Returns:
        The model alone, and the name of its mixer; None where none was named.
    """
    if not spec.is_shipped:
        return spec, None
    named: dict[str, Any] = {}

    def apart(arguments: Mapping[str, Any]) -> dict[str, Any]:
        remaining = dict(arguments)
        named.update({_EXECUTION: remaining.pop(_EXECUTION)} if _EXECUTION in remaining else {})
        return remaining

    arguments = apart(spec.init_args)
    if isinstance(config := arguments.get("config"), Mapping):
        arguments["config"] = apart(config)
    mixer = named.get(_EXECUTION)
    return ModelSpec(spec.class_path, arguments), None if mixer is None else str(mixer)


def import_class(class_path: str) -> type[nn.Module]:
    """The class that an import path names.

    Raises:
        UsageError: If there is none, or it is no torch module.
    """
    from torch import nn

    module_name, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except SyntaxError as error:
        raise UsageError(f"the module of the model {class_path} can't be imported: {error}") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"there is no model {class_path!r} ({error}); give the import path of a class, such as my_package.MyModel, "
            f"or one of {', '.join(SHIPPED)}"
        ) from error
    except Exception as error:  # Whatever a foreign module raises while it is imported.
        raise UsageError(
            f"the module of the model {class_path} can't be imported: {type(error).__name__}: {error}"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UsageError(
            f"{class_path} is no class of torch modules; see flare_model.models.contract for what a model must do"
        )
    return found


def _parameters(model_class: type[nn.Module]) -> dict[str, Any]:
    """Parameters of a constructor with their annotations, as far as these can be resolved."""
    try:
        hints = get_type_hints(model_class.__init__)
    except (NameError, TypeError):
        hints = {}
    names = list(inspect.signature(model_class.__init__).parameters)[1:]
    return {name: hints.get(name) for name in names}


def model_words(words: Sequence[str]) -> list[str]:
    """Spell out the short forms of `--model`.

    >>> model_words(["--model", "Transformer", "--model.config.num_blocks=4"])
    ['--model.class_path', 'Transformer', '--model.init_args.config.num_blocks=4']
    """

    def spelled(word: str) -> str:
        name, equals, value = word.partition("=")
        if name == "--model":
            name = "--model.class_path"
        elif name.startswith("--model.") and not name.startswith(("--model.class_path", "--model.init_args")):
            name = f"--model.init_args.{name.removeprefix('--model.')}"
        return f"{name}{equals}{value}"

    return [spelled(word) for word in words]


def add_model_options(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Add `--model.class_path`, and `--model.init_args` for the class that the command line or its YAML file names."""
    spec = ModelSpec(_named_class(words) or ModelSpec().class_path)
    parser.add_argument(
        "--model.class_path",
        type=str,
        default=spec.class_path,
        help=f"{', '.join(SHIPPED)}, or the import path of any model that keeps to flare_model.models.contract.",
    )
    if spec.is_shipped:
        parser.add_function_arguments(_constructor(spec.class_path.rpartition(".")[2]), "model.init_args")
        return
    parser.add_class_arguments(
        import_class(spec.class_path), "model.init_args", skip=set(_DIMENSIONS), instantiate=False
    )


def _constructor(name: str) -> Callable[..., None]:
    """The signature of a model of this package, for its options: to import the class takes a second or more."""
    config_class = SHIPPED[name]

    def constructor(config: Any = config_class()) -> None: ...  # noqa: B008 (frozen)

    constructor.__annotations__ = {"config": config_class, "return": None}
    constructor.__doc__ = f"Arguments of {name}.\n\nArgs:\n    config: Sizes of the model.\n"
    return constructor


def _named_class(words: Sequence[str]) -> str | None:
    """The last class path on a command line; a YAML file counts where it is named."""
    named = None
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        if not equals and position + 1 < len(words):
            value = words[position + 1]
        if option == "--model.class_path":
            named = value
        elif option == "--config":
            named = _class_in_file(value) or named
    return named


def _class_in_file(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
        return str(content["model"]["class_path"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None  # The parser says more precisely why a file can't be read.
