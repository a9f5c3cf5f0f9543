"""`python -m flare_model.spectrum --checkpoint runs/first --data lpbf/`: spectra of FLARE's heads.

The eigenvalues are those of [spectra][flare_model.models.spectra].
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flare_model.prediction.file_names import FileNames
from flare_model.table_formats import parquet_bytes
from lpbf_data.command_line import run
from lpbf_data.console import open_console
from lpbf_data.durable import write_durably
from lpbf_data.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.data.batches import Batch
    from flare_model.models.spectra import BlockSpectrum


def spectrum(
    checkpoint: str,
    data: str,
    *,
    split: str = "test",
    cases: int = 1,
    case: list[str] = [],  # noqa: B006 (read only; shown as the default in the help)
    out: str | None = None,
    trust: str | None = None,
    accelerator: str = "auto",
) -> int:
    """Eigenvalues of the token mixing of each head of a trained FLARE, as a table and as a picture.

    Args:
        checkpoint: Folder of a run or checkpoint, or an id on the Hugging Face hub.
        data: The data set.
        split: Its split.
        cases: How many of its first cases to take.
        case: Ids of the cases to take instead.
        out: Folder of the results; `spectrum` in the folder of the run by default.
        trust: Class path of a model outside of this package that may be imported.
        accelerator: auto, cpu or gpu.

    Returns:
        Exit status.
    """
    if cases < 1:
        raise UsageError(f"--cases must be 1 or more, not {cases}")

    from flare_model.checkpoints.surrogate import from_pretrained, results_folder
    from flare_model.models.flare import Flare
    from flare_model.models.spectra import spectra
    from flare_model.plots import plot_spectrum
    from flare_model.training.devices import device_of

    device = device_of(accelerator)
    surrogate = from_pretrained(checkpoint, trust=trust).to(device)
    model = surrogate.model
    if not isinstance(model, Flare):
        raise UsageError(f"the spectrum is that of FLARE's mixers; {checkpoint} holds a {type(model).__name__}")
    folder = Path(out) if out is not None else results_folder(checkpoint, "spectrum")
    folder.mkdir(parents=True, exist_ok=True)
    console = open_console()
    names, rows = FileNames(), []
    for batch in _chosen(surrogate, data, split, cases, case):
        points, features = _scaled(surrogate, batch.to(device))
        found = spectra(model, points, features)
        rows += [(batch.case_ids[0], s) for s in found]
        plot_spectrum(folder / f"{names.name(batch.case_ids[0])}.png", [s.eigenvalues for s in found])
        for s in found:
            above = (s.eigenvalues > 1e-2).sum(axis=1)
            console.print(
                f"{batch.case_ids[0]}, block {s.block + 1}: {above.min()} to {above.max()} of {s.eigenvalues.shape[1]} "
                "eigenvalues of a head lie above 0.01"
            )
    write_durably(folder / "eigenvalues.parquet", _table(rows))
    console.print(f"numbers and pictures in {folder}")
    return 0


def _chosen(surrogate: Surrogate, data: str, name: str, cases: int, wanted: list[str]) -> Iterator[Batch]:
    """The cases asked for."""
    from flare_model.data.batches import Batch
    from flare_model.data.splits import Split, open_loader

    targets, features = surrogate.usage.target_fields, surrogate.usage.feature_fields
    split = Split(data, name, (*targets, *features))
    surrogate.usage.check_data(split.point_schema, data)
    if unknown := [case_id for case_id in wanted if case_id not in split.case_ids]:
        raise UsageError(f"the split {name} of {data} has no case {unknown[0]!r}")
    left = len(wanted) if wanted else cases
    for ragged in open_loader(split):
        if left == 0:
            return
        if not wanted or ragged.case_ids[0] in wanted:
            left -= 1
            yield Batch.of(ragged, targets, features)


def _scaled(surrogate: Surrogate, batch: Batch) -> tuple[Tensor, Tensor | None]:
    features = batch.features
    if features is not None:
        features = (features - surrogate.feature_mean) / surrogate.feature_std
    return surrogate.scaled_points(batch.points), features


def _table(rows: list[tuple[str, BlockSpectrum]]) -> bytes:
    """Eigenvalues as Parquet: one row each."""
    import numpy as np

    columns: dict[str, list[object]] = {name: [] for name in ("case_id", "block", "head", "index", "eigenvalue")}
    for case_id, s in rows:
        heads, latents = s.eigenvalues.shape
        columns["case_id"] += [case_id] * (heads * latents)
        columns["block"] += [s.block] * (heads * latents)
        columns["head"] += np.repeat(np.arange(heads), latents).tolist()
        columns["index"] += np.tile(np.arange(latents), heads).tolist()
        columns["eigenvalue"] += s.eigenvalues.ravel().tolist()
    return parquet_bytes(columns)


def main() -> None:
    """Entry point of `lpbf-spectrum`."""
    run(spectrum, "python -m flare_model.spectrum")


if __name__ == "__main__":
    main()
