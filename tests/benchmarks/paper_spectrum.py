"""What each head of a FLARE trained on Darcy communicates, as the FLARE paper's figure 7 shows it for elasticity.

    python -m tests.benchmarks.paper_spectrum --checkpoint runs/darcy --data darcy/

The eigenvalues are those of `python -m flare_model.spectrum`, whose picture is kept; of its numbers the JSON has, for
each block, how many of a head's eigenvalues lie above 0.01, how many hold 90 and 99 % of their sum, and the least,
middle and largest of the heads' eigenvalues by their index. One that is trained is copied by darcy_league's `--keep`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flare_model.spectrum import spectrum
from tests.benchmarks.machine import RESULTS, describe_machine

SMALL: Final = 1e-2
SHARES: Final = (0.9, 0.99)
DIGITS: Final = 4


def summary_of(eigenvalues: NDArray[np.float64]) -> dict[str, Any]:
    """What the eigenvalues of a block say.

    Args:
        eigenvalues: Of each head, [H, M], largest first.
    """
    above = (eigenvalues > SMALL).sum(axis=1)
    shares = np.cumsum(eigenvalues, axis=1) / eigenvalues.sum(axis=1, keepdims=True)
    found = {f"above_{SMALL:g}": _range(above)}
    found |= {f"for_{share:.0%}": _range((shares < share).sum(axis=1) + 1) for share in SHARES}
    levels = {"least": eigenvalues.min(axis=0), "median": np.median(eigenvalues, axis=0), "largest": eigenvalues.max(0)}
    return found | {name: [float(f"{value:.{DIGITS}g}") for value in values] for name, values in levels.items()}


def _range(counts: NDArray[np.int64]) -> dict[str, float]:
    """Least, median and largest over the heads."""
    return {"least": int(counts.min()), "median": float(np.median(counts)), "largest": int(counts.max())}


def blocks_of(columns: Mapping[str, Sequence[Any]]) -> list[NDArray[np.float64]]:
    """Eigenvalues of each block, [H, M], of the table that `flare_model.spectrum` writes of one case."""
    heads, latents = max(columns["head"]) + 1, max(columns["index"]) + 1
    blocks = max(columns["block"]) + 1
    return list(np.asarray(columns["eigenvalue"]).reshape(blocks, heads, latents))


def table_of(content: Mapping[str, Any]) -> list[str]:
    """The figures as the lines of a Markdown table: medians over the heads, and their range."""
    names = [f"above_{SMALL:g}", *(f"for_{share:.0%}" for share in SHARES)]
    lines = [
        f"| block | eigenvalues above {SMALL:g} | that hold 90 % of the sum | that hold 99 % |",
        "|---|---|---|---|",
    ]
    for number, block in enumerate(content["blocks"], start=1):
        cells = [f"{block[n]['median']:g} ({block[n]['least']} to {block[n]['largest']})" for n in names]
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    return lines


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder of a trained FLARE")
    parser.add_argument("--data", default="darcy", help="a data set that pipelines.benchmarks.convert darcy made")
    parser.add_argument("--out", type=Path, default=RESULTS / "paper_spectrum.json", help="file of the figures")
    parser.add_argument("--trained", default="", help="how the checkpoint was trained, in words, for the file")
    parser.add_argument("--accelerator", default="auto", choices=("auto", "gpu", "cpu"))
    parser.add_argument("--show", action="store_true", help="print the table of what lies in --out, and do nothing")
    return parser.parse_args(words)


def run(asked: argparse.Namespace) -> None:
    """Compute, and keep figures and picture."""
    with tempfile.TemporaryDirectory() as folder:
        spectrum(asked.checkpoint, asked.data, out=folder, accelerator=asked.accelerator)
        columns = pq.read_table(Path(folder) / "eigenvalues.parquet").to_pydict()
        (picture,) = Path(folder).glob("*.png")
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, asked.out.with_suffix(".png"))
    blocks = blocks_of(columns)
    heads, latents = blocks[0].shape
    content = {
        "what": "eigenvalues of what each head communicates, on the first case of Darcy's test split (figure 7)",
        "trained": asked.trained,
        "case_id": columns["case_id"][0],
        "heads": heads,
        "latents": latents,
        "blocks": [summary_of(block) for block in blocks],
        "machine": describe_machine(("numpy", "torch")),
    }
    asked.out.write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(asked.out)


def main() -> None:
    asked = parse()
    if not asked.show:
        run(asked)
    print("\n".join(table_of(json.loads(asked.out.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
