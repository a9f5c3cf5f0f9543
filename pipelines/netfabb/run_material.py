"""The material of a run, for readers of its results alone: from the solver's log beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lpbf_data.errors import CaseError
from pipelines.netfabb.run_files import RunFiles
from pipelines.netfabb.solver_log import read_log
from pipelines.sources.case_files import FolderFiles

_CASE_FILE: Final = "mechanical.case"
_LOG: Final = "mechanical.out"


def material_of_result(result: Path) -> str | None:
    """Material that the log of a run names.

    Args:
        result: Its case file `<p>mechanical.case`, in the folder of the run or in `results/` there.

    Returns:
        The name as the log has it; None where there is no log that can be read, or it names none.
    """
    folder = result.parent.parent if result.parent.name.lower() == "results" else result.parent
    run = result.name.removesuffix(_CASE_FILE).removesuffix("_")
    for only in (None, run or None):  # a folder holds one run, or several, of which each is asked for by its name
        try:
            files = RunFiles(FolderFiles(str(folder), only))
            log = files.named(_LOG)
            return None if log is None else read_log(files.text(log)).material
        except CaseError:
            continue
    return None
