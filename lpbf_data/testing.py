"""Hypothesis strategies for cases, for the tests of this project and of those who build on it (needs hypothesis)."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lpbf_data.case.case import Case, Scalar
from lpbf_data.case.record import ATTRIBUTE_TYPES
from lpbf_data.case.schema import FIELDS, FieldSpec

_FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
_SCALARS: dict[type, st.SearchStrategy[Any]] = {
    str: st.text(max_size=12),
    int: st.integers(0, 2**40),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
}


@st.composite
def cases(
    draw: st.DrawFn, *, fields: tuple[FieldSpec, ...] = tuple(FIELDS.values()), case_id: str | None = None
) -> Case:
    """Any valid case: any finite numbers on any connectivity, whatever a solver would think of it.

    Args:
        draw: Given by hypothesis.
        fields: Fields that the case has.
        case_id: Its id; any text by default.
    """
    num_points, num_cells = draw(st.integers(1, 24)), draw(st.integers(1, 12))
    # Hypothesis chooses a handful of numbers and a seed that spreads them: to draw every number would be too slow.
    pool = draw(hnp.arrays(np.float32, 8, elements=_FINITE))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def floats(*shape: int) -> NDArray[np.float32]:
        return rng.choice(pool, shape)

    values = {}
    for spec in fields:
        count = num_points if spec.location == "point" else num_cells
        values[spec.name] = floats(count, spec.num_components) if spec.components else floats(count)
    attributes: dict[str, Scalar] = {
        name: draw(st.none() | _SCALARS[kind]) if kind is not int else draw(_SCALARS[int])
        for name, kind in ATTRIBUTE_TYPES.items()
    }
    attributes |= {"num_points": num_points, "num_cells": num_cells}
    return Case(
        case_id=case_id or draw(st.text(min_size=1, max_size=20)),
        points=floats(num_points, 3),
        cells=rng.integers(0, num_points, (num_cells, 8), dtype=np.int32),
        fields=values,
        attributes=attributes,
    )
