"""What the option `--splits` says: shares, and rules for splits that ask for extrapolation. Reads records only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lpbf_data.case.record import CaseRecord, Measures
from lpbf_data.errors import UsageError

PUBLISHED: Final = "published"
"""Name of the plain split by case, 1100 to 290, which puts bodies of one design on both sides."""

_PUBLISHED_FRACTIONS: Final = {"train": 1100 / 1390, "test": 290 / 1390}

EXTREMES: Final[dict[str, Callable[[Measures], float]]] = {
    "tallest": lambda m: m.height,
    "largest_displacement": lambda m: m.displacement_z_abs_max,
}
"""Rules for splits that ask for extrapolation, and the measure by which each orders designs."""


NAMES: Final[dict[str, Callable[[CaseRecord], str]]] = {
    "design": lambda record: record.design_id or record.case_id,
    "source": lambda record: f"{record.source.archive}/{record.source.member}",
}
"""Rules for splits that hold out a family, and the name in which each searches."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A split that asks a model to extrapolate, chosen before all others.

    Attributes:
        rule: One of EXTREMES or NAMES.
        share: For an extreme: share of the kept cases.
        pattern: For a name: regular expression that is searched in it.
    """

    rule: str
    share: float = 0.0
    pattern: str = ""

    def finds(self, record: CaseRecord) -> bool:
        """Whether the rule applies to a case: an extreme to any, a pattern where it is found in the name."""
        return self.rule in EXTREMES or re.search(self.pattern, NAMES[self.rule](record)) is not None


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """How kept cases are divided.

    Attributes:
        fractions: Split name to share; shares add up to one.
        by_design: Keep the cases of one design together.
        held_out: Split name to what it holds out; these are chosen first, the rest is divided by the shares.
    """

    fractions: Mapping[str, float]
    by_design: bool = True
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of all splits."""
        return [*self.fractions, *self.held_out]


def parse_splits(text: str) -> SplitRequest:
    """Read the option `--splits`.

    Args:
        text: "published", or names with shares such as "train=0.7,validation=0.1,test=0.2", which are scaled to add up
            to one. A split that asks for extrapolation has a rule in place of a share: "test=tallest:0.2" and
            "test=largest_displacement:0.2" hold out a share of the cases, whole designs with the tallest parts or the
            largest Z displacement; "test=design:bracket" holds out the designs whose id a regular expression finds,
            "test=source:bracket" those of which a case comes from an archive or folder whose name it finds.

    Raises:
        UsageError: If it can't be read.

    >>> parse_splits("train=3,test=1").fractions
    {'train': 0.75, 'test': 0.25}
    >>> parse_splits("train=0.9,validation=0.1,test=tallest:0.2").held_out["test"].share
    0.2
    """
    if text == PUBLISHED:
        return SplitRequest(_PUBLISHED_FRACTIONS, by_design=False)
    fractions: dict[str, float] = {}
    held_out: dict[str, HeldOut] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        rule, colon, argument = value.partition(":")
        if not name.isidentifier() or name in fractions or name in held_out:
            raise _unreadable(part)
        if colon:
            held_out[name] = _parse_rule(rule, argument, part)
        else:
            fractions[name] = _parse_share(value, part)
    if not fractions or sum(h.share for h in held_out.values()) >= 1:
        raise UsageError(f"--splits {text} leaves nothing to train on; give a split a share, such as train=0.9")
    whole = sum(fractions.values())
    return SplitRequest({name: share / whole for name, share in fractions.items()}, held_out=held_out)


def _unreadable(part: str) -> UsageError:
    return UsageError(
        f"--splits can't be read at {part!r}; write names with positive shares, such as "
        "train=0.7,validation=0.1,test=0.2, or with a rule, such as test=tallest:0.2, test=largest_displacement:0.2, "
        "test=design:bracket or test=source:bracket, or the word published"
    )


def _parse_share(text: str, part: str) -> float:
    try:
        share = float(text)
    except ValueError as error:
        raise _unreadable(part) from error
    if not (math.isfinite(share) and share > 0):
        raise _unreadable(part)
    return share


def _parse_rule(rule: str, argument: str, part: str) -> HeldOut:
    if rule in EXTREMES:
        return HeldOut(rule, share=_parse_share(argument, part))
    if rule not in NAMES or not argument:
        raise _unreadable(part)
    try:
        re.compile(argument)
    except re.error as error:
        raise UsageError(f"--splits: {argument!r} is no regular expression: {error}") from error
    return HeldOut(rule, pattern=argument)


def hold_out(groups: Mapping[str, Sequence[CaseRecord]], held_out: Mapping[str, HeldOut], total: int) -> dict[str, str]:
    """Choose the groups of splits that ask for extrapolation, in the order in which the splits were named.

    Args:
        groups: Group name to its kept records.
        held_out: Split name to what it holds out.
        total: Number of kept cases, which shares refer to.

    Returns:
        Group name to split, for the groups that are held out.
    """
    chosen: dict[str, str] = {}
    for split, rule in held_out.items():
        free = [name for name in groups if name not in chosen]
        if rule.rule in NAMES:
            taken = [name for name in free if any(map(rule.finds, groups[name]))]
        else:
            taken = _most_extreme(groups, free, EXTREMES[rule.rule], rule.share * total)
        chosen |= dict.fromkeys(taken, split)
    return chosen


def _most_extreme(
    groups: Mapping[str, Sequence[CaseRecord]], free: Sequence[str], value: Callable[[Measures], float], target: float
) -> list[str]:
    """Whole groups from the most extreme one down, as near to a number of cases as they come, one at least."""

    def extreme(name: str) -> tuple[float, str]:
        return -max(value(r.measures) for r in groups[name] if r.measures is not None), name

    taken: list[str] = []
    count = 0
    for name in sorted(free, key=extreme):
        size = len(groups[name])
        if taken and abs(count + size - target) >= abs(count - target):
            break
        taken.append(name)
        count += size
    return taken
