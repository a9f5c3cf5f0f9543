"""How near to the nominal shape do compensated parts end, compensated by the model and by the simulator?

    python -m tests.benchmarks.compensation [--parts 20] [--points 1500] [--checkpoint FOLDER]

The simulator builds each unseen part four times: as it is; with each point moved against the displacement that the
model predicts; and with each point moved against the simulated displacement, after one build and after two. All are
built on the hexahedra of the nominal part, the last three with moved corners. The simulator also judges all four, so
its own compensation has the advantage. A part's distance is the root mean square over all points of the distance from
where they should be, when the part is laid on the nominal one as well as it can be.

Needs no GPU and no data. The result goes to results/compensation.json after each part; the same command continues with
the parts that aren't in it yet.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flare_model import from_pretrained
from flare_model.checkpoints.files import WEIGHTS_NAME
from flare_model.checkpoints.hub import fetch_checkpoint
from flare_model.checkpoints.packaged_model import packaged_checkpoint
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.decision.prediction import predict_part
from flare_model.prediction.part import Part
from lpbf_data.durable import sha256_of_file
from lpbf_data.errors import LpbfError
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.compensated_build import Distance, built_displacement, distance
from pipelines.simulation.physics.moved_elements import moved_mesh
from tests.benchmarks.machine import RESULTS, describe_machine, save_result
from tests.benchmarks.unseen_parts import SEED, TITANIUM, mesh_of, unseen_parts

NAME = "compensation"
WAYS = ("model", "simulator_once", "simulator_twice")
"""Source of the displacement that a part is compensated by."""

WANTED = {"model": 3.0, "simulator_twice": 5.0}
"""Factors by which the distance was to shrink, at least."""


def displacement_of(surrogate: Surrogate, part: Part) -> NDArray[np.float64]:
    """Displacement that the model predicts, [N, 3] float64, mm."""
    fields = predict_part(surrogate, part).fields
    return np.concatenate([fields[f"displacement_{axis}"] for axis in "xyz"], axis=1).astype(np.float64)


def judge(mesh: VoxelMesh, part: Part, surrogate: Surrogate) -> dict[str, Any]:
    """Distances of a part from its nominal shape, uncompensated and compensated in each way."""
    found: dict[str, Distance] = {}
    plain = built_displacement(mesh, TITANIUM)
    found["before"] = distance(mesh.points, plain)
    predicted = displacement_of(surrogate, part)
    shift = -plain
    for way, moved in (("model", -predicted), ("simulator_once", None), ("simulator_twice", None)):
        printed = shift if moved is None else moved
        built = built_displacement(moved_mesh(mesh, printed), TITANIUM)
        found[way] = distance(mesh.points, printed + built)
        if moved is None:
            shift = -built
    times = {way: found["before"].mean / found[way].mean for way in WAYS}
    error = float(np.linalg.norm(predicted - plain) / np.linalg.norm(plain))
    distances = {name: asdict(one) for name, one in found.items()}
    return {"points": mesh.num_points, "distances_mm": distances, "times_less": times, "relative_l2_of_model": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=20, help="number of unseen parts")
    parser.add_argument("--points", type=int, default=1500, help="about how many points each mesh has")
    parser.add_argument("--checkpoint", default=packaged_checkpoint(), help="by default the package's own model")
    options = parser.parse_args()
    surrogate = from_pretrained(options.checkpoint)
    weights = sha256_of_file(fetch_checkpoint(options.checkpoint) / WEIGHTS_NAME)
    identity = {"seed": SEED, "points_asked_for": options.points, "weights_sha256": weights}
    path = RESULTS / f"{NAME}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows: list[dict[str, Any]] = kept["parts"] if kept.get("identity") == identity else []
    done = {row["name"] for row in rows}
    torch.set_num_threads(1)
    for part in unseen_parts(options.parts, options.points):
        if part.name in done:
            continue
        started = time.perf_counter()
        mesh, meshed = mesh_of(part.surface, options.points)
        row: dict[str, Any] = {"name": part.name, "family": part.family}
        try:
            row |= judge(mesh, meshed, surrogate)
        except LpbfError as error:
            row |= {"left_out": str(error)}
        rows.append(row)
        print(f"{row} in {time.perf_counter() - started:.0f} s", flush=True)
        save_result(
            NAME, summary(rows) | {"identity": identity, "parts": rows, "machine": describe_machine(("torch",))}
        )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the parts, beside the factors that were aimed at (`WANTED`)."""
    whole = [row for row in rows if "times_less" in row]
    if not whole:
        return {}
    names = ("before", *WAYS)
    return {
        "left_out": len(rows) - len(whole),
        "median_times_less": {way: float(np.median([row["times_less"][way] for row in whole])) for way in WAYS},
        "wanted": WANTED,
        "parts_that_reach_it": {
            way: sum(row["times_less"][way] >= least for row in whole) for way, least in WANTED.items()
        },
        "made_worse_by_the_model": sum(row["times_less"]["model"] < 1 for row in whole),
        "median_mm": {name: float(np.median([row["distances_mm"][name]["mean"] for row in whole])) for name in names},
    }


if __name__ == "__main__":
    main()
