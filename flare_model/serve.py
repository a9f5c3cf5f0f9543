"""`python -m flare_model.serve`: a page on this machine that shows the answer of `lpbf-predict` for a dropped STL.

It makes no requests to a network, keeps no files, and answers no other machine.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from lpbf_data.command_line import run
from lpbf_data.console import say
from lpbf_data.errors import UsageError
from lpbf_data.extras import how_to_install

_HIGHEST_PORT: Final = 65_535
_MAX_MB: Final = 4_000


def serve(
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    open: bool = False,  # noqa: A002 (the name of the option)
    checkpoint: str | None = None,
    points: int | None = None,
    material: str | None = None,
    most_mb: int = 200,
    trust: str | None = None,
    accelerator: str = "auto",
) -> int:
    """Open a local page: drop an STL, see whether the recoater hits it and how far it warps, fetch the part to print.

    The page takes STL, OBJ, PLY, OFF, 3MF and VTU files, one computation at a time. It is for this machine alone: it
    listens on a loopback address, and answers nobody else's pages. Files lie in a temporary folder while they are
    worked on, and are removed then. It runs until Ctrl-C. From another machine, or into a container, lead a tunnel:
    ssh -L 8000:127.0.0.1:8000 machine.

    Args:
        port: Port of the page; 0 takes a free one. The address is printed.
        host: A loopback address; others are refused.
        open: Open the page in this machine's browser.
        checkpoint: Folder of a run or checkpoint, or an id on the Hugging Face hub; the model that comes with the
            package where none is named.
        points: Points that a surface is meshed with where the page asks for no other number; by default the median
            of the parts that the model was trained on.
        material: Material and calibration of your machine, as in flare_model.predict; by default those of the training.
        most_mb: Files are read up to so many megabytes; larger ones are refused before they have come.
        trust: Class path of a model outside of this package that may be imported.
        accelerator: auto, cpu or gpu.

    Returns:
        Exit status: 0 when it is ended.
    """
    from flare_model.prediction.part import check_points

    if not 0 <= port <= _HIGHEST_PORT:
        raise UsageError(f"--port must lie between 0 and {_HIGHEST_PORT}, not {port}")
    check_points(points)
    if not 1 <= most_mb <= _MAX_MB:
        raise UsageError(f"--most_mb must lie between 1 and {_MAX_MB}, not {most_mb}")
    try:
        from flare_model.local_page.server import (
            check_host,
            names_of,
            open_socket,
            serve_until_ended,
            show_in_browser,
            url_of,
        )
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the local page needs {error.name}, which isn't installed: {how_to_install('serve')}"
        ) from error
    address = check_host(host)
    with contextlib.closing(open_socket(address, port)) as opened:
        from flare_model.checkpoints.packaged_model import packaged_checkpoint
        from flare_model.checkpoints.surrogate import from_pretrained
        from flare_model.decision.answer import identity_of
        from flare_model.decision.auxiliary import read_auxiliary
        from flare_model.local_page.app import make_app
        from flare_model.local_page.inference import InferenceService
        from flare_model.local_page.uploads import working_folder
        from flare_model.predict import default_points
        from flare_model.training.devices import device_of

        checkpoint = checkpoint or packaged_checkpoint()
        surrogate = from_pretrained(checkpoint, trust=trust).to(device_of(accelerator))
        auxiliary, doubts = read_auxiliary(checkpoint, surrogate, material)
        for doubt in (*doubts, *auxiliary.model_doubts):
            say(f"warning: {doubt}")
        service = InferenceService(
            surrogate, auxiliary, points or default_points(surrogate), identity_of(surrogate, checkpoint)
        )
        with working_folder() as folder:
            app = make_app(service, Path(folder), most_mb * 1_000_000, names_of(address))
            url = url_of(opened)
            print(f"{url} shows the page, to this machine alone; Ctrl-C ends it", flush=True)
            if open and not show_in_browser(url):
                say("note: this machine has no browser to open it in; open that address yourself")
            serve_until_ended(app, opened)
    return 0


def main() -> None:
    """Entry point of `lpbf-serve`."""
    run(serve, "python -m flare_model.serve")


if __name__ == "__main__":
    main()
