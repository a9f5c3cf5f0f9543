"""The published import path of [lpbf_data.case.schema][lpbf_data.case.schema]."""

from __future__ import annotations

from lpbf_data.case.schema import (
    BUILD_FIELDS,
    DEFAULT_FIELDS,
    FIELDS,
    SCHEMA_VERSION,
    SOLVER_FIELDS,
    SYMMETRIC_TENSOR,
    VECTOR,
    FieldSpec,
    resolve_fields,
)

__all__ = [
    "BUILD_FIELDS",
    "DEFAULT_FIELDS",
    "FIELDS",
    "SCHEMA_VERSION",
    "SOLVER_FIELDS",
    "SYMMETRIC_TENSOR",
    "VECTOR",
    "FieldSpec",
    "resolve_fields",
]
