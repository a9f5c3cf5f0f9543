"""Records of a data set, with hostile text in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lpbf_data.case.record import CaseRecord
from lpbf_data.stores.manifest import decode_manifest

HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "\"><img src=x onerror='window.pwned=1'>",
    "{{ 7*7 }} ${7*7} <!-- --> &lt;b&gt;",
    "деталь 部品 قطعة 🔧",
    "a|b `c` [d](javascript:window.pwned=1) *e*",
)
HOSTILE_LOG = "*** ERROR: 1\n</script><script>window.pwned=1</script>\n\nAnalysis terminated"


def records_of(dataset: Path) -> tuple[CaseRecord, ...]:
    return decode_manifest((dataset / "manifest.parquet").read_bytes()).records


def hostile_records(dataset: Path) -> list[CaseRecord]:
    """Records with hostile text in every field that takes text."""
    records = list(records_of(dataset))
    for number, words in enumerate(HOSTILE):
        record = records[number]
        run = dataclasses.replace(record.run, material=words, machine=words, solver_version=words)
        records[number] = dataclasses.replace(record, case_id=words, design_id=words, run=run)
    failed = next(i for i, record in enumerate(records) if record.failure is not None)
    failure = records[failed].failure
    assert failure is not None
    records[failed] = dataclasses.replace(
        records[failed], failure=dataclasses.replace(failure, failure_detail=HOSTILE[0])
    )
    return records
