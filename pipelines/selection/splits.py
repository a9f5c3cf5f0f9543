"""In which split each case lies: designs stay together, shares are met, rules hold out the rest."""

from __future__ import annotations

import bisect
import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from lpbf_data.case.record import CaseRecord
from pipelines.selection.split_options import SplitRequest, hold_out

_SPLIT_NAMES: Final = ("train", "validation", "test")


def group_designs(records: Sequence[CaseRecord]) -> dict[str, str]:
    """Put cases into designs: those that share a design id or a geometry belong together.

    Args:
        records: Measured records; those without a design id stand alone.

    Returns:
        Case id to the name of its group, the least design id in it.
    """
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        root = key
        while parent.setdefault(root, root) != root:
            root = parent[root]
        while parent[key] != root:
            parent[key], key = root, parent[key]
        return root

    for record in records:
        case = f"case\0{record.case_id}"
        for key in (f"design\0{record.design_id or record.case_id}", *(f"mesh\0{d}" for d in record.geometry_digests)):
            parent[find(key)] = find(case)
    names: dict[str, str] = {}
    for record in records:
        root = find(f"case\0{record.case_id}")
        names[root] = min(names.get(root, record.design_id or record.case_id), record.design_id or record.case_id)
    return {record.case_id: names[find(f"case\0{record.case_id}")] for record in records}


def leaking_designs(records: Sequence[CaseRecord]) -> dict[str, dict[str, str]]:
    """Designs that lie in more than one split.

    Args:
        records: Records with or without a place.

    Returns:
        Design to one case id of each split that it lies in.
    """
    design_of = group_designs([record for record in records if record.measures is not None])
    splits: dict[str, dict[str, str]] = {}
    for record in records:
        if record.placement is not None:
            splits.setdefault(design_of[record.case_id], {})[record.placement.split] = record.case_id
    return {design: cases for design, cases in sorted(splits.items()) if len(cases) > 1}


def assign_splits(
    groups: Mapping[str, Sequence[str]],
    fractions: Mapping[str, float],
    seed: int,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Divide whole groups of cases so that the splits come as near to their shares as they can.

    The order of the groups is that of a hash of seed and name, so it doesn't depend on how many there are, in which
    order they came, or where they lay.

    Args:
        groups: Group name to its case ids.
        fractions: Split name to share.
        seed: Another seed gives another division.
        fixed: Groups whose split is decided already, from an earlier build.

    Returns:
        Group name to split.
    """
    fixed = fixed or {}
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    size = {name: len(groups[name]) for name in order}
    target = {split: share * sum(size.values()) for split, share in fractions.items()}
    chosen = {name: fixed[name] for name in order if fixed.get(name) in fractions}
    filled = dict.fromkeys(fractions, 0)
    for name, split in chosen.items():
        filled[split] += size[name]
    free = [name for name in order if name not in chosen]
    for name in free:
        split = max(fractions, key=lambda s: target[s] - filled[s])
        chosen[name] = split
        filled[split] += size[name]
    _fill_empty(chosen, free, size, filled, fractions)
    _improve(chosen, free, size, filled, target)
    return chosen


def _fill_empty(
    chosen: dict[str, str],
    free: Sequence[str],
    size: Mapping[str, int],
    filled: dict[str, int],
    fractions: Mapping[str, float],
) -> None:
    """Give each empty split the smallest group of the split with the most groups, while there are groups enough."""
    groups = Counter(chosen.values())
    for split in sorted(fractions, key=lambda s: -fractions[s]):
        if filled[split]:
            continue
        donors = [name for name in free if groups[chosen[name]] > 1]
        if donors:
            name = min(donors, key=lambda n: (-groups[chosen[n]], size[n]))  # the first of equal ones
            groups[chosen[name]] -= 1
            groups[split] += 1
            filled[chosen[name]] -= size[name]
            chosen[name] = split
            filled[split] += size[name]


def _improve(
    chosen: dict[str, str],
    free: Sequence[str],
    size: Mapping[str, int],
    filled: dict[str, int],
    target: Mapping[str, float],
) -> None:
    """Move single groups as long as that brings the splits nearer to their shares and empties none."""

    def gain(step: int, here: str, split: str) -> float:
        before = abs(filled[here] - target[here]) + abs(filled[split] - target[split])
        after = abs(filled[here] - step - target[here]) + abs(filled[split] + step - target[split])
        return before - after

    sizes = sorted({size[name] for name in free})
    # The first group of each size and split stands for all like it, so a move costs the same with many groups.
    # Positions are in order, which makes them heaps.
    alike: dict[tuple[int, str], list[int]] = {}
    for position, name in enumerate(free):
        alike.setdefault((size[name], chosen[name]), []).append(position)
    while True:
        moves = [
            (gain(step, here, split), -bisect.bisect_left(sizes, step), split, free[positions[0]])
            for (step, here), positions in alike.items()
            if positions
            for split in target
            if split != here and filled[here] > step
        ]
        best = max(moves, default=(0.0, 0, "", ""))
        if best[0] <= 1e-9:
            return
        _, _, split, name = best
        step, here = size[name], chosen[name]
        heapq.heappush(alike.setdefault((step, split), []), heapq.heappop(alike[step, here]))
        filled[here] -= step
        filled[split] += step
        chosen[name] = split


def ordered_splits(names: Iterable[str]) -> list[str]:
    """Split names, the usual ones first in their usual order."""
    known = {name: position for position, name in enumerate(_SPLIT_NAMES)}
    return sorted(set(names), key=lambda name: (known.get(name, len(known)), name))


def split_records(
    records: Sequence[CaseRecord],
    request: SplitRequest,
    seed: int,
    earlier: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Divide the kept cases.

    Args:
        records: All records; failed and rejected ones help to tell designs but get no split.
        request: What was asked for.
        seed: Seed of the division.
        earlier: Case id to split in an earlier build of the same set; its designs stay where they are, but for splits
            that ask for extrapolation: those follow their rule.

    Returns:
        Case id to split, for every kept case.
    """
    measured = [record for record in records if record.measures is not None]
    design_of = group_designs(measured)
    kept = {record.case_id: record for record in measured if record.status == "kept"}
    group_of = design_of if request.by_design else {case_id: case_id for case_id in kept}
    groups: dict[str, list[str]] = {}
    for case_id in sorted(kept):
        groups.setdefault(group_of[case_id], []).append(case_id)
    apart = hold_out({n: [kept[i] for i in cases] for n, cases in groups.items()}, request.held_out, len(kept))
    rest = {name: cases for name, cases in groups.items() if name not in apart}
    fixed = {group_of[case]: split for case, split in sorted((earlier or {}).items()) if case in group_of}
    chosen = apart | assign_splits(rest, request.fractions, seed, fixed)
    return {case_id: chosen[name] for name, cases in groups.items() for case_id in cases}
