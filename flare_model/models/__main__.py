"""`python -m flare_model.models`: the models of the paper by its data sets, with their numbers of parameters.

Models are those of the configurations that come with the package; no weights are made.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

from flare_model.checkpoints.spec import ModelSpec
from flare_model.configs import config_names, config_path
from flare_model.table_formats import screen_table
from lpbf_data.command_line import run

DATA_SETS: Final = ("elasticity", "darcy", "airfoil", "pipe", "drivaerml_40k", "lpbf")

ROWS: Final[Mapping[str, str]] = {
    "": "Flare",
    "flare_plus_plus": "FlarePlusPlus, with the sizes of its own published launchers",
    "transformer": "Transformer",
    "perceiver": "PerceiverIO",
    "lno": "LNO, with 4 blocks on all data sets, as the parameter counts of Table 2 have it",
    "lno_8_blocks": "LNO, with 8 blocks, as the paper's text and code have it",
    "gnot": "GNOT, as published: on grids, trunk and keys get distances on the index grid in place of the input",
    "gnot_positions": "GNOT, whose trunk and keys get the input",
    "transolver": "Transolver without convolution",
    "grid_transolver": "GridTransolver, Transolver with convolution",
    "grid_transolver_positions": "the same, with coordinates in place of distances on the index grid",
    "grid_transolver_official": "the same, as Transolver's own script has it",
}
"""Ends of the names of configurations, `<data set>_<end>`, and which model they describe."""


def parameter_counts() -> dict[str, dict[str, int]]:
    """Numbers of parameters by the end of a configuration's name and by data set, for the configurations there are."""
    names = set(config_names())
    found: dict[str, dict[str, int]] = {}
    for end in ROWS:
        of_sets = {data: f"{data}_{end}" if end else data for data in DATA_SETS}
        found[end] = {data: count_parameters(name) for data, name in of_sets.items() if name in names}
    return found


@functools.cache
def count_parameters(configuration: str) -> int:
    """Parameters of the model that a configuration of this package describes.

    Args:
        configuration: Its name.
    """
    import yaml

    from flare_model.checkpoints.restore_model import built_without_memory

    path = config_path(configuration)
    assert path is not None, configuration
    spec = ModelSpec(**yaml.safe_load(path.read_text(encoding="utf-8"))["model"])
    return sum(parameter.numel() for parameter in built_without_memory(spec).parameters())


def models() -> int:
    """Models by data sets, with their numbers of parameters; `--config <data set>_<name>` trains one.

    Returns:
        Exit status.
    """
    from lpbf_data.console import open_console

    table = screen_table()
    table.add_column("parameters", overflow="fold")
    for data in DATA_SETS:
        table.add_column(data.replace("_", "\n_"), justify="right", no_wrap=True)
    for end, counts in parameter_counts().items():
        table.add_row(end or "Flare", *(f"{counts[data]:,}" if data in counts else "–" for data in DATA_SETS))
    console = open_console()
    console.print(table)
    for end, model in ROWS.items():
        console.print(f"--config <data set>{'_' * bool(end)}{end}: {model}")
    return 0


def main() -> None:
    """Print the table."""
    run(models, "python -m flare_model.models")


if __name__ == "__main__":
    main()
