"""Families of CAD-like parts: each a solid made of boxes, cylinders and revolved or extruded profiles.

Lengths are in units of about a millimetre; a part is scaled afterwards. Every family has parameters with ranges, from
which a design draws; the bodies of one design vary its parameters a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from manifold3d import CrossSection, JoinType, Manifold

from pipelines.simulation.parts.solids import SEGMENTS, box, cut, post, ring, rod, settle, spaced, union

Parameters = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Range:
    """Where a parameter is drawn from.

    Attributes:
        low: Least value.
        high: Largest value.
        whole: Whether it counts something.
    """

    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True)
class Family:
    """A family of parts.

    Attributes:
        name: Its name.
        ranges: Ranges of its parameters.
        build: Solid of some parameters.
    """

    name: str
    ranges: Mapping[str, Range]
    build: Callable[[Parameters], Manifold]


def _ribbed_plate(p: Parameters) -> Manifold:
    width, thick = p["width"], p["thickness"]
    plate = box((0, 60), (0, width), (0, thick))
    ribs = [
        box((x - p["rib_thickness"] / 2, x + p["rib_thickness"] / 2), (0, width), (0, thick + p["rib_height"]))
        for x in spaced(p["ribs"], 0, 60)
    ]
    holes = [
        post(x, y, (-1, thick + 1), p["hole_radius"])
        for x in spaced(p["ribs"] + 1, -30 / p["ribs"], 60 + 30 / p["ribs"])
        for y in spaced(p["holes"], 0, width)
    ]
    return union(cut(plate, *holes), *ribs)


def _plate(p: Parameters) -> Manifold:
    width, thick, corner = p["width"], p["thickness"], p["corner"]
    outline = CrossSection.square((60 - 2 * corner, width - 2 * corner)).translate((corner, corner))
    body = outline.offset(corner, JoinType.Round, 2.0, SEGMENTS).extrude(thick)
    holes = [
        post(x, y, (-1, thick + 1), p["hole"] * min(25 / p["columns"], width / (2 * p["rows"])))
        for x in spaced(p["columns"], 5, 55)
        for y in spaced(p["rows"], 0, width)
    ]
    return cut(settle(body), *holes)


def _flange(p: Parameters) -> Manifold:
    outer, hub = p["radius"], p["radius"] * p["hub_share"]
    disc = union(post(0, 0, (0, p["thickness"]), outer), post(0, 0, (0, p["thickness"] + p["hub_height"]), hub))
    bore = post(0, 0, (-1, 100), hub * p["bore_share"])
    circle = (outer + hub) / 2
    bolt = min(0.3 * (outer - hub), 0.35 * math.pi * circle / p["bolts"])
    return cut(disc, bore, *(post(x, y, (-1, 100), bolt) for x, y in ring(p["bolts"], circle)))


def _bracket(p: Parameters) -> Manifold:
    width, thick, height = p["width"], p["thickness"], p["height"]
    foot, wall = box((0, 50), (0, width), (0, thick)), box((0, thick), (0, width), (0, height))
    profile = CrossSection([[(0, 0), (0.8 * 50, 0), (0, 0.8 * height)]])
    web = p["web_thickness"]
    gussets = [
        profile.extrude(web).rotate((90, 0, 0)).translate((0, y + web / 2, 0)) for y in spaced(p["gussets"], 0, width)
    ]
    radius = min(p["hole_radius"], 0.35 * width / p["holes"])  # holes that meet would cut the foot in two
    holes = [post(38, y, (-1, thick + 1), radius) for y in spaced(p["holes"], 0, width)]
    return union(cut(foot, *holes), wall, *gussets)


def _bridge(p: Parameters) -> Manifold:
    width, deck, height = p["width"], p["deck"], p["height"]
    body = box((0, 60), (0, width), (0, height + deck))
    bay = (60 - (p["bays"] + 1) * p["pier"]) / p["bays"]
    for i in range(round(p["bays"])):
        left = p["pier"] + i * (bay + p["pier"])
        spring = height - min(height, bay / 2) * p["arch"]
        arch = Manifold.cylinder(width + 2, 1, 1, SEGMENTS).rotate((-90, 0, 0))
        arch = arch.scale((bay / 2, 1, max(height - spring, 1e-3))).translate((left + bay / 2, -1, spring))
        body = cut(body, box((left, left + bay), (-1, width + 1), (-1, spring)), arch)
    return body


def _tee(p: Parameters) -> Manifold:
    outer, wall, length = p["radius"], p["wall"], p["length"]
    branch = outer * p["branch_share"]
    height = length * p["branch_height"]

    def across(radius: float) -> Manifold:
        side = Manifold.cylinder(outer + p["branch_length"], radius, radius, SEGMENTS).rotate((0, 90, 0))
        return side.translate((0, 0, height))

    solid = union(post(0, 0, (0, length), outer), across(branch))
    return cut(solid, post(0, 0, (-1, length + 1), outer - wall), across(max(branch - wall, 0.4 * branch)))


def _truss(p: Parameters) -> Manifold:
    nx, ny, nz = (round(p[name]) for name in ("cells_x", "cells_y", "cells_z"))
    size, radius = 60 / max(nx, ny, nz), p["slenderness"] * 60 / max(nx, ny, nz)
    bars: list[Manifold] = []
    for i in range(nx + 1):
        for j in range(ny + 1):
            for k in range(nz + 1):
                here = (i * size, j * size, k * size)
                for step in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)):
                    if p["diagonals"] < 0.5 and sum(step) == 2:
                        continue
                    there = (i + step[0], j + step[1], k + step[2])
                    if there[0] <= nx and there[1] <= ny and there[2] <= nz:
                        bars.append(rod(here, (there[0] * size, there[1] * size, there[2] * size), radius))
    frame = settle(union(*bars).trim_by_plane((0, 0, 1), 0.0))
    return union(frame, box((0, nx * size), (0, ny * size), (0, radius)))


def _housing(p: Parameters) -> Manifold:
    width, height, wall, floor = p["width"], p["height"], p["wall"], p["floor"]
    hollow = box((wall, 60 - wall), (wall, width - wall), (floor, height + 1))
    shell = cut(box((0, 60), (0, width), (0, height)), hollow)
    boss = min(0.12 * width, 6.0)
    inset = wall + 0.7 * boss
    bosses = [post(x, y, (0, 0.8 * height), boss) for x in (inset, 60 - inset) for y in (inset, width - inset)]
    drills = [post(x, y, (floor, height), 0.45 * boss) for x in (inset, 60 - inset) for y in (inset, width - inset)]
    window = p["window"]
    opening = box(
        (30 - 20 * window, 30 + 20 * window), (-1, 2 * wall), (0.35 * height, 0.35 * height + 0.5 * height * window)
    )
    inner = [box((x - wall / 2, x + wall / 2), (0, width), (0, 0.5 * height)) for x in spaced(p["walls"], 0, 60)]
    inner = inner if p["walls"] >= 1 else []
    return cut(union(shell, *bosses, *inner), *drills, opening)


def _cantilever(p: Parameters) -> Manifold:
    width, arm, height = p["width"], p["arm_thickness"], p["height"]
    column = box((0, p["column"]), (0, width), (0, height))
    arms = []
    for i in range(round(p["arms"])):
        top = height * (1 - 0.4 * i / max(1, round(p["arms"])))
        reach = p["reach"] * (1 - p["taper"] * i / max(1, round(p["arms"])))
        profile = [(0, top - 2.5 * arm), (p["column"], top - 2.5 * arm), (p["column"] + reach, top - arm)]
        profile += [(p["column"] + reach, top), (0, top)]
        solid = CrossSection([profile]).extrude(width).rotate((90, 0, 0)).translate((0, width, 0))
        arms.append(solid)
    return union(column, box((0, p["column"] + 0.5 * p["reach"]), (0, width), (0, arm)), *arms)


def _heat_sink(p: Parameters) -> Manifold:
    width, base = p["width"], p["base"]
    fins = [
        box((x - p["fin"] / 2, x + p["fin"] / 2), (0, width), (0, base + p["fin_height"]))
        for x in spaced(p["fins"], 0, 60)
    ]
    slots = [box((-1, 61), (y - p["slot"] / 2, y + p["slot"] / 2), (base, 200)) for y in spaced(p["slots"], 0, width)]
    tower = union(box((0, 60), (0, width), (0, base)), *fins)
    return cut(tower, *slots) if p["slots"] >= 1 else tower


def _gear(p: Parameters) -> Manifold:
    teeth, root = round(p["teeth"]), 30 * p["root_share"]
    outline: list[tuple[float, float]] = []
    for i in range(teeth):
        for offset, radius in ((-0.32, root), (-0.16, 30.0), (0.16, 30.0), (0.32, root)):
            angle = 2 * math.pi * (i + offset) / teeth
            outline.append((radius * math.cos(angle), radius * math.sin(angle)))
    wheel = CrossSection([outline]).extrude(p["face"], 8, p["helix"])
    hub = post(0, 0, (0, p["face"] + p["hub_height"]), 0.42 * root)
    pockets = [post(x, y, (p["web"], 100), 0.19 * root) for x, y in ring(p["pockets"], 0.68 * root)]
    return cut(union(cut(wheel, *pockets), hub), post(0, 0, (-1, 200), 0.24 * root))


def _shaft(p: Parameters) -> Manifold:
    radii = [p["end_radius"], p["shoulder_radius"], p["collar_radius"], p["neck_radius"]]
    lengths = [p["end_length"], p["shoulder_length"], p["collar_length"], p["neck_length"]]
    outline, height = [(0.0, 0.0)], 0.0
    for radius, length in zip(radii, lengths, strict=True):
        outline += [(radius, height), (radius, height + length)]
        height += length
    solid = CrossSection([[*outline, (0.0, height)]]).revolve(SEGMENTS)
    key = box((0.6 * p["end_radius"], 50), (-p["key"] / 2, p["key"] / 2), (-1, 0.8 * p["end_length"]))
    return cut(solid, key, post(0, 0, (0.2 * height, height + 1), 0.45 * min(radii)))


def _clevis(p: Parameters) -> Manifold:
    gap, lug, radius, reach = p["gap"], p["lug_thickness"], p["lug_radius"], p["reach"]
    width = 2 * lug + gap
    base = box((-p["base_length"] / 2, p["base_length"] / 2), (-width / 2, width / 2), (0, p["base_thickness"]))
    lugs = []
    for y in (-width / 2, gap / 2):
        eye = Manifold.cylinder(lug, radius, radius, SEGMENTS).rotate((-90, 0, 0)).translate((0, y, reach))
        lugs.append(union(box((-radius, radius), (y, y + lug), (0, reach)), eye))
    pin = Manifold.cylinder(width + 2, 1, 1, SEGMENTS).scale((p["pin"] * radius, p["pin"] * radius, 1))
    pin = pin.rotate((-90, 0, 0)).translate((0, -width / 2 - 1, reach))
    return cut(union(base, *lugs), pin)


def _impeller(p: Parameters) -> Manifold:
    disc = post(0, 0, (0, p["disc"]), 30)
    hub = Manifold.cylinder(p["height"], 30 * p["hub_share"], 18 * p["hub_share"], SEGMENTS)
    inner, outer = 18 * p["hub_share"], 28.0
    rows = []
    for side in (1, -1):
        radii = [inner + (outer - inner) * n / 10 for n in range(11)]
        angles = [math.radians(p["sweep"] * n / 10) + side * p["blade"] / 2 / r for n, r in enumerate(radii)]
        rows.append([(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)])
    blade = CrossSection([[*rows[1], *reversed(rows[0])]]).extrude(0.9 * p["height"])
    blades = [settle(blade.rotate((0, 0, 360 * i / round(p["blades"])))) for i in range(round(p["blades"]))]
    return cut(union(disc, hub, *blades), post(0, 0, (-1, 200), 8 * p["hub_share"]))


def _family(name: str, build: Callable[[Parameters], Manifold], **ranges: tuple[float, ...]) -> Family:
    return Family(
        name, MappingProxyType({key: Range(r[0], r[1], whole=len(r) > 2) for key, r in ranges.items()}), build
    )


_WHOLE: Final = 1.0  # a third number marks a parameter that counts

_TABLE: Final = (
    _family(
        "plate",
        _plate,
        width=(20, 60),
        thickness=(4, 9),
        corner=(1, 9),
        columns=(1, 5, _WHOLE),
        rows=(1, 4, _WHOLE),
        hole=(0.25, 0.7),
    ),
    _family(
        "ribbed_plate",
        _ribbed_plate,
        width=(25, 60),
        thickness=(3, 6),
        ribs=(1, 4, _WHOLE),
        rib_height=(3, 16),
        rib_thickness=(3, 6),
        holes=(1, 3, _WHOLE),
        hole_radius=(1.5, 4),
    ),
    _family(
        "flange",
        _flange,
        radius=(22, 30),
        thickness=(3.5, 8),
        hub_share=(0.35, 0.6),
        hub_height=(2, 24),
        bore_share=(0.4, 0.75),
        bolts=(3, 8, _WHOLE),
    ),
    _family(
        "bracket",
        _bracket,
        width=(8, 40),
        thickness=(4, 8),
        height=(25, 60),
        web_thickness=(3, 6),
        gussets=(1, 3, _WHOLE),
        holes=(1, 3, _WHOLE),
        hole_radius=(1.5, 3.5),
    ),
    _family(
        "bridge",
        _bridge,
        width=(5, 32),
        deck=(4, 10),
        height=(8, 35),
        bays=(1, 4, _WHOLE),
        pier=(3.5, 8),
        arch=(0.05, 1.0),
    ),
    _family(
        "tee",
        _tee,
        radius=(7, 15),
        wall=(2.5, 4.5),
        length=(30, 60),
        branch_share=(0.4, 0.8),
        branch_height=(0.3, 0.7),
        branch_length=(5, 25),
    ),
    _family(
        "truss",
        _truss,
        cells_x=(1, 3, _WHOLE),
        cells_y=(1, 2, _WHOLE),
        cells_z=(1, 3, _WHOLE),
        slenderness=(0.09, 0.16),
        diagonals=(0, 1, _WHOLE),
    ),
    _family(
        "housing",
        _housing,
        width=(30, 60),
        height=(8, 36),
        wall=(3, 6),
        floor=(3, 7),
        window=(0.2, 0.8),
        walls=(0, 2, _WHOLE),
    ),
    _family(
        "cantilever",
        _cantilever,
        width=(5, 30),
        column=(8, 18),
        height=(25, 55),
        arm_thickness=(3.5, 7),
        arms=(1, 2, _WHOLE),
        reach=(12, 40),
        taper=(0, 0.6),
    ),
    _family(
        "heat_sink",
        _heat_sink,
        width=(8, 60),
        base=(4, 9),
        fins=(3, 8, _WHOLE),
        fin=(2.8, 4.5),
        fin_height=(4, 30),
        slots=(0, 2, _WHOLE),
        slot=(2, 6),
    ),
    _family(
        "gear",
        _gear,
        teeth=(8, 22, _WHOLE),
        root_share=(0.72, 0.88),
        face=(5, 18),
        helix=(0, 25),
        web=(3, 6),
        pockets=(3, 6, _WHOLE),
        hub_height=(0, 10),
    ),
    _family(
        "shaft",
        _shaft,
        end_radius=(5, 9),
        shoulder_radius=(7, 12),
        collar_radius=(9, 20),
        neck_radius=(4.5, 9),
        end_length=(10, 30),
        shoulder_length=(5, 20),
        collar_length=(4, 12),
        neck_length=(10, 30),
        key=(2, 6),
    ),
    _family(
        "clevis",
        _clevis,
        gap=(5, 18),
        lug_thickness=(3, 8),
        lug_radius=(7, 14),
        reach=(16, 42),
        pin=(0.35, 0.6),
        base_length=(24, 60),
        base_thickness=(4, 10),
    ),
    _family(
        "impeller",
        _impeller,
        disc=(3, 5),
        height=(8, 24),
        hub_share=(0.3, 0.5),
        blades=(4, 9, _WHOLE),
        sweep=(0, 70),
        blade=(2.6, 4.5),
    ),
)

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType({family.name: family for family in _TABLE})
"""Every family by name."""
