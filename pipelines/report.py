"""`python -m pipelines.report lpbf/`: the data set as a page that opens without a network.

Everything on it comes from the manifest, `build.json` and the shards; no time, place or name of this machine gets in.
"""

from __future__ import annotations

from pathlib import Path

from lpbf_data.command_line import run
from lpbf_data.console import open_console
from lpbf_data.errors import UsageError
from pipelines.reporting.gallery_size import MAX_PARTS


def report(
    data: str,
    *,
    predictions: str | None = None,
    out: str | None = None,
    gallery: int = MAX_PARTS,
) -> int:
    """Make the report of a data set: one page that opens without a network.

    Args:
        data: Folder of the data set; a URL or an id of the Hugging Face hub as well.
        predictions: File of predictions that `python -m flare_model.evaluate` wrote, to show beside the truth.
        out: Where to write the page; report.html in the data set by default, here for one that lies elsewhere.
        gallery: Largest number of parts to embed as pictures and in 3D; larger sets show a sample.

    Returns:
        Exit status.
    """
    if gallery < 1:
        raise UsageError(f"--gallery must be 1 or more, not {gallery}")

    from lpbf_data.file_access.folder import DatasetFolder
    from pipelines.building.targets import FolderTarget
    from pipelines.numbers import human_bytes
    from pipelines.reporting.documents import REPORT_NAME
    from pipelines.reporting.report_data import make_report

    folder = DatasetFolder(data)
    path = Path(out) if out is not None else (folder.local or Path()) / REPORT_NAME
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name the file, such as {path / REPORT_NAME}")
    made = make_report(folder, most_parts=gallery, predictions=None if predictions is None else Path(predictions))
    FolderTarget(path.parent).write(path.name, made.page)
    console = open_console()
    if made.problem:
        console.print(f"note: {made.problem}; the page draws the parts itself")
    words = f"{path}: {human_bytes(len(made.page))}, {len(made.gallery_parts):,} parts in 3D"
    console.print(words)
    return 0


def main() -> None:
    """Entry point of `lpbf-report`."""
    run(report, "python -m pipelines.report", positional=["data"])


if __name__ == "__main__":
    main()
