"""How far a scale carries displacements from one material and calibration to another, by the simulator alone.

    python -m tests.benchmarks.material_scale [--parts 24] [--points 1200]

Each unseen part is simulated in Ti64 with `measured`, as the corpus was, and in other materials and calibrations.
Displacements are linear in two things that shrink a layer: its strain, and the thermal expansion of what is still warm.
With r the strain over the thermal expansion, both over those of the corpus, and a the ratio of the expansions,

    scale = a (1 + share (r - 1))

where `share` is that part of the displacement which the strain brings; likewise for what the clearance of the recoater
loses. Both shares are fitted on the first half of the parts in Ti64 with other strains, and errors are those of the
second half.
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
LEAST_LOST = 5.0  # percent of a layer: less is no clearance that anything is judged by
KINDS = ("expansion", "strain", "at once")
Row = dict[str, Any]


def materials() -> dict[str, Material]:
    """Name to material: named ones, and Ti64 whose layers shrink less or more than `measured` says."""
    found = {name: material for name, material in MATERIALS.items() if name != "Ti64"}
    for factor in FACTORS:
        own = replace(TITANIUM.calibration, name=f"times {factor}", strain=factor * TITANIUM.calibration.strain)
        found[f"Ti64, strain times {factor}"] = replace(TITANIUM, calibration=own)
    return found | {f"{name} (netfabb)": MATERIALS[name].calibrated("netfabb") for name in ("Ti64", "Inc625")}


def compare(parts: int, points: int) -> list[Row]:
    """Products of displacements and clearances of each part in each material beside those of the corpus's."""
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
    """Shares of the strain in displacements, and in what the clearance loses: medians over the parts."""
    mine = [row for row in rows if row["kind"] == "strain"]
    moved = [(row["uv"] / row["uu"] - 1) / (row["ratio"] - 1) for row in mine]
    lost = [(row["lost_there"] / row["lost"] - 1) / (row["ratio"] - 1) for row in mine if row["lost"] > LEAST_LOST]
    return float(np.median(moved)), float(np.median(lost))


def errors(rows: list[Row], shares: tuple[float, float]) -> dict[str, Any]:
    """Errors of the scale by kind: median, 90 % quantile, largest.

    Each is an error over what the scale predicts: L2 norm of displacements, and what the least clearance loses. That of
    another strain is linear in r - 1, and stands for r - 1 = 1, over what r = 1 gives.
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
    """Median, what nine of ten stay below, and the largest."""
    return {
        "median": float(np.median(values)),
        "90 %": float(np.quantile(values, 0.9)),
        "largest": float(np.max(values)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", type=int, default=24)
    parser.add_argument("--points", type=int, default=1200)
    parser.add_argument("--again", action="store_true", help="fit to the simulations that the result keeps")
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
