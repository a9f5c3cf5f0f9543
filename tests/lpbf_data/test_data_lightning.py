"""Loaders in Lightning's `Trainer`: its sanity check, limits, resume, and two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lpbf_data import load_dataset
from tests.lpbf_data.launch_support import run_ranks
from tests.lpbf_data.loader_support import expected

PROGRAMS = "tests.lpbf_data.lightning_programs"


def run(program: str, place: Path, *words: object, ranks: int = 1) -> list[Any]:
    """Lightning starts its second process as it was started itself, by a command."""
    launcher = "none" if ranks > 1 else "forked alone"
    return run_ranks(program, place, *words, ranks=ranks, launcher=launcher, module=PROGRAMS)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_sanity_check_took_is_in_the_next_validation(
    small_dataset: Path, tmp_path: Path, workers: int
) -> None:
    [found] = run("fit", tmp_path / "run", str(small_dataset), workers, 1, {"num_sanity_val_steps": 2})
    names = load_dataset(small_dataset, "validation").case_ids
    assert found["validated"] == [names[:2], names, names, names]
    assert found["trained"] == [expected(small_dataset, epoch) for epoch in range(3)]


def test_limits_take_nothing_away(small_dataset: Path, tmp_path: Path) -> None:
    options = {"num_sanity_val_steps": 1, "limit_val_batches": 3, "limit_train_batches": 5}
    [found] = run("fit", tmp_path / "run", str(small_dataset), 1, 1, options)
    names = load_dataset(small_dataset, "validation").case_ids
    assert found["validated"] == [names[:1], names[:3], names[:3], names[:3]]
    assert found["trained"] == [expected(small_dataset, epoch)[:5] for epoch in range(3)]


@pytest.mark.parametrize("cut", [pytest.param(5, marks=pytest.mark.slow), 17])
def test_a_resumed_run_goes_on_behind_its_last_batch(small_dataset: Path, tmp_path: Path, cut: int) -> None:
    [found] = run("resume", tmp_path / "run", str(small_dataset), 1, cut)
    order = [expected(small_dataset, epoch) for epoch in range(2)]
    served = [name for part in (found["first"], found["second"]) for epoch in part for name in epoch]
    assert served == order[0] + order[1]


def test_two_processes_share_the_cases_of_loaders_made_before(small_dataset: Path, tmp_path: Path) -> None:
    found = run("fit", tmp_path / "run", str(small_dataset), 1, 2, {"num_sanity_val_steps": 1}, ranks=2)
    names = load_dataset(small_dataset, "validation").case_ids
    for rank in range(2):
        assert found[rank]["validated"] == [names[rank : rank + 1], *[names[rank::2]] * 3]
        for epoch in range(3):
            order = expected(small_dataset, epoch)
            # 17 cases for two: the first comes twice, so that both make nine steps
            assert found[rank]["trained"][epoch] == [*order, order[0]][rank::2]
