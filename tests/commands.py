"""Runs commands within the tests' process: what they print and how they end, without the time of importing anew."""

from __future__ import annotations

import contextlib
import importlib
import io
import subprocess
import sys
import warnings
from unittest import mock


def run_here(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run what `python -m <module> <words>` runs, in this process; its exit status and both outputs.

    Args:
        module: Module of the command, whose `main` ends by SystemExit.
        words: Arguments.
    """
    main = importlib.import_module(module).main
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", [module, *words]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # as Python mostly does; in tests warnings are errors
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    return subprocess.CompletedProcess([module, *words], status, out.getvalue(), err.getvalue())
