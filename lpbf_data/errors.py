"""The error classes of the project, one for each kind of cause.

Every error that a user can meet derives from [LpbfError][lpbf_data.errors.LpbfError]; its text is one or two
sentences that say what is wrong, where, and what to do. Command lines print it and exit with a non-zero status;
a library caller catches the class.
"""

from __future__ import annotations

from enum import StrEnum


class LpbfError(Exception):
    """Base of all errors raised on purpose by this project."""


class UsageError(LpbfError):
    """The user asked for what can't be done: an option out of range, a missing folder, a split that doesn't exist."""


class GeometryError(LpbfError):
    """A surface that can't be meshed: not watertight, empty, or with walls thinner than the cells."""


class SchemaError(LpbfError):
    """Stored data that doesn't follow the published schema, or follows one this version doesn't know."""


class StoreError(LpbfError):
    """A shard, part or manifest that is missing, cut short or altered."""


class MissingFileError(StoreError):
    """A file that a data set should have and hasn't."""


class UnreachableError(StoreError):
    """A file that the operating system, the network or a server refuses at the moment; its content may be intact."""


class FailureReason(StrEnum):
    """Why one simulated case could not become part of a data set."""

    SOLVER_TERMINATED = "solver_terminated"
    MISSING_FILE = "missing_file"
    MISSING_VARIABLE = "missing_variable"
    TRUNCATED_FILE = "truncated_file"
    MALFORMED_FILE = "malformed_file"
    SIZE_MISMATCH = "size_mismatch"
    UNSUPPORTED_ELEMENT = "unsupported_element"
    UNSUPPORTED_DIALECT = "unsupported_dialect"
    NON_FINITE = "non_finite"
    DEGENERATE_CELL = "degenerate_cell"
    INDEX_OUT_OF_RANGE = "index_out_of_range"
    INCONSISTENT_STEPS = "inconsistent_steps"
    INCONSISTENT_FRAMES = "inconsistent_frames"
    PART_NOT_RELEASED = "part_not_released"
    EMPTY_MESH = "empty_mesh"
    DAMAGED_ARCHIVE = "damaged_archive"
    UNSAFE_MEMBER = "unsafe_member"
    OVERSIZED_MEMBER = "oversized_member"
    DUPLICATE_CASE = "duplicate_case"
    UNREADABLE_FILE = "unreadable_file"
    SOURCE_CHANGED = "source_changed"
    TIME_LIMIT = "time_limit"
    WORKER_KILLED = "worker_killed"
    UNEXPECTED_ERROR = "unexpected_error"


class CaseError(LpbfError):
    """One case is unusable; the rest of a build goes on.

    Attributes:
        reason: The kind of failure.
        detail: A sentence for the user.
        case_id: The case, when known.
        path: The file at fault, relative to the case, when there is one.
        offset: Byte position in that file, when there is one.
    """

    def __init__(
        self,
        reason: FailureReason,
        detail: str,
        *,
        case_id: str | None = None,
        path: str | None = None,
        offset: int | None = None,
    ) -> None:
        self.reason = reason
        self.detail = detail
        self.case_id = case_id
        self.path = path
        self.offset = offset
        where = "" if path is None else f" in {path}"
        at = "" if offset is None else f" at byte {offset}"
        case = "" if case_id is None else f"case {case_id}: "
        super().__init__(f"{case}{reason}: {detail}{at}{where}")

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        # An exception with keyword-only arguments can't be rebuilt from args alone when it crosses processes.
        return _rebuild_case_error, (self.reason, self.detail, self.case_id, self.path, self.offset)


def _rebuild_case_error(
    reason: FailureReason, detail: str, case_id: str | None, path: str | None, offset: int | None
) -> CaseError:
    return CaseError(reason, detail, case_id=case_id, path=path, offset=offset)
