"""How well does one factor convert displacements from one material and calibration to another, by the simulator?

    python -m tests.benchmarks.material_scale [--parts 24] [--points 1200]

Each unseen part is simulated in Ti64 with the calibration `measured`, as the surrogate's corpus was, and in other
materials and calibrations. Displacements are linear in two things that shrink a layer: its inherent strain, and the
thermal contraction of what is still warm. With a the ratio of the thermal expansions, and r the ratio of the strains
divided by a, both relative to the corpus, the factor ("scale") is

    scale = a (1 + share (r - 1))

where `share` is the part of the displacement that the strain causes; likewise for the loss of the recoater's
clearance. Both shares are fitted on the first half of the parts, in Ti64 with other strains; errors are those of the
second half.

Needs no GPU and no data. The result goes to results/material_scale.json, with all simulated values, to which `--again`
fits without simulating.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.simulation.materials.material import MATERIALS, Material
from tests.benchmarks.machine import RESULTS, describe_machine, save_result
from tests.benchmarks.unseen_parts import SEED, TITANIUM, build, mesh_of, unseen_parts

FACTORS = (0.6, 0.8, 1.5)
LEAST_LOST = 5.0  # percent of a layer; errors of smaller losses of clearance aren't counted
KINDS = ("expansion", "strain", "at once")
Row = dict[str, Any]


def materials() -> dict[str, Material]:
    """Name to material: the other named ones, Ti64 with other strains, and two with the calibration `netfabb`."""
    found = {name: material for name, material in MATERIALS.items() if name != "Ti64"}
    for factor in FACTORS:
        own = replace(TITANIUM.calibration, name=f"times {factor}", strain=factor * TITANIUM.calibration.strain)
        found[f"Ti64, strain times {factor}"] = replace(TITANIUM, calibration=own)
    return found | {f"{name} (netfabb)": MATERIALS[name].calibrated("netfabb") for name in ("Ti64", "Inc625")}


def compare(parts: int, points: int) -> list[Row]:
    """Simulate each part in the corpus's material and in each other one.

    A row has inner products of the two displacements (u of the corpus's material, v of the other), and lost clearances.
    """
    rows: list[Row] = []
    for number, part in enumerate(unseen_parts(parts, points)):
        mesh = mesh_of(part.surface, points)[0]
        base = build(mesh)
        for name, material in materials().items():
            found = build(mesh, material)
            expansion = material.expansion / TITANIUM.expansion
            ratio = material.calibration.strain / TITANIUM.calibration.strain / expansion
            u, v = base.displacement.ravel(), found.displacement.ravel()
            row = {"part": part.name, "family": part.family, "points": mesh.num_points, "fitted_on": number < parts / 2}
            row |= {"material": name, "kind": _kind(material, ratio), "expansion": expansion, "ratio": ratio}
            row |= {"uu": float(u @ u), "uv": float(u @ v), "vv": float(v @ v)}
            row |= {"lost": 100 - base.clearance, "lost_there": 100 - found.clearance}
            row["failure"] = base.failure or found.failure
            rows.append(row)
        print(f"{number + 1} of {parts} parts", flush=True)
    return rows


def _kind(material: Material, ratio: float) -> str:
    if material.calibration.at_once:
        return "at once"
    return "expansion" if abs(ratio - 1) < 1e-9 else "strain"


def fit_shares(rows: list[Row]) -> tuple[float, float]:
    """Shares of the strain in displacements and in the loss of clearance: medians over the parts."""
    mine = [row for row in rows if row["kind"] == "strain"]
    moved = [(row["uv"] / row["uu"] - 1) / (row["ratio"] - 1) for row in mine]
    lost = [(row["lost_there"] / row["lost"] - 1) / (row["ratio"] - 1) for row in mine if row["lost"] > LEAST_LOST]
    return float(np.median(moved)), float(np.median(lost))


def errors(rows: list[Row], shares: tuple[float, float]) -> dict[str, Any]:
    """Errors of the scale by kind: median, 90 % quantile, largest.

    Each is relative to what the scale predicts: of displacements by the L2 norm, of clearances by the loss of the least
    one. The error for another strain is linear in r - 1; it is given for r - 1 = 1, relative to the scale of r = 1.
    """
    found: dict[str, Any] = {}
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        off = {"displacement": [], "clearance": [], "relative_l2": []}
        for row in mine:
            moved, blade = (row["expansion"] * (1 + share * (row["ratio"] - 1)) for share in shares)
            size = row["expansion"] * abs(row["ratio"] - 1) if kind == "strain" else moved
            height = size if kind == "strain" else blade
            square = max(moved**2 * row["uu"] - 2 * moved * row["uv"] + row["vv"], 0)
            off["displacement"].append(np.sqrt(square / row["uu"]) / size)
            off["relative_l2"].append(np.sqrt(square / row["vv"]))
            if row["lost"] > LEAST_LOST:
                off["clearance"].append(abs(blade - row["lost_there"] / row["lost"]) / height)
        found[kind] = {"cases": len(mine)} | {name: described(values) for name, values in off.items()}
    return found


def described(values: list[float]) -> dict[str, float]:
    """Median, 90 % quantile and largest of some values."""
    return {
        "median": float(np.median(values)),
        "90 %": float(np.quantile(values, 0.9)),
        "largest": float(np.max(values)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=24, help="number of unseen parts")
    parser.add_argument("--points", type=int, default=1200, help="about how many points each mesh has")
    parser.add_argument("--again", action="store_true", help="only fit again, to the simulated values in the result")
    options = parser.parse_args()
    if options.again:
        rows = json.loads((RESULTS / "material_scale.json").read_text(encoding="utf-8"))["rows"]
    else:
        rows = compare(options.parts, options.points)
    whole = [row for row in rows if not row["failure"]]
    shares = fit_shares([row for row in whole if row["fitted_on"]])
    judged = errors([row for row in whole if not row["fitted_on"]], shares)
    content = {"share_of_strain": {"displacement": shares[0], "clearance": shares[1]}, "errors": judged, "seed": SEED}
    print(json.dumps(content, indent=1))
    save_result("material_scale", content | {"rows": rows, "machine": describe_machine(("numpy", "scipy"))})


if __name__ == "__main__":
    main()
