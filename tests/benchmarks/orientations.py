"""How well does the model rank orientations of a part on the plate? Unseen parts, each orientation simulated too.

    python -m tests.benchmarks.orientations [--parts 20] [--ways 6] [--points 1500] [--checkpoint FOLDER]

The orientations are those that `flare_model.predict --orientations` tries first, meshed as it meshes them, with cells
of about one size. Truth is the simulator's largest displacement up or down after release, and its least clearance.
Ranks by model and by simulator are compared by Spearman's correlation within a part. The regret of a choice is by how
much the chosen orientation's displacement exceeds that of the best one, as a share of the latter, by the simulator.

Needs no GPU and no data. The result goes to results/orientations.json (with another `--seed` to
orientations_SEED.json) after each part; the same command continues with the parts that aren't in it yet.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from flare_model import from_pretrained
from flare_model.checkpoints.files import WEIGHTS_NAME
from flare_model.checkpoints.hub import fetch_checkpoint
from flare_model.checkpoints.packaged_model import packaged_checkpoint
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.decision.answer import Answer, Auxiliary, answer_of
from flare_model.decision.auxiliary import read_auxiliary
from flare_model.decision.orientation import (
    OrientedPart,
    cost_of,
    directions,
    points_for_equal_cells,
    rotation_to,
    turn,
)
from flare_model.decision.prediction import predict_part
from flare_model.prediction.part import Part
from lpbf_data.durable import sha256_of_file
from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from tests.benchmarks.machine import RESULTS, describe_machine, save_result
from tests.benchmarks.unseen_parts import SEED, build, mesh_of, unseen_parts

NAME = "orientations"
TOLERANCE = 80.0  # percent of a layer: less is a hit


def judge(surface: Surface, ways: int, points: int, surrogate: Surrogate, beside: Auxiliary) -> list[dict[str, Any]]:
    """Predict and simulate each orientation that can be meshed."""
    rows = []
    turned = [turn(surface, rotation_to(down)) for down in directions(surface, ways)]
    meshed = [mesh_or_none(one, points) for one in turned]
    sizes = [one and (one[0].num_points, math.prod(one[0].spacing) ** (1 / 3)) for one in meshed]
    for number, wanted in enumerate(points_for_equal_cells(sizes)):
        if wanted is not None:
            meshed[number] = mesh_or_none(turned[number], wanted) or meshed[number]
    for down, one in zip(directions(surface, ways), meshed, strict=True):
        if one is None:
            continue
        mesh, part = one
        rotation = rotation_to(down)
        answer = answer_of(predict_part(surrogate, part, beside.intervals), beside)
        built = build(mesh)
        row = {"down": [round(float(k), 3) for k in down], "points": mesh.num_points}
        row |= {"cell": [round(float(edge), 3) for edge in mesh.spacing]}
        row |= {"displacement": float(np.abs(built.displacement[:, 2]).max()), "clearance": built.clearance}
        row |= {"failure": built.failure, **predicted(answer, OrientedPart((0, 0, 0), rotation, answer, None))}
        rows.append(row)
    return rows


def mesh_or_none(surface: Surface, points: int) -> tuple[VoxelMesh, Part] | None:
    """The mesh of a surface; None where it can't be meshed."""
    try:
        return mesh_of(surface, points)
    except GeometryError:
        return None


def predicted(answer: Answer, way: OrientedPart) -> dict[str, Any]:
    """The predicted numbers that orientations are ranked by."""
    assert answer.hit is not None
    return {
        "fits": way.fits,
        "predicted_displacement": way.displacement,
        "predicted_clearance": answer.hit.clearance,
        "predicted_chance": way.chance,
        "verdict": answer.hit.verdict,
    }


def compare(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Rank correlations and regrets of one part; None where fewer than three orientations survived the simulation."""
    ways = [row for row in rows if not row["failure"]]
    if len(ways) < 3:
        return None
    moved, clearance = (np.array([row[name] for row in ways]) for name in ("displacement", "clearance"))
    said, told = (np.array([row[f"predicted_{name}"] for row in ways]) for name in ("displacement", "clearance"))
    found: dict[str, Any] = {"ways": len(ways)}
    for name, truth, prediction in (("displacement", moved, said), ("clearance", clearance, told)):
        both_vary = np.ptp(truth) > 1e-9 and np.ptp(prediction) > 1e-9
        found[f"spearman_{name}"] = float(spearmanr(truth, prediction).statistic) if both_vary else None
    order = sorted(range(len(ways)), key=lambda k: cost_of(said[k], ways[k]["predicted_chance"]))
    truly = sorted(range(len(ways)), key=lambda k: (clearance[k] < TOLERANCE, moved[k]))
    chosen, best = order[0], truly[0]
    found |= {"chosen_hits": bool(clearance[chosen] < TOLERANCE), "best_hits": bool(clearance[best] < TOLERANCE)}
    # The simulator's order: clear orientations by their displacement, then those that are hit.
    ranks = np.argsort(truly), np.argsort(order)
    found["spearman_ranking"] = float(spearmanr(*ranks).statistic)
    least = int(np.argmin(said))
    found["regret_of_least_displacement"] = float(moved[least] / moved.min() - 1)
    # The best orientation is clear, if one is; a chosen one that is hit may warp less, which counts as no regret.
    found["regret_of_choice"] = max(0.0, float(moved[chosen] / moved[best] - 1))
    found["regret_of_any"] = float(moved.mean() / moved.min() - 1)
    found["rank_of_choice"] = truly.index(chosen) + 1
    return found


def summary(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and medians over the parts."""
    whole = [part["compared"] for part in parts if part.get("compared")]
    if not whole:
        return {}
    found: dict[str, Any] = {"parts": len(whole)}
    names = ("spearman_displacement", "spearman_clearance", "spearman_ranking")
    for name in (*names, "regret_of_least_displacement", "regret_of_choice", "regret_of_any", "rank_of_choice"):
        values = [one[name] for one in whole if one[name] is not None]
        found[name] = {"mean": float(np.mean(values)), "median": float(np.median(values)), "parts": len(values)}
    hits = [one for one in whole if not one["best_hits"]]
    found["parts_with_a_clear_way"] = len(hits)
    found["chosen_hits_though_a_way_is_clear"] = sum(one["chosen_hits"] for one in hits)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=20, help="number of unseen parts")
    parser.add_argument("--ways", type=int, default=6, help="orientations of each part")
    parser.add_argument("--points", type=int, default=1500, help="about how many points each mesh has")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the parts")
    parser.add_argument("--checkpoint", default=packaged_checkpoint(), help="by default the package's own model")
    options = parser.parse_args()
    surrogate = from_pretrained(options.checkpoint)
    beside = read_auxiliary(options.checkpoint, surrogate)[0]
    weights = sha256_of_file(fetch_checkpoint(options.checkpoint) / WEIGHTS_NAME)
    identity = {
        "seed": options.seed,
        "ways": options.ways,
        "points_asked_for": options.points,
        "weights_sha256": weights,
    }
    name = NAME if options.seed == SEED else f"{NAME}_{options.seed}"
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts: list[dict[str, Any]] = kept["details"] if kept.get("identity") == identity else []
    parts = [part | {"compared": compare(part["ways"])} for part in parts]
    done = {part["name"] for part in parts}
    torch.set_num_threads(1)

    def save() -> None:
        content = summary(parts) | {"identity": identity, "details": parts, "machine": describe_machine(("torch",))}
        save_result(name, content)

    for part in unseen_parts(options.parts, options.points, options.seed):
        if part.name in done:
            continue
        started = time.perf_counter()
        rows = judge(part.surface, options.ways, options.points, surrogate, beside)
        parts.append({"name": part.name, "family": part.family, "compared": compare(rows), "ways": rows})
        print(part.name, part.family, parts[-1]["compared"], f"{time.perf_counter() - started:.0f} s", flush=True)
        save()
    save()


if __name__ == "__main__":
    main()
