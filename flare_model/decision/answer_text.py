"""The answer for a part as text, for the screen and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flare_model.decision.answer import Answer, Hit, Peak, advice_on_size
from flare_model.judging.scores import MICROMETRES
from flare_model.prediction.surface_parts import LAYER

_WIDTH: Final = 12
_MAX_REASONS: Final = 3

_MIN_CELLS_ACROSS: Final = 4
"""Cells across a wall below which an answer changes with the mesh by more than its interval."""

_FINER_FACTOR: Final = 4
_WORTH_TRYING: Final = 1.5
"""Times as many points from which on a finer mesh is another one."""

_ENOUGH_PARTS: Final = 30
"""Parts from which on nothing is said of how many the chance of a hit was fitted to."""

_MAX_TRAINING_POINTS: Final = 20_000
"""Points of the largest parts of the training."""


def answer_facts(answer: Answer) -> list[tuple[str, str]]:
    """Facts about a part, the most important first: pairs of a name, such as "recoater", and a text."""
    facts = [("recoater", hit_in_words(answer.hit))] if answer.hit else []
    confidence = _confidence(answer)
    facts += [("warps up", _warping(answer.up, confidence, 1)), ("warps down", _warping(answer.down, confidence, -1))]
    facts += [("sideways", _peak(answer.sideways, confidence, ""))]
    facts += [("size", _size(answer)), ("coordinates", _coordinates(answer))]
    facts += [("mesh", _mesh(answer)), ("likeness", _likeness(answer))]
    assumed = f"material {answer.material}; supports: {answer.supports}"
    if answer.scale is not None:
        assumed += f"; {answer.scale.describe()}"
    facts.append(("assumes", assumed + ("" if answer.calibrated else "; not calibrated to your machine (--material)")))
    return [(name, text) for name, text in facts if text]


def answer_lines(answer: Answer) -> list[str]:
    """The answer as lines of a screen."""
    return [answer.name, *(f"  {name:{_WIDTH}}{text}" for name, text in answer_facts(answer))]


def answer_line(answer: Answer) -> str:
    """The answer on one line, for one part of many."""
    words = []
    if answer.hit is not None:
        said = {"yes": "the recoater hits it", "no": "no hit", "can't tell": "can't tell whether the recoater hits it"}
        words.append(said[answer.hit.verdict])
        if answer.hit.chance is not None:
            words[-1] += f" (a hit is {_percent(answer.hit.chance)} likely{_basis(answer.hit)})"
    peaks = [peak for peak in (answer.up, answer.down) if peak is not None]
    words.append(f"warps {' and '.join(_micrometres(peak.value, '+') for peak in peaks)} µm")
    if answer.outside or (answer.likeness is not None and answer.likeness.unlike):
        words.append("unlike the parts of the training")
    return f"{answer.name}: {'; '.join(words)}"


def hit_in_words(hit: Hit) -> str:
    """Whether the recoater's blade hits the part, how likely that is, and where."""
    blade = "its blade, which spreads the powder,"
    words = {"yes": f"{blade} hits the part", "no": f"{blade} doesn't hit the part"}
    clauses = [words.get(hit.verdict, f"can't tell whether {blade} hits the part")]
    if hit.why:
        clauses[-1] += f" ({hit.why})"
    if hit.chance is not None:
        clauses.append(f"a hit is {_percent(hit.chance)} likely{_basis(hit)}")
    where = f"z {hit.place[2]:.2f} mm, in powder layer {hit.layer:,} (each is {LAYER:g} mm thick)"
    if hit.clearance is None:
        clauses.append(f"likeliest at {where}")
    else:
        half = "" if hit.half_width is None else f" ± {hit.half_width:.3g}"
        below = "" if hit.tolerance is None else f" (below {hit.tolerance:.3g} % counts as a hit)"
        clauses.append(
            f"least gap between blade and part {hit.clearance:.3g}{half} % of a layer's thickness{below}, at {where}"
        )
    return "; ".join(clauses)


def _basis(hit: Hit) -> str:
    """On how few parts the chance of a hit rests, as text; empty where these are enough."""
    if hit.chance_parts is None or hit.chance_parts >= _ENOUGH_PARTS:
        return ""
    return f", which rests on {hit.chance_parts} part{'' if hit.chance_parts == 1 else 's'} alone"


def _percent(chance: float) -> str:
    """A probability as text; one that rounds to 0 or 100 % is given as a bound.

    >>> _percent(0.9999), _percent(0.42)
    ('more than 99 %', '42 %')
    """
    if chance > 0.99:
        return "more than 99 %"
    return "less than 1 %" if chance < 0.01 else f"{100 * chance:.0f} %"


def _confidence(answer: Answer) -> str:
    """Which parts the intervals hold for, as text; empty where there are none."""
    if answer.level is None:
        return ""
    if answer.outside or (answer.likeness is not None and answer.likeness.unlike):
        return "interval for parts like the training parts, which this one isn't"
    return f"{100 * answer.level:.3g} % prediction interval"


def _warping(peak: Peak | None, confidence: str, direction: int) -> str:
    """A peak upwards (1) or downwards (-1); where no point moves that way, the one that comes nearest to it."""
    found = _peak(peak, confidence)
    if peak is None or direction * peak.value >= 0:
        return found
    return f"nowhere: the {'highest' if direction > 0 else 'lowest'} point moves by {found}"


def _peak(peak: Peak | None, confidence: str, sign: str = "+") -> str:
    if peak is None:
        return ""
    x, y, z = peak.place
    where = f"at x {x:.1f}, y {y:.1f}, z {z:.1f} mm"
    value = _micrometres(peak.value, sign)
    if peak.half_width is None or not confidence:
        return f"{value} µm {where}"
    return f"{value} ± {_micrometres(peak.half_width)} µm ({confidence}) {where}"


def _micrometres(length: float, sign: str = "") -> str:
    """A length in mm as micrometres with three digits, and never as a power of ten.

    >>> _micrometres(1.9345), _micrometres(0.0123, "+")
    ('1,934', '+12.3')
    """
    found = MICROMETRES * length
    return f"{found:{sign},.0f}" if abs(found) >= 1000 else f"{found:{sign}.3g}"


def _millimetres(length: float, digits: int) -> str:
    """A length in mm with so many digits, and never as a large power of ten.

    >>> _millimetres(20000.0, 4), _millimetres(12.3456, 3)
    ('20,000', '12.3')
    """
    return f"{length:,.0f}" if length >= 10 ** (digits - 1) else f"{length:.{digits}g}"


def _size(answer: Answer) -> str:
    words = [" × ".join(_millimetres(length, 4) for length in answer.size) + " mm"]
    if answer.unit is not None:
        unit, stated = answer.unit
        words.append(f"read in {unit}" + ("" if stated else ", since the file states no unit (--units)"))
        if answer.mesh["unit_doubtful"]:
            words[-1] += ", which is doubtful: no machine builds parts of this size"
    number, count = answer.body
    words.append("1 body" if count == 1 else f"body {number} of {count}")
    words.append(f"{answer.volume:,.0f} mm³" if answer.volume >= 100 else f"{answer.volume:.3g} mm³")
    if advice := advice_on_size(answer.size):
        words.append(advice)
    return "; ".join(words)


def _coordinates(answer: Answer) -> str:
    """Where x, y and z of the other facts are counted from, for a part that was moved; empty for one that wasn't."""
    if not any(answer.moved):
        return ""
    moved = ", ".join(f"{axis} {shift:+.4g}" for axis, shift in zip("xyz", answer.moved, strict=True) if shift)
    return f"x and y from the middle of the build plate, z from the plate: the file's plus {moved} mm"


def _mesh(answer: Answer) -> str:
    mesh = answer.mesh
    words = [f"{mesh['points']:,} points"]
    if "cell" in mesh:
        words.append(f"cells of {' × '.join(_millimetres(edge, 3) for edge in mesh['cell'])} mm")
        words.append(f"{mesh['volume_share']:.0%} of the volume")
        words += [one for one in mesh["lost"] if "of its volume" not in one]
        if mesh["wall"] is not None:
            words.append(f"thinnest wall {_millimetres(mesh['wall'], 3)} mm, {mesh['cells_across']:.2g} cells across")
        if mesh["advice"] is not None:
            why = "so coarse for that wall" if mesh["thin_walls"] else "so far from the part"
            words.append(f"{why} that another number of points may give another answer: {mesh['advice']}")
        elif mesh["wall"] is not None and mesh["cells_across"] < _MIN_CELLS_ACROSS and not mesh["unit_doubtful"]:
            finer = min(_FINER_FACTOR * mesh["points"], _MAX_TRAINING_POINTS)
            if finer >= _WORTH_TRYING * mesh["points"]:
                words.append(f"so few that a finer mesh may give another answer: compare --points {finer}")
    return ", ".join(words)


def _likeness(answer: Answer) -> str:
    if answer.likeness is None:
        return "; ".join(["not known: the checkpoint has no statistics of its training parts", *answer.outside])
    reasons = [*answer.outside, *map(str, answer.likeness.reasons)]
    if not reasons:
        return "like the parts of the training"
    shown = first_reasons(reasons)
    unlike = answer.likeness.unlike or bool(answer.outside)
    return (
        f"unlike the parts of the training: {shown}" if unlike else f"like the parts of the training, but rare: {shown}"
    )


def verdict_counts_line(answers: Sequence[Answer]) -> str:
    """One line on several parts: how many the recoater hits, how many it doesn't hit, and how many are uncertain."""
    verdicts: list[str] = [answer.hit.verdict for answer in answers if answer.hit is not None]
    counts = [("yes", "hit by the recoater"), ("no", "not hit"), ("can't tell", "uncertain")]
    return f"{len(answers)} parts: " + ", ".join(f"{verdicts.count(verdict)} {words}" for verdict, words in counts)


def first_reasons(reasons: Sequence[str]) -> str:
    """The first three of some reasons, and how many more there are.

    >>> first_reasons(["too wide", "too thin", "too high", "too heavy"])
    'too wide; too thin; too high, and 1 more'
    """
    more = f", and {len(reasons) - _MAX_REASONS} more" if len(reasons) > _MAX_REASONS else ""
    return "; ".join(reasons[:_MAX_REASONS]) + more
