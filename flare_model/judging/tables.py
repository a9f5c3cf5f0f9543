"""The output of an evaluation on the screen: tables of at most 80 columns, and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from flare_model.data.point_fields import resolve_target
from flare_model.judging.scores import mean_and_deviation, unit_of_errors
from flare_model.judging.stored_evaluation import PREDICTOR_NAMES, as_good_as_the_model
from flare_model.table_formats import format_number, screen_table
from lpbf_data.console import open_console

_SPREAD: Final = ("relative_l2", "published", "mean_error")

Summary = Mapping[str, Any]
"""Content of `summary.json`."""


def show(summary: Summary, title: str, console: Console) -> None:
    """Print a summary as a table a target, with notes below.

    Args:
        summary: Content of `summary.json`.
        title: Model, data set and split.
        console: Where to print; a table wider than it is folded by the terminal, not cut.
    """
    for target, by_predictor in summary["scores"].items():
        console.print(f"{target}: {title}")
        table = _table(_unit(target, summary), by_predictor)
        width = console.measure(table, options=console.options.update_width(1000)).maximum
        open_console(file=console.file, width=max(width, console.width)).print(table)
        if better := " and ".join(as_good_as_the_model(by_predictor)):
            console.print(
                f"note: at {target} the model is no better than {better}: train it longer, or on cases like these"
            )
        if missing := by_predictor["model"]["without_truth"]:
            console.print(
                f"note: {_count(missing, 'case')} {'has' if missing == 1 else 'have'} no relative error: {target} is "
                "zero everywhere in a case like that"
            )
    if not summary["trained_on_this_data"]:
        console.print(
            "note: by its digest, this isn't the data set that the model was trained on: "
            "its cases may have been trained on"
        )
    if len(summary["scores"]) > 1 and (whole := summary.get("over_all", {}).get("model")):
        words = f"{format_number(whole['relative_l2'])}, median {format_number(whole['relative_l2_median'])}"
        console.print(f"all {len(summary['scores'])} targets: relative L2 {words}, each target counted alike")
    _show_interference(summary["interference"], console)
    _show_intervals(summary.get("intervals"), console)
    if any(of["model"]["published"] is not None for of in summary["scores"].values()):
        console.print(
            "note: the published figure is what the FLARE paper's code computes for LPBF (Table 2), which isn't the "
            "relative L2 error; compare by it with that table alone"
        )
    if summary["interference"] is not None:
        console.print("note: a hit is a part that the recoater's blade, which spreads powder, hits in the simulation")


def _unit(target: str, summary: Summary) -> str:
    """The unit of a target's errors; summaries of printed parts needn't name it."""
    stated = summary.get("units", {}).get(target)
    return unit_of_errors(resolve_target(target).unit if stated is None else stated)[1]


def _table(unit: str, by_predictor: Mapping[str, Mapping[str, Any]]) -> Table:
    table = screen_table()
    heads = (
        "", "\nrelative\nL2", "\n\nmedian", "\npublished\nfigure",
        f"mean\nerror\n{unit}", f"95 % of\nerrors\n{unit}", f"largest\nerror\n{unit}", "\n\nR²",
    )  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for predictor, s in by_predictor.items():
        errors = (format_number(s[name], ",.4g") for name in ("mean_error", "p95_error", "max_error"))
        relative = (format_number(s[name]) for name in ("relative_l2", "relative_l2_median", "published"))
        table.add_row(PREDICTOR_NAMES[predictor], *relative, *errors, format_number(s["r2"]))
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _show_interference(found: Summary | None, console: Console) -> None:
    if found is None:
        return
    what = f"recoater interference from {found['target']}"
    for name in ("by_the_solvers_rule", "by_threshold"):
        if name in found:
            d = found[name]
            words = "by the solver's rule"
            if name == "by_threshold":
                rate = d["stated_false_alarm_rate"]
                source = d.get("source", "validation")
                words = f"by a threshold from {source} for at most {100 * rate:.3g} % false alarms"
            console.print(
                f"{what}, {words}: {d['found']} of {_count(d['hits'], 'hit')} found, "
                f"{_count(d['false_alarms'], 'false alarm')} in {_count(d['clear'], 'part')} without one"
            )
    if "recall_at_false_alarms" in found:
        at = found["recall_at_false_alarms"]
        console.print(
            f"{what}: area under ROC {format_number(found['ranking_quality'])}, average precision "
            f"{format_number(found['average_precision'])}; {100 * at['recall']:.3g} % of hits found at "
            f"{100 * at['false_alarm_rate']:.3g} % false alarms in these parts{_between(at['interval'])}"
        )
    if "brier" in found:
        model, share = (format_number(found["brier"][name]) for name in ("model", "share_of_hits"))
        console.print(f"{what}: Brier score {model}; {share} with the share of hits as the chance of every part")
    if "verdicts" in found:
        console.print(f"{what}: {verdicts_in_words(found['verdicts'])}")
    if "no_threshold" in found:
        console.print(f"{what}: no threshold, and so no recall or false alarms by one: {found['no_threshold']}")


def verdicts_in_words(found: Mapping[str, Mapping[str, int]]) -> str:
    """How often the verdicts of `predict` are right on the evaluated parts, as text.

    Args:
        found: Verdict to parts and hits among them.
    """
    return ", ".join(
        f"{_count(found[verdict]['parts'], 'part')} {said} of which {found[verdict]['hits']} are hit"
        for verdict, said in (("yes", 'get "yes",'), ("no", '"no",'), ("can't tell", '"can\'t tell",'))
    )


def _between(interval: Sequence[float] | None) -> str:
    """An interval of shares, 95 % by bootstrap over designs, as text; empty where there is none."""
    if interval is None:
        return ""
    return f" ({100 * interval[0]:.3g} to {100 * interval[1]:.3g} %, 95 % bootstrap interval)"


def _show_intervals(found: Summary | None, console: Console) -> None:
    if found is None:
        return
    if "none" in found:
        console.print(f"no intervals: {found['none']}")
        return
    for column, of in found["columns"].items():
        factor, unit = unit_of_errors(resolve_target(column).unit)
        ratio = of["over_constant_width"]
        narrower = "" if ratio is None else f" ({ratio:.2f} times the width of an interval that is the same everywhere)"
        points, parts = (f"{100 * of[f'{name}_inside']:.3g} % of {name} inside" for name in ("points", "parts"))
        console.print(
            f"{100 * found['level']:.3g} % prediction interval of {column}: "
            f"± {factor * of['half_width']:.3g} {unit} at a point{narrower}, "
            f"{points}{_between(of['points_inside_interval'])}; "
            f"± {factor * of['part_half_width']:.3g} {unit} for the extreme value of a part, "
            f"{parts}{_between(of['parts_inside_interval'])}"
        )


def spread_of(summaries: Sequence[Summary]) -> dict[str, dict[str, dict[str, float] | None]]:
    """Mean and sample standard deviation over two seeds or more: target to error to both; None where a seed has none.

    Args:
        summaries: Content of `summary.json` of each seed.
    """
    found: dict[str, dict[str, dict[str, float] | None]] = {}
    for target in summaries[0]["scores"]:
        found[target] = {}
        for name in _SPREAD:
            found[target][name] = mean_and_deviation([s["scores"][target]["model"][name] for s in summaries])
    return found


def show_spread(spread: Mapping[str, Mapping[str, Mapping[str, float] | None]], seeds: int, console: Console) -> None:
    """Print what `spread_of` found.

    Args:
        spread: Target to error to mean and standard deviation.
        seeds: Number of seeds.
        console: Where to print.
    """
    for target, errors in spread.items():
        for name, both in errors.items():
            if both is not None:
                console.print(
                    f"{target}, {name}: {both['mean']:.4g} ± {both['standard_deviation']:.2g} over {seeds} seeds"
                )
