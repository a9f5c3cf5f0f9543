"""The fit: a few simulations, and from their differences how displacements respond to each parameter.

With r = (measured - simulated) / sigma and q the coordinates of [parametrisation](parametrisation.py), r is linear in q
as long as the simulator is: k + 1 simulations give the Jacobian, the next one confirms the solution. Where it isn't
linear, each further simulation corrects the Jacobian (Broyden 1965) and the next step starts from there. Directions in
q that the values don't determine, as the Jacobian's singular values show, stay where they were.

A part that is cut free whole has no position of its own: the rigid-body motion that fits best is taken out of r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from lpbf_data.errors import LpbfError
from pipelines.calibrating.measured_points import units_of_factor
from pipelines.calibrating.parametrisation import Parametrisation

Simulate = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Simulated values at the measured points, [n], from parameters [k]."""

MAX_STEPS: Final = 6
"""Steps after which a fit that still moves is given up."""

DETERMINED: Final = 0.5
"""Standard uncertainty up to which a coordinate counts as determined, over its natural size.

Natural sizes are those of `Parametrisation.scales`.
"""

_MIN_SINGULAR: Final = 1e-4  # of the largest singular value: below, solver errors decide
_SETTLED: Final = (0.02, 1e-4)  # standard uncertainties, natural sizes: a step so short ends the fit
_MIN_GAIN: Final = 1e-3  # of the sum of squares
_AT_BOUND: Final = 1e-6
_FAR: Final = 8.0  # times too large or too small: another unit, not another machine
_ALIKE: Final = 0.9  # correlation from which such a factor means something


class FitError(LpbfError):
    """Measured values from which nothing can be fitted."""


@dataclass(frozen=True)
class Values:
    """Measured values that the fit is to meet.

    Attributes:
        measured: mm, [n].
        sigmas: Standard uncertainty, mm, [n]; None where it isn't known: the residual of the fit is taken for it.
        motion: Values of rigid-body motions that don't count, [n, m].
    """

    measured: NDArray[np.float64]
    sigmas: NDArray[np.float64] | None
    motion: NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """The result of a fit.

    Attributes:
        start: Parameters before, [k].
        parameters: Parameters after, [k].
        uncertainty: Standard uncertainty of each, [k]; of directions that are determined alone.
        before: Simulated values before, moved as a body to fit best, mm, [n].
        after: The same after.
        rms: Root mean square of measured less simulated, before and after, mm.
        over_sigma: The same in standard uncertainties; None where nothing is known of them.
        singular_values: Of the Jacobian: standard uncertainties by which a natural size of a direction shows, [k].
        undetermined: What the values don't determine, in sentences.
        simulations: How many were run.
    """

    start: NDArray[np.float64]
    parameters: NDArray[np.float64]
    uncertainty: NDArray[np.float64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    rms: tuple[float, float]
    over_sigma: tuple[float, float] | None
    singular_values: NDArray[np.float64]
    undetermined: tuple[str, ...]
    simulations: int


@dataclass(frozen=True)
class _Directions:
    """Singular values of the whitened Jacobian in natural sizes, and which directions they determine."""

    left: NDArray[np.float64]
    singular: NDArray[np.float64]
    right: NDArray[np.float64]
    noise: float
    determined: NDArray[np.bool_]


def fit(parametrisation: Parametrisation, values: Values, simulate: Simulate) -> Fit:
    """Fit a material's parameters to measured values.

    Args:
        parametrisation: The material and what is fitted.
        values: What was measured.
        simulate: Runs a simulation.

    Raises:
        FitError: If there are too few values, they are in another unit, don't depend on the parameters, or no
            parameters fit better than those of the start.
    """
    return _Fitting(parametrisation, values, simulate).run()


class _Fitting:
    def __init__(self, parametrisation: Parametrisation, values: Values, simulate: Simulate) -> None:
        self.parametrisation, self.values, self.count = parametrisation, values, 0
        self._simulate = simulate
        self._weights = 1 / values.sigmas if values.sigmas is not None else np.ones(len(values.measured))
        left, sizes, _ = np.linalg.svd(self._weights[:, None] * values.motion, full_matrices=False)
        self._motion = left[:, sizes > 1e-9 * sizes.max(initial=0.0)]
        needed = len(parametrisation.parameters) + self._motion.shape[1]
        if len(values.measured) < needed:
            moved = f" and {self._motion.shape[1]} motions of the part that was cut free" if self._motion.size else ""
            raise FitError(
                f"{len(values.measured)} measured values are too few to fit {len(parametrisation.parameters)} "
                f"parameters{moved}; measure at least {needed}, or fit fewer (--fit strain)"
            )
        self._freedom = len(values.measured) - needed

    def run(self) -> Fit:
        start = parameters = self.parametrisation.start
        before = simulated = self._simulated(start)
        self._check_unit(before)
        jacobian = self._first_jacobian(start, before)
        ways = self._directions(jacobian, simulated)
        for _ in range(MAX_STEPS):
            proposed = self._step(ways, parameters, simulated)
            if self._is_short(ways, parameters, proposed) and simulated is not before:
                break
            found = self._simulated(proposed)
            jacobian = self._corrected(jacobian, parameters, proposed, found - simulated)
            if self._cost(found) >= self._cost(simulated) and simulated is not before:
                break
            parameters, simulated = proposed, found
            ways = self._directions(jacobian, simulated)
        self._check_gain(before, simulated)
        return self._result(ways, (start, parameters), (before, simulated))

    def _simulated(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        self.count += 1
        return self._simulate(parameters)

    def _white(self, differences: NDArray[np.float64]) -> NDArray[np.float64]:
        """Differences [n] or [n, k] in standard uncertainties, without rigid-body motion."""
        scaled = (self._weights * differences.T).T
        white: NDArray[np.float64] = scaled - self._motion @ (self._motion.T @ scaled)
        return white

    def _rest(self, simulated: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._white(self.values.measured - simulated)

    def _cost(self, simulated: NDArray[np.float64]) -> float:
        return float(np.sum(self._rest(simulated) ** 2))

    def _check_unit(self, simulated: NDArray[np.float64]) -> None:
        given, expected = self._white(self.values.measured), self._white(simulated)
        sizes = float(np.linalg.norm(given)), float(np.linalg.norm(expected))
        if not all(sizes):
            raise FitError("every measured value is the same, or no measured point moves: nothing can be fitted")
        alike, factor = float(given @ expected) / (sizes[0] * sizes[1]), float(given @ expected) / sizes[1] ** 2
        if abs(alike) < _ALIKE:
            return
        if factor < 0:
            raise FitError(
                "the measured values have the opposite sign of what is simulated: value_mm is the displacement along "
                "the coordinate axis, upwards for z"
            )
        if not 1 / _FAR < factor < _FAR:
            units = units_of_factor(factor)
            guess = f"as they would be in {units}; value_mm must be in mm" if units else "value_mm must be in mm"
            raise FitError(f"the measured values are {factor:.3g} times those that are simulated, {guess}")

    def _first_jacobian(self, start: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
        trials = self.parametrisation.trials(start)
        known = self.parametrisation.coordinates(start)
        moved = np.stack([self.parametrisation.coordinates(trial) - known for trial in trials], axis=1)
        changes = np.stack([self._simulated(trial) - before for trial in trials], axis=1)
        return changes @ np.linalg.inv(moved)

    def _corrected(
        self,
        jacobian: NDArray[np.float64],
        parameters: NDArray[np.float64],
        proposed: NDArray[np.float64],
        change: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """The Jacobian that would have predicted the last step (Broyden's update)."""
        scales = self.parametrisation.scales
        step = (self.parametrisation.coordinates(proposed) - self.parametrisation.coordinates(parameters)) / scales
        length = float(step @ step)
        if length < _SETTLED[1] ** 2:
            return jacobian
        surprise = change - (jacobian * scales) @ step
        return jacobian + np.outer(surprise, step / length) / scales

    def _directions(self, jacobian: NDArray[np.float64], simulated: NDArray[np.float64]) -> _Directions:
        left, singular, right = np.linalg.svd(self._white(jacobian * self.parametrisation.scales), full_matrices=False)
        rest = self._rest(simulated)
        left_over = float(np.linalg.norm(rest - left @ (left.T @ rest)))
        noise = left_over / np.sqrt(self._freedom) if self._freedom else 0.0
        if self.values.sigmas is not None:
            noise = max(1.0, noise)
        determined = (singular > _MIN_SINGULAR * singular[0]) & (noise < DETERMINED * singular)
        if not determined.any():
            what = ", ".join(parameter.said for parameter in self.parametrisation.parameters)
            raise FitError(
                f"the measured values don't determine {what}: a change as large as itself changes them by "
                f"{singular[0] / noise if noise else 0:.2g} of their uncertainty; measure where the part moves more"
            )
        return _Directions(left, singular, right, noise, determined)

    def _step(
        self, ways: _Directions, parameters: NDArray[np.float64], simulated: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Parameters within their bounds that fit best where the response is linear; undetermined directions stay."""
        parametrisation, scales = self.parametrisation, self.parametrisation.scales
        here, first = parametrisation.coordinates(parameters), parametrisation.coordinates(parametrisation.start)
        weights = np.where(ways.determined, ways.singular, ways.singular[0])
        wanted = np.where(ways.determined, ways.left.T @ self._rest(simulated), 0.0)
        origin = np.where(ways.determined, ways.right @ (here / scales), ways.right @ (first / scales))

        def differences(trial: NDArray[np.float64]) -> NDArray[np.float64]:
            along = ways.right @ (parametrisation.coordinates(trial) / scales)
            return np.asarray((weights * (along - origin) - wanted) / weights[0])

        def slopes(trial: NDArray[np.float64]) -> NDArray[np.float64]:
            turned = ways.right @ (parametrisation.slopes(trial) / scales[:, None])
            return np.asarray(weights[:, None] * turned / weights[0])

        sizes = np.array(
            [scale if n.name == "strain" else 0.5 for n, scale in zip(parametrisation.parameters, scales, strict=True)]
        )
        found = least_squares(
            differences,
            parameters,
            slopes,
            bounds=parametrisation.bounds,
            x_scale=sizes,
            xtol=1e-12,
            ftol=1e-14,
            gtol=1e-12,
        ).x
        low, high = parametrisation.bounds
        found = np.where(found - low < _AT_BOUND * (high - low), low, found)
        return np.where(high - found < _AT_BOUND * (high - low), high, found)

    def _is_short(self, ways: _Directions, parameters: NDArray[np.float64], proposed: NDArray[np.float64]) -> bool:
        coordinates, scales = self.parametrisation.coordinates, self.parametrisation.scales
        step = (coordinates(proposed) - coordinates(parameters)) / scales
        shown = float(np.linalg.norm(ways.singular * (ways.right @ step)))
        return shown < _SETTLED[0] * ways.noise or float(np.abs(step).max()) < _SETTLED[1]

    def _check_gain(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
        costs = self._cost(before), self._cost(after)
        if costs[1] > (1 - _MIN_GAIN) * costs[0]:
            rms = self._rms(self.fitted(before))
            raise FitError(
                f"the fit doesn't improve on where it started: measured and simulated values differ by {rms:.3g} mm "
                "(root mean square) with every other parameter too; keep the material as it is, or fit another "
                "parameter (--fit)"
            )

    def fitted(self, simulated: NDArray[np.float64]) -> NDArray[np.float64]:
        """Simulated values, moved as a body to fit the measured ones best."""
        rest = self._weights * (self.values.measured - simulated)
        moved: NDArray[np.float64] = simulated + self._motion @ (self._motion.T @ rest) / self._weights
        return moved

    def _rms(self, simulated: NDArray[np.float64]) -> float:
        return float(np.sqrt(np.mean((self.values.measured - simulated) ** 2)))

    def _result(
        self,
        ways: _Directions,
        parameters: tuple[NDArray[np.float64], NDArray[np.float64]],
        simulated: tuple[NDArray[np.float64], NDArray[np.float64]],
    ) -> Fit:
        before, after = (self.fitted(values) for values in simulated)
        over_sigma = None
        if self.values.sigmas is not None:
            one, other = (float(np.sqrt(self._cost(v) / len(self.values.measured))) for v in simulated)
            over_sigma = one, other
        return Fit(
            *parameters,
            self._uncertainty(ways, parameters[1]),
            before,
            after,
            (self._rms(before), self._rms(after)),
            over_sigma,
            ways.singular / ways.noise if ways.noise else np.full(len(ways.singular), np.inf),
            (*_undetermined(self.parametrisation, ways), *self._at_bounds(parameters[1])),
            self.count,
        )

    def _uncertainty(self, ways: _Directions, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        spread = ways.right[ways.determined].T * (ways.noise / ways.singular[ways.determined])
        # From coordinates to parameters; directions of parameters that don't act (no strain) have no say.
        turned = np.linalg.pinv(self.parametrisation.slopes(parameters)) @ (
            self.parametrisation.scales[:, None] * spread
        )
        return np.asarray(np.linalg.norm(turned, axis=1))

    def _at_bounds(self, parameters: NDArray[np.float64]) -> list[str]:
        ended = []
        for parameter, value in zip(self.parametrisation.parameters, parameters, strict=True):
            if value in (parameter.low, parameter.high):
                if parameter.name == "strain":
                    raise FitError(
                        f"{parameter.said} would have to leave {parameter.low:g} to {parameter.high:g}: the values "
                        "don't belong to this part and cut, or aren't in mm"
                    )
                ended.append(f"{parameter.said} ended at {value:g}, its bound, and would go further")
        return ended


def _undetermined(parametrisation: Parametrisation, ways: _Directions) -> list[str]:
    sentences = []
    for direction, singular in zip(ways.right[~ways.determined], ways.singular[~ways.determined], strict=True):
        shares = np.abs(direction)
        involved = [
            n.said for n, share in zip(parametrisation.parameters, shares, strict=True) if share > 0.25 * shares.max()
        ]
        share = f"{singular / ways.noise:.2g} of their uncertainty" if ways.noise else ""
        shown = f" (a change as large as itself changes the values by {share})" if share else ""
        if len(involved) == 1:
            sentences.append(f"the data don't determine {involved[0]}, which keeps its value{shown}")
        else:
            sentences.append(
                f"the data don't distinguish {' from '.join(involved)}: a change of one is compensated by the other, "
                f"and the combination that isn't determined keeps its value{shown}"
            )
    return sentences
