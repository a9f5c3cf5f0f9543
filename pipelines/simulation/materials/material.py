"""Materials and process parameters, each number with its source.

The inherent strain of layers isn't among them: a calibration decides it ([calibrations](calibrations.py)).
Materials of a user's own come from YAML files ([material_files](material_files.py)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np

from lpbf_data.shrinkage import EXPANSIONS
from pipelines.simulation.materials.calibrations import CALIBRATIONS, Calibration, measured

Table = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Process:
    """How a layer of powder is made into a layer of the part.

    The values are those of the parameter file that NetFabb ships for Inc625 on a generic machine, as its log prints
    them, except where a machine's data sheet says otherwise.

    Attributes:
        machine: Name of the machine, part of the label of the process.
        power: Laser power, W.
        velocity: Scan speed, mm/s.
        hatch: Distance between scan lines, mm.
        layer_thickness: Powder layer, mm.
        dwell: Time between the end of a layer and the start of the next, s.
        absorption: Share of the laser's power that becomes heat in the part.
        beam_diameter: Diameter of the laser spot, mm.
        convection: Heat that free surfaces lose, W/(mm² K).
        ambient: Temperature of surroundings and fresh powder, °C.
        recoater_tolerance: Clearance below which the recoater interferes, percent of a layer.
    """

    machine: str = "Generic"
    power: float = 250.0
    velocity: float = 800.0
    hatch: float = 0.1
    layer_thickness: float = 0.04
    dwell: float = 20.0
    absorption: float = 0.4
    beam_diameter: float = 0.15
    convection: float = 2.5e-5
    ambient: float = 25.0
    recoater_tolerance: float = 80.0


@dataclass(frozen=True, slots=True)
class Material:
    """Properties of a solid material.

    Attributes:
        name: Name in options and logs.
        young: Young's modulus, MPa.
        poisson: Poisson's ratio.
        yield_strength: 0.2 % proof stress as built, in the plane of the layers, MPa.
        expansion: Coefficient of thermal expansion near room temperature, 1/K.
        density: kg/mm³.
        conductivity: Pairs of temperature in °C and conductivity in W/(mm K).
        specific_heat: Pairs of temperature in °C and specific heat in J/(kg K).
        process: Parameters that it is usually built with.
        calibration: How its layers shrink.
        sources: Where the numbers come from.
    """

    name: str
    young: float
    poisson: float
    yield_strength: float
    expansion: float
    density: float
    conductivity: Table
    specific_heat: Table
    process: Process
    calibration: Calibration
    sources: tuple[str, ...]

    @property
    def inherent_strain(self) -> tuple[float, float, float]:
        """Inherent strain along x, y and z of a new layer inside a part."""
        return self.calibration.strain, self.calibration.strain, 0.0

    @property
    def label(self) -> str:
        """Name in logs, and from there in manifests and cards; it tells any calibration but `measured`."""
        known = self.name.lower()
        return known if self.calibration.name == "measured" else f"{known} ({self.calibration.name})"

    def calibrated(self, name: str) -> Material:
        """The material with one of the named calibrations.

        Args:
            name: A key of `CALIBRATIONS`.
        """
        return replace(self, calibration=CALIBRATIONS[name](self.expansion))

    def conductivity_at(self, temperature: float) -> float:
        """Conductivity in W/(mm K), interpolated linearly and constant beyond the table."""
        return _interpolate(self.conductivity, temperature)

    def specific_heat_at(self, temperature: float) -> float:
        """Specific heat in J/(kg K), interpolated linearly and constant beyond the table."""
        return _interpolate(self.specific_heat, temperature)


def _interpolate(table: Table, temperature: float) -> float:
    temperatures, values = zip(*table, strict=True)
    return float(np.interp(temperature, temperatures, values))


_NETFABB_LOG: Final = (
    "log of a NetFabb 2024 run with Autodesk_Inc625_generic_40um.prm, github.com/kevinferg/netfabb-tools, "
    "example-result-files"
)
_AM250: Final = Process(machine="AM250", power=200.0)

_TABLE: Final = (
    Material(
        name="Ti64",
        young=113.8e3,
        poisson=0.342,
        yield_strength=1085.0,
        expansion=EXPANSIONS["Ti64"],
        density=4.43e-6,
        conductivity=((20.0, 6.7e-3),),
        specific_heat=((20.0, 526.3),),
        process=_AM250,
        calibration=measured(EXPANSIONS["Ti64"]),
        sources=(
            "modulus, Poisson's ratio, density, specific heat, expansion: MatWeb, Ti-6Al-4V (Grade 5), annealed",
            "yield strength: middle of 990 … 1180 MPa as built by LPBF, additive.tools/materials/ti-6al-4v-gr5",
            "conductivity: 6 … 8 W/(m K); laser power 200 W: Renishaw data sheet Ti6Al4V ELI-0406 for the AM250",
        ),
    ),
    Material(
        name="Inc625",
        young=150e3,
        poisson=0.278,
        yield_strength=604.0,
        expansion=EXPANSIONS["Inc625"],
        density=8.44e-6,
        conductivity=(
            (25.0, 1.00e-2),
            (200.0, 1.25e-2),
            (300.0, 1.40e-2),
            (400.0, 1.50e-2),
            (500.0, 1.60e-2),
            (600.0, 1.80e-2),
            (800.0, 2.20e-2),
            (900.0, 2.40e-2),
            (1000.0, 2.50e-2),
            (1200.0, 2.55e-2),
        ),
        specific_heat=(
            (25.0, 405.0),
            (200.0, 460.0),
            (300.0, 480.0),
            (400.0, 500.0),
            (500.0, 525.0),
            (600.0, 550.0),
            (700.0, 580.0),
            (800.0, 600.0),
            (900.0, 630.0),
            (1000.0, 650.0),
            (1100.0, 680.0),
        ),
        process=Process(),
        calibration=measured(EXPANSIONS["Inc625"]),
        sources=(f"everything: {_NETFABB_LOG}",),
    ),
    Material(
        name="SS316L",
        young=193e3,
        poisson=0.28,
        yield_strength=540.0,
        expansion=EXPANSIONS["SS316L"],
        density=7.97e-6,
        conductivity=((20.0, 1.62e-2),),
        specific_heat=((20.0, 500.0),),
        process=_AM250,
        calibration=measured(EXPANSIONS["SS316L"]),
        sources=(
            "yield strength (horizontal), expansion, density: EOS StainlessSteel 316L-4441, M 290, 20 µm, as made",
            "modulus, conductivity, specific heat: AISI 316, asm.matweb.com; Poisson's ratio: makeitfrom.com, 316L",
        ),
    ),
    Material(
        name="15-5PH",
        young=197.5e3,
        poisson=0.285,
        yield_strength=925.0,
        expansion=EXPANSIONS["15-5PH"],
        density=7.78e-6,
        conductivity=((20.0, 1.41e-2),),
        specific_heat=((20.0, 460.0),),
        process=_AM250,
        calibration=measured(EXPANSIONS["15-5PH"]),
        sources=(
            "middle of what is reported as built by LPBF, additive.tools/materials/15-5ph: yield 820 … 1030 MPa,",
            "modulus 190 … 205 GPa, expansion 10.2 … 11.4e-6 1/K, conductivity 13 … 15.2 W/(m K), density",
            "Poisson's ratio 0.27 … 0.30: azom.com, article 6786",
            "specific heat 0.11 BTU/(lb °F): customary for ferritic and martensitic chromium steels",
        ),
    ),
    Material(
        name="AlSi10Mg",
        young=75e3,
        poisson=0.33,
        yield_strength=270.0,
        expansion=EXPANSIONS["AlSi10Mg"],
        density=2.67e-6,
        conductivity=((20.0, 0.103),),
        specific_heat=((20.0, 920.0),),
        process=_AM250,
        calibration=measured(EXPANSIONS["AlSi10Mg"]),
        sources=(
            "modulus, yield strength, conductivity, specific heat, density: EOS Aluminium AlSi10Mg as built, XY",
            "Poisson's ratio: customary for aluminium alloys",
            "expansion 20 … 21e-6 1/K: Renishaw data sheet AlSi10Mg-0403",
        ),
    ),
)

MATERIALS: Final[Mapping[str, Material]] = MappingProxyType({material.name: material for material in _TABLE})
"""Every material by name, with the calibration `measured`."""
