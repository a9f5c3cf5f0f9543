"""How much does a prediction depend on the mesh? The same parts, meshed with 1,000 to 20,000 points.

    python -m pipelines.simulate --results lean --draw balanced --seed 103 --cases 12 --points 2000 --out parts/2000
    for n in 1000 5000 10000 20000; do
        python -m pipelines.simulate --results lean --parts_of parts/2000 --cases 12 --points $n --out parts/$n
    done
    python -m pipelines.build --src parts/* --out lpbf_resolutions/ --filters.preset all --fields displacement \\
        --splits 'train=0.05,test=0.95'
    python -m tests.benchmarks.resolutions --data lpbf_resolutions/

For each part and mesh: root mean square over points and largest value of the Z displacement, predicted by the package's
own model and simulated, and the relative L2 error of the prediction. The spread of a part is the difference of its
largest and smallest value over the meshes, divided by their mean; the spread of the simulation says how much of that of
the prediction comes from the mesh itself. Nothing is trained.

Needs no GPU; the commands above make its data. The result goes to results/resolutions.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flare_model.checkpoints.surrogate import from_pretrained
from flare_model.data.splits import Split
from flare_model.judging.judge import predictions
from tests.benchmarks.machine import describe_training_machine, save_result


def sizes_of(z: NDArray[np.floating]) -> dict[str, float]:
    """Root mean square and largest value, in mm, of a displacement [N] in mm."""
    values = z.astype(np.float64)
    return {"rms": float(np.sqrt(np.mean(values**2))), "largest": float(values.max())}


def spread_of(values: Sequence[float]) -> float:
    """Difference of the largest and the smallest value, divided by the mean."""
    return (max(values) - min(values)) / float(np.mean(values))


def measured(split: Split) -> list[dict[str, Any]]:
    """A row for each part and mesh of a split."""
    surrogate = from_pretrained()
    column = surrogate.usage.columns.index("displacement_z")
    rows = []
    for batch, predicted in predictions(surrogate, split):
        (case_id,) = batch.case_ids
        record = split.records[case_id]
        given, known = predicted[:, column], batch.targets[:, column].double().numpy()
        rows.append(
            {
                "case_id": case_id,
                "design": record.design_id,
                "points": len(given),
                "relative_l2": float(np.linalg.norm(given - known) / np.linalg.norm(known)),
                "predicted": sizes_of(given),
                "simulated": sizes_of(known),
            }
        )
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and median spread over the parts that have all meshes, and the error of each mesh, the coarsest first."""
    designs: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        designs.setdefault(row["design"], []).append(row)
    most = max(map(len, designs.values()))
    whole = [sorted(of, key=lambda row: row["points"]) for of in designs.values() if len(of) == most]
    found: dict[str, Any] = {"parts": len(whole), "left_out": len(designs) - len(whole), "meshes": most}
    for who in ("predicted", "simulated"):
        for what in ("rms", "largest"):
            spreads = [spread_of([row[who][what] for row in of]) for of in whole]
            found[f"spread of {what}, {who}"] = {"mean": float(np.mean(spreads)), "median": float(np.median(spreads))}
    found["by_mesh"] = [
        {
            "points_median": float(np.median([of[place]["points"] for of in whole])),
            "relative_l2": float(np.mean([of[place]["relative_l2"] for of in whole])),
        }
        for place in range(most)
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set of parts with several meshes each")
    parser.add_argument("--split", default="test", help="split that is predicted")
    asked = parser.parse_args()
    split = Split(asked.data, asked.split)
    rows = measured(split)
    content = {
        "what": "Z displacement of the same parts on several meshes each, mm; spreads over the meshes",
        "data": {"sha256": split.data_digest},
        "machine": describe_training_machine(),
        **summary(rows),
        "rows": rows,
    }
    print(json.dumps({key: value for key, value in content.items() if key != "rows"}, indent=1))
    print(save_result("resolutions", content))


if __name__ == "__main__":
    main()
