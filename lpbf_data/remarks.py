"""Remarks: what was left out, changed, guessed or repaired, reported once and with numbers.

A function that meets a duplicate triangle, a hidden file or a file without units goes on, and returns a
[Remark][lpbf_data.remarks.Remark] for each kind of such a finding beside its result. Commands print them once, under
their closing table, and store them in the JSON file beside the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_EXAMPLES = 3
"""Examples that a remark names at most; `count` counts all."""


class Treatment(StrEnum):
    """What was done about something unexpected; `KEPT` is for what is unusual and was used as it is."""

    LEFT_OUT = "left_out"
    CHANGED = "changed"
    GUESSED = "guessed"
    REPAIRED = "repaired"
    KEPT = "kept"


@dataclass(frozen=True)
class Remark:
    """One kind of thing that was left out, changed, guessed or repaired.

    Attributes:
        treatment: What was done about it.
        kind: A short name that stays the same from version to version, for programs, such as
            `"litter"` (ignored files) and `"merged_facets"`.
        sentence: What was found and what was done, for people; the same for every occurrence.
        count: Number of occurrences.
        examples: Where it occurred: files, cases or bodies, at most [MAX_EXAMPLES][lpbf_data.remarks.MAX_EXAMPLES].
    """

    treatment: Treatment
    kind: str
    sentence: str
    count: int = 1
    examples: tuple[str, ...] = ()

    @classmethod
    def of_items(cls, treatment: Treatment, kind: str, sentence: str, items: Sequence[str]) -> Remark:
        """A remark on some items (files, cases, bodies): it counts all, and names the first as examples."""
        return cls(treatment, kind, sentence, len(items), tuple(items[:MAX_EXAMPLES]))

    @property
    def treated(self) -> str:
        """What was done about it, for people."""
        return str(self.treatment).replace("_", " ")

    @property
    def where(self) -> str:
        """The examples, with an ellipsis where there are more."""
        return ", ".join(self.examples) + (", …" if self.count > len(self.examples) > 0 else "")

    def __str__(self) -> str:
        """The remark on one line, without the number of occurrences."""
        return f"{self.treated}: {self.sentence}" + (f" ({self.where})" if self.where else "")

    @property
    def with_count(self) -> str:
        """The remark on one line, with the number of occurrences where there are several.

        >>> Remark(Treatment.LEFT_OUT, "ignored_files", "hidden files", count=66, examples=("a/._b",)).with_count
        'left out, 66 in all: hidden files (a/._b, …)'
        """
        found = str(self)
        return found if self.count == 1 else f"{self.treated}, {self.count:,} in all{found.removeprefix(self.treated)}"

    def as_dict(self) -> dict[str, object]:
        """The remark as JSON takes it."""
        return {
            "treatment": str(self.treatment),
            "kind": self.kind,
            "sentence": self.sentence,
            "count": self.count,
            "examples": list(self.examples),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, object]) -> Remark:
        """The remark that `as_dict` wrote.

        Raises:
            ValueError: A treatment that doesn't exist.
            KeyError: A field is missing.
            TypeError: A field of another type.
        """
        count, examples = stored["count"], stored["examples"]
        if not isinstance(count, int) or not isinstance(examples, list):
            raise TypeError("a remark's count is a whole number and its examples a list")
        return cls(
            Treatment(str(stored["treatment"])),
            str(stored["kind"]),
            str(stored["sentence"]),
            count,
            tuple(map(str, examples)),
        )


def merge_remarks(remarks: Iterable[Remark]) -> tuple[Remark, ...]:
    """Equal remarks as one, counts added and examples joined, in the order in which they first came.

    >>> remark = Remark(Treatment.LEFT_OUT, "ignored_files", "files of the operating system", examples=("a/._b",))
    >>> print(*merge_remarks([remark, remark]))
    left out: files of the operating system (a/._b, …)
    """
    merged: dict[tuple[Treatment, str, str], Remark] = {}
    for remark in remarks:
        key = (remark.treatment, remark.kind, remark.sentence)
        before = merged.get(key)
        if before is None:
            merged[key] = replace(remark, examples=tuple(dict.fromkeys(remark.examples))[:MAX_EXAMPLES])
            continue
        examples = tuple(dict.fromkeys(before.examples + remark.examples))[:MAX_EXAMPLES]
        merged[key] = replace(before, count=before.count + remark.count, examples=examples)
    return tuple(merged.values())
