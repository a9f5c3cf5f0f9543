"""What does each head of a trained FLARE communicate? Figure 7 of its paper, for Darcy instead of elasticity.

    python -m tests.benchmarks.paper_spectrum --checkpoint runs/darcy --data darcy_set/

The eigenvalues are those of `python -m flare_model.spectrum`, whose picture is kept. Of its numbers the JSON file has,
for each block, how many of a head's eigenvalues are above 0.01, how many hold 90 and 99 % of their sum (least, median
and largest number over the heads), and least, median and largest eigenvalue over the heads by index.

Needs no GPU, but a trained model, such as `darcy_league --keep` copies, and a Darcy data set (`darcy_league` says how
it is made). The result goes to `--out`, by default results/paper_spectrum.json, the picture beside it.
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
    """Summary of the eigenvalues of a block.

    Args:
        eigenvalues: Eigenvalues of each head, [H, M], largest first.
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
    """Eigenvalues of each block, [H, M], from the table that `flare_model.spectrum` writes for one case."""
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
    parser.add_argument("--data", default="darcy", help="data set made by pipelines.benchmarks.convert darcy")
    parser.add_argument("--out", type=Path, default=RESULTS / "paper_spectrum.json", help="JSON file of the figures")
    parser.add_argument("--trained", default="", help="how the model was trained, in words, to store in the file")
    parser.add_argument("--accelerator", default="auto", choices=("auto", "gpu", "cpu"))
    parser.add_argument("--show", action="store_true", help="only print the table of the figures in --out")
    return parser.parse_args(words)


def run(asked: argparse.Namespace) -> None:
    """Compute the spectrum, and store figures and picture."""
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
