"""What a build says at its end: one table on the screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lpbf_data.case.record import CaseRecord
from lpbf_data.remarks import Remark, Treatment, merge_remarks
from lpbf_data.stores.manifest import count_by
from pipelines.numbers import human_bytes
from pipelines.selection.split_options import SplitRequest

_MAX_EXAMPLES = 3


def mixtures(records: Iterable[CaseRecord]) -> list[str]:
    """A sentence for each of material and machine that the kept cases mix."""
    kept = [record for record in records if record.status == "kept"]
    sentences = []
    for label, name_of in (
        ("materials", lambda r: r.run.material),
        ("machines", lambda r: r.run.machine),
    ):
        counts = count_by(kept, lambda r, f=name_of: [f(r) or "unknown"])  # type: ignore[misc]
        if len(counts) > 1:
            sentences.append(f"mixed {label}: " + ", ".join(f"{name} ({count})" for name, count in counts.items()))
    return sentences


_TENSOR_SENTENCES: Final = {
    "data": (
        Treatment.CHANGED,
        (
            "stress tensors don't have the principal stresses beside them in the order that their solver is known for, "
            "but with xz and yz exchanged; all tensors were read so"
        ),
    ),
    "unconfirmed": (
        Treatment.GUESSED,
        (
            "stress tensors don't have the principal stresses beside them in any order; they were read in the order "
            "that their solver is known for"
        ),
    ),
}


def tensor_remarks(records: Iterable[CaseRecord]) -> tuple[Remark, ...]:
    """Where the order of tensor components isn't the known one, or isn't confirmed by the principal stresses."""
    return merge_remarks(
        Remark(treatment, "tensor_order", sentence, examples=(record.case_id,))
        for record in records
        for treatment, sentence in [_TENSOR_SENTENCES.get(record.run.tensor_order_basis or "", (None, ""))]
        if treatment is not None
    )


def print_summary(records: Sequence[CaseRecord], out: str, *, seconds: float, console: Console) -> None:
    """Print what became of the cases.

    Args:
        records: Rows of the manifest.
        out: The data set.
        seconds: How long the build took.
        console: Where to print.
    """
    table = Table(title=f"data set {out}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")
    kept = [record for record in records if record.status == "kept"]
    failed = [record for record in records if record.failure is not None]
    table.add_row("found", f"{len(records):,}", f"in {seconds:.1f} s")
    table.add_row("failed", f"{len(failed):,}")
    for reason, count in count_by(failed, lambda r: [str(r.failure.failure_reason)] if r.failure else []).items():
        examples = [r for r in failed if r.failure and r.failure.failure_reason == reason][:_MAX_EXAMPLES]
        table.add_row(f"  {reason}", f"{count:,}", Text("\n".join(map(_describe_failure, examples))))
    rejected = [record for record in records if record.status == "rejected"]
    table.add_row("rejected", f"{len(rejected):,}")
    for criterion, count in count_by(rejected, lambda r: [x.criterion for x in r.rejections]).items():
        table.add_row(f"  {criterion}", f"{count:,}")
    table.add_row("kept", f"{len(kept):,}")
    for split, count in count_by(kept, lambda r: [r.placement.split if r.placement else ""]).items():
        table.add_row(f"  {split}", f"{count:,}")
    table.add_row("points", f"{sum(r.measures.num_points for r in kept if r.measures):,}")
    table.add_row("bytes", human_bytes(_stored_bytes(kept)))
    console.print(table)
    for sentence in mixtures(records):
        console.print(f"note: {sentence}")


def collect_remarks(found: Iterable[Remark], records: Iterable[CaseRecord]) -> tuple[Remark, ...]:
    """All remarks of a build: those of its sources, those of its cases, and what shows only beside other cases.

    Args:
        found: Remarks of the sources.
        records: Rows of the manifest, with the remarks of each case.
    """
    ordered = sorted(records, key=lambda r: (r.case_id, r.source.archive, r.source.member))
    own = [_of_case(remark, record.case_id) for record in ordered for remark in record.remarks]
    return merge_remarks([*found, *own, *tensor_remarks(ordered), *_equal_results(ordered)])


def _of_case(remark: Remark, case_id: str) -> Remark:
    return dataclasses.replace(remark, examples=tuple(f"{case_id}: {x}" for x in remark.examples) or (case_id,))


def _equal_results(records: Iterable[CaseRecord]) -> tuple[Remark, ...]:
    by_results: dict[str, list[str]] = {}
    for record in records:
        if record.measures is not None:
            key = repr((record.measures, sorted(record.statistics.items()), record.geometry_digests))
            by_results.setdefault(key, []).append(record.case_id)
    equal = [" = ".join(ids) for ids in by_results.values() if len(ids) > 1]
    sentence = "cases with equal results under different ids, all used as they are; drop the copies if they are copies"
    return (Remark.of_items(Treatment.KEPT, "equal_cases", sentence, equal),) if equal else ()


def say_empty_splits(records: Sequence[CaseRecord], asked: SplitRequest, console: Console) -> None:
    """Say which of the splits that were asked for stay empty, and why."""
    kept = [record for record in records if record.placement is not None]
    filled = {record.placement.split for record in kept if record.placement is not None}
    if not filled:
        return
    empty = [name for name in asked.names if name not in filled]
    rules = {name: asked.held_out[name] for name in empty if name in asked.held_out}
    idle = {name: rule for name, rule in rules.items() if not any(map(rule.finds, kept))}
    for name, rule in idle.items():
        words = f"{name}={rule.rule}:{rule.pattern}"
        console.print(f"note: the rule {words} matches no {rule.rule}; without cases: {name}")
    empty = [name for name in empty if name not in idle]
    if empty:
        designs = len({record.design_id for record in kept})
        console.print(
            f"note: no case is in the split{'s' * (len(empty) != 1)} {', '.join(empty)}: all cases of a design go into "
            f"one split, and there {'is 1 design' if designs == 1 else f'are {designs:,} designs'} for "
            f"{len(asked.names)} splits"
        )


def _describe_failure(record: CaseRecord) -> str:
    return f"{record.case_id}: {record.failure.description}" if record.failure is not None else ""


def _stored_bytes(kept: Sequence[CaseRecord]) -> int:
    shards = {}
    for record in kept:
        if record.placement is not None:
            placement = record.placement
            shards[placement.split, placement.shard] = (placement.parquet_bytes or 0) + (placement.zarr_bytes or 0)
    return sum(shards.values())
