"""The process group of a run of several processes."""

from __future__ import annotations

from pathlib import Path

from tests.lpbf_data.launch_support import run_ranks


def test_the_group_ends_before_python_does(tmp_path: Path) -> None:
    """With its threads: one that lets go of an exchange while Python ends would abort the process now and then."""
    ended = run_ranks(
        "train_and_exit", tmp_path, ranks=2, launcher="torchrun", module="tests.flare_model.process_group_programs"
    )
    assert ended == [[True], [True]]
