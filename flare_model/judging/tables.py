"""What an evaluation says on the screen: tables that a terminal of 80 columns holds, and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from flare_model.data.point_fields import resolve_target
from flare_model.judging.scores import mean_and_deviation, unit_of_errors
from flare_model.table_formats import format_number, screen_table
from lpbf_data.console import open_console

_NAMES: Final = {"model": "model", "zero": "predict zero", "mean": "predict mean", "mean_field": "mean field"}
_SPREAD: Final = ("relative_l2", "published", "mean_error")

Summary = Mapping[str, Any]
"""Content of `summary.json`."""


def show(summary: Summary, title: str, console: Console) -> None:
    """Print a summary as a table a target, with notes below.

    Args:
        summary: Content of `summary.json`.
        title: What was judged on what.
        console: Where to print; a table wider than it is folded by the terminal, not cut.
    """
    for target, by_predictor in summary["scores"].items():
        console.print(f"{target}: {title}")
        table = _table(_unit(target, summary), by_predictor)
        width = console.measure(table, options=console.options.update_width(1000)).maximum
        open_console(file=console.file, width=max(width, console.width)).print(table)
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
        table.add_row(_NAMES[predictor], *relative, *errors, format_number(s["r2"]))
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
        console.print(f"{what}: Brier score {model}; {share} by the share of hits alone")
    if "verdicts" in found:
        console.print(f"{what}: {verdicts_in_words(found['verdicts'])}")
    if "no_threshold" in found:
        console.print(f"{what}: no threshold, and so no recall or false alarms by one: {found['no_threshold']}")


def verdicts_in_words(found: Mapping[str, Mapping[str, int]]) -> str:
    """How often predict's answers are right, on the parts that were judged.

    Args:
        found: Verdict to parts and hits among them.
    """
    return ", ".join(
        f"{_count(found[verdict]['parts'], 'part')} {said} of which {found[verdict]['hits']} are hit"
        for verdict, said in (("yes", 'get "yes",'), ("no", '"no",'), ("can't tell", '"can\'t tell",'))
    )


def _between(interval: Sequence[float] | None) -> str:
    """An interval of shares, 95 % by bootstrap over designs; nothing where there is none."""
    return "" if interval is None else f" ({100 * interval[0]:.3g} to {100 * interval[1]:.3g} %, 95 % of draws)"


def _show_intervals(found: Summary | None, console: Console) -> None:
    if found is None:
        return
    if "none" in found:
        console.print(f"no intervals: {found['none']}")
        return
    for column, of in found["columns"].items():
        factor, unit = unit_of_errors(resolve_target(column).unit)
        narrower = "" if of["over_constant_width"] is None else f", {of['over_constant_width']:.2f} of a constant width"
        console.print(
            f"{100 * found['level']:.3g} % interval of {column}: ± {factor * of['half_width']:.3g} {unit} at a point"
            f"{narrower}, {100 * of['points_inside']:.3g} % of points inside{_between(of['points_inside_interval'])}; "
            f"± {factor * of['part_half_width']:.3g} {unit} of a part's extreme, "
            f"{100 * of['parts_inside']:.3g} % of parts inside{_between(of['parts_inside_interval'])}"
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
