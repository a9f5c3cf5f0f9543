"""The parameters that can be fitted, as the simulator has them, and what displacements are linear in.

A displacement is linear in the strains that cells are given: the strain inside, and its products with the shares by
which it is less along walls. Those products are the coordinates in which a fit works; the parameters come out of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import UsageError
from pipelines.simulation.materials.calibrations import Calibration, netfabb
from pipelines.simulation.materials.material import Material


@dataclass(frozen=True)
class Parameter:
    """A parameter of a calibration.

    Attributes:
        name: Its name in options and material files.
        said: What it is, for sentences.
        low: Least value.
        high: Largest value.
    """

    name: str
    said: str
    low: float
    high: float


PARAMETERS: Final = (
    Parameter("strain", "the strain of layers in their plane", -0.1, 0.0),
    Parameter("normal", "the share by which it is less normal to walls", 0.0, 1.0),
    Parameter("along", "the share by which it is less along walls", 0.0, 1.0),
)
"""Every parameter that can be fitted."""

_MIN_STRAIN: Final = 1e-4  # in size; a fit from no strain at all would have no scale


def choose_parameters(names: Sequence[str]) -> tuple[Parameter, ...]:
    """Parameters by their names, in the order of `PARAMETERS`.

    Args:
        names: What is to be fitted.

    Raises:
        UsageError: If one is unknown, or there are none.
    """
    known = [parameter.name for parameter in PARAMETERS]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"unknown --fit {', '.join(unknown)}; known are: {', '.join(known)}")
    if not names:
        raise UsageError(f"--fit names nothing; known are: {', '.join(known)}")
    return tuple(parameter for parameter in PARAMETERS if parameter.name in names)


class Parametrisation:
    """A material whose calibration is to be fitted.

    Args:
        material: Where the fit starts.
        parameters: What is fitted.
    """

    def __init__(self, material: Material, parameters: tuple[Parameter, ...]) -> None:
        self.parameters = parameters
        known = material.calibration
        if known.walls is None and any(parameter.name != "strain" for parameter in parameters):
            walls = netfabb(material.expansion).walls
            assert walls is not None
            # No effect yet, where NetFabb's walls have one: reach and form are theirs.
            known = replace(known, walls=replace(walls, normal=0.0, along=0.0))
        self._known = replace(known, strain=min(known.strain, -_MIN_STRAIN))
        self._material = material

    @property
    def start(self) -> NDArray[np.float64]:
        """The parameters before the fit, [k]."""
        return np.array([_value(self._known, parameter.name) for parameter in self.parameters])

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and largest values, [k] each."""
        return np.array([n.low for n in self.parameters]), np.array([n.high for n in self.parameters])

    @property
    def scales(self) -> NDArray[np.float64]:
        """Natural size of each coordinate, a large change of it, [k]: the strain itself, and half of it at walls."""
        strain = abs(self._known.strain)
        return np.array([strain if n.name == "strain" else 0.5 * strain for n in self.parameters])

    def coordinates(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What displacements are linear in, [k].

        Args:
            values: The parameters, [k].
        """
        strain = self._strain(values)
        return np.array([v if n.name == "strain" else strain * v for n, v in zip(self.parameters, values, strict=True)])

    def slopes(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Derivatives of the coordinates with respect to the parameters, [k, k].

        Args:
            values: The parameters, [k].
        """
        strain = self._strain(values)
        slopes = np.diag([1.0 if parameter.name == "strain" else strain for parameter in self.parameters])
        if self.parameters[0].name == "strain":
            slopes[1:, 0] = values[1:]
        return slopes

    def trials(self, values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Other parameters, one for each, from whose simulations the response to each coordinate follows, k of [k].

        Args:
            values: The parameters, [k].
        """
        trials = []
        for index, parameter in enumerate(self.parameters):
            other = values.copy()
            if parameter.name == "strain":
                other[0] *= 1.25 if values[0] > 0.75 * parameter.low else 0.8
            else:
                other[index] += 0.3 if values[index] < 0.5 else -0.3
            trials.append(other)
        return trials

    def material(self, values: NDArray[np.float64], name: str | None = None, source: str | None = None) -> Material:
        """The material with other parameters.

        Args:
            values: The parameters, [k].
            name: Name of its calibration; unchanged by default.
            source: What it was fitted on; unchanged by default.
        """
        given = {parameter.name: float(value) for parameter, value in zip(self.parameters, values, strict=True)}
        calibration = replace(self._known, strain=given.pop("strain", self._known.strain))
        if given:
            assert calibration.walls is not None
            calibration = replace(calibration, walls=replace(calibration.walls, **given))
        calibration = replace(calibration, name=name or calibration.name, source=source or calibration.source)
        return replace(self._material, calibration=calibration)

    def _strain(self, values: NDArray[np.float64]) -> float:
        return float(values[0]) if self.parameters[0].name == "strain" else self._known.strain


def _value(calibration: Calibration, name: str) -> float:
    if name == "strain":
        return calibration.strain
    assert calibration.walls is not None
    return float(getattr(calibration.walls, name))
