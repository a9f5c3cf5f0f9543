"""A ranking of orientations on the screen, as JSON, as a picture, and the best of them as STL files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flare_model.decision.orientation import BestOrientation, OrientedPart, Ranking
from flare_model.judging.scores import MICROMETRES
from flare_model.table_formats import screen_table
from lpbf_data.durable import flush_file, write_durably, write_json
from lpbf_data.geometry.stl import stl_bytes

if TYPE_CHECKING:
    from rich.console import Console

_AXES: Final = "xyz"


def side_in_words(down: tuple[float, float, float]) -> str:
    """Which direction of the part points down, as text.

    >>> side_in_words((0.0, 0.0, -1.0)), side_in_words((0.7071, 0.0, -0.7071))
    ('as it lies', '+x 0.71, -z 0.71')
    """
    if down[2] < -1 + 1e-6:
        return "as it lies"
    named = [
        f"{'+' if value > 0 else '-'}{axis} {abs(value):.2f}"
        for axis, value in zip(_AXES, down, strict=True)
        if abs(value) > 0.01
    ]
    return named[0][:2] if len(named) == 1 else ", ".join(named)


def print_orientations(ranking: Ranking, console: Console) -> None:
    """Print the ranking as a table, and the answers for the best orientations."""
    table = screen_table()
    for head in ("", "down", "risk of\na hit", "warps\nµm", "height\nmm", "overhangs\nmm²", "supports\nmm³"):
        table.add_column(head, justify="left" if head == "down" else "right", no_wrap=True)
    for number, orientation in enumerate(ranking.orientations, 1):
        table.add_row(str(number), side_in_words(orientation.down), *_numbers(orientation))
    console.print(f"{ranking.name}: {len(ranking.orientations)} orientations, best first")
    console.print(table)
    for number, best in enumerate(ranking.best, 1):
        console.print(f"best {number}, with all points: {side_in_words(best.turned.down)}: {_best_in_words(best)}")
    refused = [orientation for orientation in ranking.orientations if orientation.answer is None]
    if refused:
        console.print(f"{len(refused)} of them can't be predicted on: {refused[0].error}")


def ranking_facts(ranking: Ranking) -> list[tuple[str, str]]:
    """The ranking as facts of a page, as the screen shows it: pairs of a short name and a text."""
    facts = [("orientations", f"{len(ranking.orientations)} in order, best first, by the side that points down")]
    for number, orientation in enumerate(ranking.orientations, 1):
        risk, warps, height, area, volume = _numbers(orientation)
        text = f"risk of a hit {risk}, warps {warps} µm, height {height} mm"
        text += f", overhangs {area} mm², supports {volume} mm³"
        if orientation.answer is None:
            text = f"can't be predicted on: {orientation.error}"
        facts.append((f"{number}.", f"{side_in_words(orientation.down)}: {text}"))
    for number, best in enumerate(ranking.best, 1):
        text = f"with all points, {side_in_words(best.turned.down)}: {_best_in_words(best)}"
        facts.append((f"best {number}", text))
    return facts


def _numbers(orientation: OrientedPart) -> tuple[str, ...]:
    if orientation.answer is None or orientation.overhangs is None:
        return ("–",) * 5
    hit = orientation.answer.hit
    chance = "–" if hit is None or hit.chance is None else f"{hit.chance:.0%}"
    overhangs = orientation.overhangs
    fits = "" if orientation.fits else " (too large)"
    numbers = f"{overhangs.height:.1f}{fits}", f"{overhangs.area:,.0f}", f"{overhangs.support_volume:,.0f}"
    return (chance, f"{MICROMETRES * orientation.displacement:,.0f}", *numbers)


def _best_in_words(best: BestOrientation) -> str:
    from flare_model.decision.answer_text import hit_in_words

    answer = best.answer
    warps = [f"{MICROMETRES * peak.value:+.3g} µm" for peak in (answer.up, answer.down) if peak is not None]
    recoater = [f"recoater: {hit_in_words(answer.hit)}"] if answer.hit else []
    return "; ".join([*recoater, f"warps {' and '.join(warps)}"])


def write_orientations(out: Path, file: str, ranking: Ranking, *, pictures: bool) -> list[dict[str, Any]]:
    """Write the ranking as JSON, the best as STL files to build from, and a picture of them.

    Args:
        out: Folder of the results.
        file: Name of the part's files, without suffix.
        ranking: The ranking.
        pictures: Whether to draw the best.

    Returns:
        The ranking as JSON takes it.
    """
    content = [_as_dict(orientation) for orientation in ranking.orientations]
    for number, best in enumerate(ranking.best, 1):
        entry = next(
            entry
            for orientation, entry in zip(ranking.orientations, content, strict=True)
            if orientation is best.turned
        )
        entry |= {"in_full": best.answer.as_dict(), "best": number}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{file}_orientations.json", {"orientations": content})
    for number, best in enumerate(ranking.best, 1):
        write_durably(out / f"{file}_best_{number}.stl", stl_bytes(best.surface, "lengths in mm"))
    if pictures:
        draw_best(out / f"{file}_orientations.png", ranking)
    return content


def _as_dict(orientation: OrientedPart) -> dict[str, Any]:
    overhangs = orientation.overhangs
    return {
        "down": orientation.down,
        "rotation": orientation.rotation.tolist(),
        "answer": orientation.answer.as_dict() if orientation.answer else None,
        "overhang_area": overhangs.area if overhangs else None,
        "support_volume": overhangs.support_volume if overhangs else None,
        "height": overhangs.height if overhangs else None,
        "why_not": orientation.error,
    }


def draw_best(path: Path, ranking: Ranking) -> None:
    """Draw the best orientations side by side, coloured by their displacement on one scale."""
    from lpbf_data.case.case import Case
    from lpbf_data.geometry.render import Panel, render_panels

    panels = []
    for number, best in enumerate(ranking.best, 1):
        part = best.prediction.part
        z = best.prediction.columns()["displacement_z"]
        values = np.zeros((len(part.points), 3), np.float32)
        values[:, 2] = z
        label = f"{number}: {side_in_words(best.turned.down)}"
        panels.append(
            Panel(Case(part.name, part.points, part.cells, {"displacement": values}), label, "displacement", "z")
        )
    temporary = path.with_name(f".{path.name}")
    render_panels(panels, temporary, panel_size=(420, 360) if len(panels) > 1 else (640, 480))
    flush_file(temporary)
    temporary.replace(path)
