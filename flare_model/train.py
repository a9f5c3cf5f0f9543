"""`python -m flare_model.train --data lpbf/ --out runs/first`: train FLARE, or any other model, on a data set.

The loop itself is [trainer][flare_model.training.trainer]. The same command given again resumes the run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flare_model.checkpoints.spec import ModelSpec, add_model_options, model_words
from flare_model.configs import config_names, spell_out_config
from flare_model.judging.scores import mean_and_deviation
from flare_model.training.backward_compatibility import upgraded_arguments, upgraded_configuration
from flare_model.training.recipe import Recipe, choose_precision
from flare_model.training.settings import DEFAULT_TARGETS, Accelerator, Settings, changes, check_ranges, make_settings
from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks, say
from lpbf_data.durable import write_durably, write_json
from lpbf_data.errors import SchemaError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from flare_model.data.point_fields import PointField
    from flare_model.data.splits import Split
    from flare_model.training.devices import Fabric, Precision
    from lpbf_data.case.point_schema import PointSchema

OPTIONS_NAME: Final = "config.yaml"
RUN_NAME: Final = "run.json"
RESULT_NAME: Final = "result.json"


def train(
    data: str,
    *,
    out: str = "runs/first",
    model: dict[str, Any] | None = None,
    targets: list[str] = ["displacement_z"],  # noqa: B006 (read only; shown as the default in the help)
    features: list[str] = [],  # noqa: B006
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    seed: list[int] = [0],  # noqa: B006
    max_steps: int | None = None,
    thin_to: int | None = None,
    symmetries: bool = False,
    validate_every: int = 1,
    validate_steps: int | None = None,
    judge_training: int = 0,
    init: str | None = None,
    checkpoint_every: int = 1000,
    num_workers: int = 0,
    resident: bool = False,
    accelerator: Accelerator = "auto",
    points_over: int = 1,
) -> int:
    """Train a model to predict fields of simulated parts.

    Args:
        data: The data set: a folder, or a URL that fsspec knows. One that isn't of printed parts states itself the
            default targets and features.
        out: Folder of the run; given again, the run resumes.
        model: Class path and init args of the model; FLARE by default.
        targets: Fields to predict, or components such as displacement_z; each counts alike in the loss.
        features: Input features in addition to coordinates: fields, or features of the shape (geometry: all of them).
        recipe: How to train.
        seed: Seeds of first weights and of the order of cases; with several, one run for each, in a folder of its own.
        max_steps: Stop after so many steps; the schedule is cut to them.
        thin_to: Thin training cases to so many points, drawn at random in each epoch.
        symmetries: Show training cases mirrored along x and y and with both exchanged, drawn at random in each epoch;
            for targets that follow, such as displacements, where neither direction is preferred.
        validate_every: Epochs between validations.
        validate_steps: Steps between validations, in place of epochs.
        judge_training: Number of training cases whose error is computed at each validation too, so that the curves show
            both errors.
        init: Checkpoint whose weights and normalisation the run starts from: a folder, an id on the hub, or "packaged",
            the model that comes with the package. Model, targets and features are those of the checkpoint, and must not
            be asked for otherwise.
        checkpoint_every: Steps between checkpoints to resume from.
        num_workers: Number of processes that read batches ahead.
        resident: Keep the cases of training and validation in the device's memory, and make batches there: the same
            batches, several times as fast where a GPU waits for them. It takes 4 bytes for each number of each point.
        accelerator: Where to train.
        points_over: Processes that share the points of each case, so that cases fit which are too large for one GPU:
            `torchrun --nproc-per-node 8 -m flare_model.train --points_over 4 …` trains on two batches at a time, each
            over four GPUs. The steps are those of one process on each batch, to rounding. For FLARE alone, as it is or
            with any of its options; their number must divide that of all processes.

    Returns:
        Exit status.
    """
    options = {
        "data": data,
        "recipe": recipe,
        "max_steps": max_steps,
        "thin_to": thin_to,
        "symmetries": symmetries,
        "validate_every": validate_every,
        "validate_steps": validate_steps,
        "judge_training": judge_training,
        "checkpoint_every": checkpoint_every,
        "num_workers": num_workers,
        "resident": resident,
        "accelerator": accelerator,
        "points_over": points_over,
    }
    check_ranges(options)
    from lpbf_data.reading.catalog import read_points

    requested, initial, point_schema = ModelSpec(**(model or {})), None, read_points(data)
    if init is not None:
        from flare_model.training.initial_weights import adopt_checkpoint

        initial, requested, targets, features = adopt_checkpoint(init, requested, targets, features, point_schema)
    elif point_schema is not None:
        targets, features = _default_fields(point_schema, targets, features)
    settings = make_settings(requested, targets, features, point_schema=point_schema, init=initial, **options)
    folders = _folders(Path(out), seed)
    splits = open_splits(settings)
    settings, fabric, precision = open_device(settings)
    fresh = dict(precision.state_dict())
    results = {}
    for s, folder in folders.items():
        precision.load_state_dict(fresh)
        results[s] = run_once(replace(settings, seed=s), fabric, precision, folder, splits)
    if fabric.is_global_zero:
        _report(results, folders, Path(out), open_console())
    return 0


def _default_fields(point_schema: PointSchema, targets: list[str], features: list[str]) -> tuple[list[str], list[str]]:
    """Targets and features that a data set states as defaults, unless others were asked for."""
    requested = targets != DEFAULT_TARGETS or DEFAULT_TARGETS[0] in point_schema.field_columns
    return targets if requested else list(point_schema.targets), features or list(point_schema.inputs)


def open_device(settings: Settings) -> tuple[Settings, Fabric, Precision]:
    """Join the processes of a run, and replace the precision auto by the one that this device takes.

    Returns:
        The settings with that precision; the fabric, launched, and the precision of its arithmetic.

    Raises:
        UsageError: As `open_fabric` does.
    """
    from flare_model.training.devices import open_fabric

    fabric, precision = open_fabric(settings.recipe, settings.accelerator)
    taken = choose_precision(settings.recipe.precision, on_gpu=fabric.device.type == "cuda")
    return replace(settings, recipe=replace(settings.recipe, precision=taken)), fabric, precision


def _folders(out: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """Folder of each seed's run: `out` itself for a single seed, else `out/seed-<seed>`.

    Raises:
        UsageError: If the seeds are none or not different, or several would lie beside a single run.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"--seed must be one or more different numbers, not {seeds}")
    if len(seeds) == 1:
        return {seeds[0]: out}
    if (out / RUN_NAME).exists():
        raise UsageError(f"{out} holds a single run; give another --out for several seeds")
    return {seed: out / f"seed-{seed}" for seed in seeds}


def open_splits(settings: Settings) -> dict[str, Split]:
    """The splits that training reads; never the test split.

    Raises:
        UsageError: If there is no train split, all targets are constant, or one has no relative error in any case.
    """
    from flare_model.data.splits import Split, has_split

    needed = (*settings.targets, *settings.features)
    splits = {"train": Split(settings.data, "train", needed)}
    if has_split(settings.data, "validation"):
        splits["validation"] = Split(settings.data, "validation", needed)
    _check_varies(settings.targets, splits["train"])
    for target in settings.targets:
        zero = splits["train"].zero_cases(target)
        if zero and settings.recipe.loss_of(target.name) == "relative_l2":
            _say_zero(target.name, zero, len(splits["train"]))
    return splits


def _check_varies(targets: Sequence[PointField], train: Split) -> None:
    """Refuse a run whose targets are all constant; warn where some of them are."""
    columns = [column for target in targets for column in target.columns]
    found = {column: train.statistics[column] for column in columns}
    constant = [column for column, seen in found.items() if seen.minimum == seen.maximum]
    if not constant:
        return
    values = ", ".join(f"{column} is {found[column].minimum:g}" for column in constant)
    where = f"{values} at every point of every training case"
    if len(constant) == len(columns):
        raise UsageError(f"{where}, so that there is nothing to learn; name other --targets")
    say(f"warning: {where}, so that there is nothing to learn of it; leave it out of --targets")


def _say_zero(target: str, zero: Sequence[str], cases: int) -> None:
    """Warn of cases without a relative error, which add nothing to the loss; refuse a split that has no other case."""
    advice = "leave them out of the data set, or train with --recipe.loss mse"
    where = f"{target} is zero everywhere in {len(zero)} of {cases} training cases, {zero[0]} among them"
    if len(zero) == cases:
        raise UsageError(f"{where}; such cases have no relative error: {advice}")
    say(f"warning: {where}; without a relative error they add nothing to the loss: {advice}")


def run_once(
    settings: Settings, fabric: Fabric, precision: Precision, folder: Path, splits: dict[str, Split]
) -> dict[str, Any]:
    """One run with one seed, from its latest checkpoint if there is one.

    Returns:
        Steps, and validation errors of the checkpoint that was chosen; None for a target without an error.

    Raises:
        UsageError: If the folder holds a run of another configuration or data set, or something else, or another
            process trains into it.
    """
    from flare_model.training.provenance import provenance
    from flare_model.training.trainer import Trainer

    about = provenance(splits, fabric.device, settings.model)
    _check_same_run(settings, about, folder)
    result = folder / RESULT_NAME
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        if fabric.is_global_zero:
            say(f"{folder} ended at step {found['steps']:,}; nothing is left to train")
        return found
    fabric.barrier()  # No process writes before all have checked.
    trainer = Trainer(settings, fabric, precision, folder, splits)  # It refuses a model before anything is written.
    with _locked(settings, fabric, folder, about):
        trainer.fit()
        best = trainer.best
        found = {
            "seed": settings.seed,
            "steps": trainer.step,
            "best_step": best.step,
            "validation": best.errors,
        }
        if fabric.is_global_zero:
            write_json(result, found)
    return found


@contextmanager
def _locked(settings: Settings, fabric: Fabric, folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Lock the folder of the run for all its processes, and write the run's configuration and provenance into it.

    Raises:
        UsageError: If another process trains into it, or began there meanwhile.
        OSError: If it can't be locked or written to.
        FirstProcessError: In the other processes of the run, with the same sentence.
    """
    from flare_model.training.devices import on_first_process
    from flare_model.training.run_lock import locked_run

    with ExitStack() as stack:

        def begin() -> None:
            remarks = stack.enter_context(locked_run(folder))
            _check_same_run(settings, about, folder)
            if remarks:
                print_remarks(remarks, open_console(stderr=True))
                about["remarks"] = [remark.as_dict() for remark in remarks]
            _write_start(folder, settings, about)

        on_first_process(fabric, begin)
        yield


def _write_start(folder: Path, settings: Settings, about: dict[str, Any]) -> None:
    """Write the run's configuration and provenance; where it resumes, add what has changed: versions, code, machine."""
    import yaml

    path = folder / RUN_NAME
    if not path.exists():
        write_json(path, {"configuration": settings.identity, **about})
        write_durably(folder / OPTIONS_NAME, yaml.safe_dump(settings.options, sort_keys=False).encode())
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    latest: dict[str, Any] = content
    for again in content.get("resumed", []):
        latest = {**latest, **again}
    if changed := {name: value for name, value in about.items() if latest.get(name) != value}:
        content.setdefault("resumed", []).append(changed)
        write_json(path, content)


def _check_same_run(settings: Settings, about: dict[str, Any], folder: Path) -> None:
    path = folder / RUN_NAME
    if not path.exists():
        if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
            kind = "several runs, one for each seed" if [*folder.glob("seed-*")] else "something else than a run"
            raise UsageError(f"{folder} holds {kind}; give another --out")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        configuration, data = upgraded_configuration(before["configuration"]), before["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"{path} doesn't describe a run ({error!r}); give another --out") from error
    now = upgraded_configuration(json.loads(json.dumps(settings.identity)))
    if found := changes(configuration, now):
        raise UsageError(
            f"{folder} holds a run with another configuration ({'; '.join(found)}); go on with the same one, or give "
            "another --out"
        )
    if data != json.loads(json.dumps(about["data"])):
        raise UsageError(f"{folder} holds a run on another data set than {settings.data} is now; give another --out")


def _report(results: dict[int, dict[str, Any]], folders: dict[int, Path], out: Path, console: Console) -> None:
    """Print the validation errors of the runs; mean and standard deviation too where there are several seeds."""
    for seed, result in results.items():
        words = [f"{name} {'–' if e is None else format(e, '.4f')}" for name, e in result["validation"].items()]
        errors = ", ".join(words) or "no validation split"
        console.print(f"seed {seed}: validation relative L2: {errors} (step {result['best_step']}); {folders[seed]}")
    if len(results) == 1:
        return
    spread: dict[str, dict[str, float] | None] = {}
    for name in next(iter(results.values()))["validation"]:
        both = spread[name] = mean_and_deviation([result["validation"][name] for result in results.values()])
        if both is not None:
            console.print(f"{name}: {both['mean']:.4f} ± {both['standard_deviation']:.4f} over {len(results)} seeds")
    write_json(out / "seeds.json", {"validation": spread, "seeds": list(results.values())})


def main() -> None:
    """Entry point of `lpbf-train`."""
    words = model_words(upgraded_arguments(spell_out_config(sys.argv[1:])))
    run(train, "python -m flare_model.train", words, plain={"model": add_model_options}, configurations=config_names())


if __name__ == "__main__":
    main()
