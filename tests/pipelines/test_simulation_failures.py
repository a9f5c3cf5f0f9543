"""When a build would not go on: where the limits lie, and what is said."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.simulation.results.failures import MAX_DISPLACEMENT, MIN_CLEARANCE, failure_of

STILL = np.zeros((3, 3))
CLEAR = np.full(3, 100.0)


def test_a_build_goes_on_up_to_both_limits_and_no_further() -> None:
    moved = STILL.copy()
    moved[1] = (0.6 * MAX_DISPLACEMENT, 0.0, -0.8 * MAX_DISPLACEMENT)  # as long as the limit, in two directions
    low = CLEAR.copy()
    low[2] = MIN_CLEARANCE
    assert failure_of(moved, low) is None
    assert failure_of(1.001 * moved, low) == (
        "The part is displaced by 2.00 mm, more than the 2 mm that a build survives"
    )
    assert failure_of(moved, low - 1) == (
        "The recoater blade jams: its clearance is -101 percent of a powder layer, "
        "less than the -100 percent that a build survives"
    )


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_no_number_does_not_survive(broken: float) -> None:
    assert failure_of(np.full((2, 3), broken), CLEAR) is not None
    assert failure_of(STILL, np.array([-broken])) is not None


def test_a_part_that_no_blade_passes_is_judged_by_its_displacement() -> None:
    assert failure_of(STILL, np.empty(0)) is None
    assert failure_of(STILL + 9.0, np.empty(0)) is not None
