"""Logs of a run: CSV tables, TensorBoard events, curves as PNG."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from flare_model.plots import plot_curves

TRAINING_NAME: Final = "training.csv"
VALIDATION_NAME: Final = "validation.csv"
TRAINING_ERROR_NAME: Final = "training_error.csv"


class RunLog:
    """Tables and curves of one run. A resumed run continues them where its checkpoint was.

    Args:
        folder: Folder of the run.
        step: Steps done; rows of later steps, which will be done again, are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        for name in (TRAINING_NAME, VALIDATION_NAME, TRAINING_ERROR_NAME):
            _cut(folder / name, step)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, name: str, row: Mapping[str, float]) -> None:
        """Add a row to a table, and its numbers to TensorBoard.

        Args:
            name: File name of the table.
            row: Columns to values; `step` among them.
        """
        self.write_rows(name, [row])

    def write_rows(self, name: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Add rows to a table, and the last one's numbers to TensorBoard.

        TensorBoard's writer opens its file for each number, which for every step of small parts takes as long as the
        step.

        Args:
            name: File name of the table.
            rows: Columns to values, at least one row; `step` among them.
        """
        path = self.folder / name
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if new:
                writer.writeheader()
            writer.writerows(rows)
        for column, value in rows[-1].items():
            if column != "step":
                self._events.add_scalar(f"{Path(name).stem}/{column}", value, int(rows[-1]["step"]))

    def close(self) -> None:
        """Flush everything, and draw the curves."""
        self._events.close()
        plot_curves(
            self.folder / "curves.png",
            read_table(self.folder / TRAINING_NAME),
            read_table(self.folder / VALIDATION_NAME),
            read_table(self.folder / TRAINING_ERROR_NAME),
        )


def read_table(path: Path) -> dict[str, list[float]]:
    """Columns of a table that `RunLog` wrote; empty when there is none."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else ())}


def _cut(path: Path, step: int) -> None:
    """Drop rows of later steps, and a last row that was cut off."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    kept = [row for row in rows if len(row) == len(header) and int(row[header.index("step")]) <= step]
    if not kept:
        path.unlink()
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *kept])
