"""Cases that have one id: copies, incomplete runs beside a whole one, different cases in folders of one name."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final

from lpbf_data.case.record import CaseRecord, Failure
from lpbf_data.errors import CaseError, FailureReason
from lpbf_data.remarks import Remark, Treatment
from pipelines.netfabb.run import NetfabbRun
from pipelines.sources.case_files import CaseLocation, open_case
from pipelines.sources.grouping import runs_of

_INCOMPLETE: Final = frozenset({FailureReason.MISSING_FILE, FailureReason.SOLVER_TERMINATED})
"""What tells that a run is only part of one; a file that can't be read now may be readable tomorrow."""


@dataclass
class SameIds:
    """What became of cases, each of which has an id of its own now.

    Attributes:
        unique: One location an id, sorted by it.
        failures: A failure for each case that no id is left for, or that is incomplete as all cases of its id are.
        copies: Copies of a case, that were left out.
        incomplete: Incomplete runs, that were left out because a whole run has their id.
        renamed: Cases that got another id than the name of their folder.
    """

    unique: list[CaseLocation] = field(default_factory=list)
    failures: list[CaseRecord] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Remarks on the cases that were left out or renamed."""
        found = []
        if self.copies:
            sentence = "copies of a case, equal in name and content; one is kept"
            found.append(Remark.of_items(Treatment.LEFT_OUT, "copies", sentence, self.copies))
        if self.incomplete:
            sentence = "incomplete runs whose id a whole run has too, which was taken"
            found.append(Remark.of_items(Treatment.LEFT_OUT, "incomplete_runs", sentence, self.incomplete))
        if self.renamed:
            sentence = (
                "cases of different content whose folders have one name, called by what their files begin with, "
                "or by their source"
            )
            found.append(Remark.of_items(Treatment.CHANGED, "renamed", sentence, self.renamed))
        return tuple(found)


def drop_duplicates(
    locations: Sequence[CaseLocation], earlier: Mapping[tuple[str, str], str] = MappingProxyType({})
) -> SameIds:
    """Give every id to one case.

    Cases of one id are one case when their bytes agree. Of different ones, a whole run is taken before incomplete ones;
    several whole ones get ids of their own where their names tell them apart, or fail.

    Args:
        locations: Every case that was found.
        earlier: Archive and member of each case that the data set has already, to its id, which it keeps.
    """
    by_id: dict[str, list[CaseLocation]] = {}
    for location in locations:
        by_id.setdefault(location.case_id, []).append(location)
    found = SameIds()
    for locations in by_id.values():
        if len(locations) == 1:
            found.unique += locations
        else:
            _settle(found, locations, by_id, earlier)
    found.unique.sort(key=lambda x: x.case_id)
    return found


def _settle(
    found: SameIds, locations: Sequence[CaseLocation], taken: Collection[str], earlier: Mapping[tuple[str, str], str]
) -> None:
    """Note what becomes of several cases of one id."""
    of_content: dict[str, list[CaseLocation]] = {}
    for location in locations:
        of_content.setdefault(_content(location), []).append(location)
    different = [same[0] for same in of_content.values()]
    broken: dict[str, CaseError] = {}
    if len(different) > 1:
        broken = {_label(x): error for x in different if (error := _missing_of(x)) is not None}
    whole = [x for x in different if _label(x) not in broken]
    if not whole:
        for location in different:
            error = broken[_label(location)]
            found.failures.append(_failed(location, Failure(error.reason, error.detail, error.path, error.offset)))
        return
    named = whole if len(whole) == 1 else _named_apart(whole, taken, earlier)
    if not named:
        found.failures += [_failed(location, _clash(location, locations)) for location in locations]
        return
    found.unique += named
    kept = {_label(x) for x in whole}
    found.copies += [_label(x) for same in of_content.values() if _label(same[0]) in kept for x in same[1:]]
    winner = " and ".join(map(_label, whole))
    found.incomplete += [
        f"{label} ({Failure(error.reason, error.detail, error.path).description}), where {winner} is whole"
        for label, error in broken.items()
    ]
    if len(whole) > 1:
        found.renamed += [f"{_label(x)} → {x.case_id}" for x in named]


def _label(location: CaseLocation) -> str:
    return f"{location.source.archive}:{location.source.member}"


def _failed(location: CaseLocation, failure: Failure) -> CaseRecord:
    return CaseRecord(case_id=location.case_id, source=location.source, failure=failure)


def _clash(location: CaseLocation, locations: Sequence[CaseLocation]) -> Failure:
    others = ", ".join(_label(other) for other in locations if other is not location)
    detail = (
        f"another case with other content has the same id: {others}; rename the folder of one of them, whose "
        "name is the id, or build them into separate data sets"
    )
    return Failure(FailureReason.DUPLICATE_CASE, detail)


def _content(location: CaseLocation) -> str:
    try:
        return open_case(location).content_digest()
    except CaseError as error:  # unreadable: equal to nothing but itself
        return f"{location.container}\0{location.prefix}\0{error}"


def _missing_of(location: CaseLocation) -> CaseError | None:
    """What a case lacks to be a whole run, by its log and the names in its case file; None where it has all."""
    try:
        NetfabbRun(location.case_id, open_case(location)).check_complete()
    except CaseError as error:
        return error if error.reason in _INCOMPLETE else None
    return None


def _named_apart(
    locations: Sequence[CaseLocation], taken: Collection[str], earlier: Mapping[tuple[str, str], str]
) -> list[CaseLocation]:
    """Different cases of one id, renamed so that their ids differ; empty where no such ids are found.

    The id becomes the name of the run, which its files begin with. If there are two cases and one run has the name of
    the folders, that case gets the name of its source before the id, and the other keeps the id, the folder's name,
    which was given on purpose. A case that the data set has already keeps its id. Nothing depends on the order of the
    sources.
    """
    shared, runs = locations[0].case_id, [_name_of_run(location) for location in locations]
    if not all(runs):
        return []
    names = list(runs)
    if sorted(run == shared for run in runs) == [False, True]:
        like_its_folder = runs.index(shared)
        names = [shared, shared]
        names[like_its_folder] = f"{PurePosixPath(locations[like_its_folder].source.archive).stem}_{shared}"
    before = [earlier.get((x.source.archive, x.source.member)) for x in locations]
    for index, name in enumerate(before):
        if name is not None:
            own = [run if other == name else other for run, other in zip(runs, names, strict=True)]
            names = [*own[:index], name, *own[index + 1 :]]
    if len(set(names)) < len(names) or any(name in taken and name != shared for name in names):
        return []
    return [dataclasses.replace(location, case_id=name) for location, name in zip(locations, names, strict=True)]


def _name_of_run(location: CaseLocation) -> str:
    try:
        runs = runs_of(open_case(location).sizes)
    except CaseError:
        return ""
    return runs[0].removesuffix("_") if len(runs) == 1 else ""
