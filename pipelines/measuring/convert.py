"""One case, from its files to a record and to the `Case` that is stored. Pure functions; they know nothing of Dask."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord, Failure, attributes_of, is_case_id
from lpbf_data.case.schema import BUILD_FIELDS, DEFAULT_FIELDS, FieldSpec
from lpbf_data.errors import CaseError, FailureReason
from lpbf_data.remarks import merge_remarks
from pipelines.measuring.fingerprint import geometry_digests
from pipelines.measuring.measure import field_statistics, measure_case, measured_specs
from pipelines.netfabb.run import NetfabbRun
from pipelines.sources.case_files import CaseLocation, is_unchanged, open_case
from pipelines.sources.privacy import strip_local_paths


@dataclass(frozen=True, slots=True)
class Measured:
    """What measuring a case gives.

    Attributes:
        record: Its record: measured, or failed with the reason.
        reductions: The build reduced onto the finished part, one array [N] for each of BUILD_FIELDS; None when failed.
    """

    record: CaseRecord
    reductions: tuple[NDArray[np.float32], ...] | None


def failed(location: CaseLocation, error: Exception) -> CaseRecord:
    """The record of a case that can't be used.

    Args:
        location: Where it lies.
        error: What went wrong; of anything but a `CaseError` the type and the line of code are given, for reports.
    """
    if isinstance(error, CaseError):
        failure = Failure(error.reason, strip_local_paths(error.detail), error.path, error.offset)
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{frame.filename.replace(chr(92), '/').rpartition('/')[2]}:{frame.lineno}"
        detail = f"{type(error).__name__} at {line}: {error}"
        failure = Failure(FailureReason.UNEXPECTED_ERROR, strip_local_paths(detail)[:500])
    return CaseRecord(case_id=location.case_id, source=location.source, failure=failure)


def measure_location(location: CaseLocation) -> Measured:
    """Read one case, all build frames included, and measure it.

    Args:
        location: Where it lies.

    Returns:
        A record in every event; a case that can't be used has its reason there.
    """
    try:
        if not is_case_id(location.case_id):
            detail = f"a case can't be called {location.case_id!r}; rename its folder or archive"
            raise CaseError(FailureReason.UNSAFE_MEMBER, detail)
        run = NetfabbRun(location.case_id, open_case(location))
        finished = run.read_case(DEFAULT_FIELDS)
        build = run.reduce_build(finished.points)
        info = run.info()
        reductions = (build.clearance_min, build.displacement_z_max)
        case = _with_reductions(finished, reductions)
        record = CaseRecord(
            case_id=location.case_id,
            source=dataclasses.replace(
                location.source, source_bytes=run.files.bytes_read, source_digest=run.files.digest
            ),
            run=info,
            measures=measure_case(case, build, info.recoater_tolerance),
            statistics=field_statistics(case, measured_specs()),
            geometry_digests=geometry_digests(case),
            remarks=merge_remarks(run.remarks),
            package_version=importlib.metadata.version("lpbf-flare"),
        )
    except Exception as error:  # noqa: BLE001 (one broken case must not stop a build)
        return Measured(failed(location, error), None)
    return Measured(record, reductions)


def _with_reductions(case: Case, reductions: Sequence[NDArray[np.float32]]) -> Case:
    return dataclasses.replace(case, fields=dict(case.fields) | dict(zip(BUILD_FIELDS, reductions, strict=True)))


def load_case(
    location: CaseLocation,
    record: CaseRecord,
    reductions: Sequence[NDArray[np.float32]],
    specs: Sequence[FieldSpec],
) -> Case:
    """Read the finished part of a measured case, as it is stored.

    Args:
        location: Where it lies.
        record: What was measured; its scalars travel with the case.
        reductions: The build reduced onto its points, in the order of BUILD_FIELDS.
        specs: Fields to read.

    Raises:
        CaseError: If it can't be read, or isn't what was measured any more.
    """
    files = open_case(location, anew=True)
    if not is_unchanged(files, location.signature):
        raise CaseError(FailureReason.SOURCE_CHANGED, "the files changed after they were measured")
    finished = NetfabbRun(location.case_id, files).read_case([spec.name for spec in specs])
    case = _with_reductions(finished, reductions)
    return dataclasses.replace(case, attributes=attributes_of(record))
