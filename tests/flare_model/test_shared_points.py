"""One mesh over several processes: the numbers of one process, whoever has which points; and what isn't divided."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from flare_model.data.point_ranks import PointRanks
from flare_model.models.divided import check_divisible
from flare_model.models.flare import Flare
from flare_model.models.flare_plus_plus import FlarePlusPlus
from flare_model.sizes import FlareConfig
from lpbf_data.errors import UsageError
from tests.forked import Program, function
from tests.lpbf_data.launch_support import environment_of, run_ranks, torchrun_variables
from tests.rounding import SAME, SINGLE

PROGRAMS = "tests.flare_model.shared_points_programs"
HALF = torch.finfo(torch.half).eps


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_numbers_are_those_of_one_process(ranks: int, tmp_path: Path) -> None:
    """In float64 to rounding; in float32 and float16 off the exact ones as one process is."""
    reports = run_ranks("same_numbers", tmp_path, ranks=ranks, module=PROGRAMS)
    for found in reports:
        assert found["last"] == reports[0]["last"]  # the same bits
        assert max(found["off"].values()) <= SAME, found["off"]
        for name, (together, alone) in found["single"].items():
            assert together <= 4 * alone + 4 * SINGLE, name
        for name, (together, alone) in found["half"].items():
            assert together <= 1.5 * alone + HALF / 4, name


def test_beside_data_parallelism(tmp_path: Path) -> None:
    for found in run_ranks("beside_data_parallelism", tmp_path, ranks=4, module=PROGRAMS):
        assert max(found) <= SAME


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_is_gone_is_an_error_not_a_hang(how: str, tmp_path: Path) -> None:
    started = [
        Program(function, tmp_path / "said", PROGRAMS, "one_dies", how, environment=environment_of(tmp_path, own))
        for own in torchrun_variables(3)
    ]
    try:
        assert [program.end(60) for program in started[:2]] == [3, 3], started[0].text()
    finally:
        started[2].send(signal.SIGKILL) if started[2].running() else None
        started[2].end()
    for rank in range(2):
        seconds, said, of_another = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seconds < 45
        assert of_another, said


def test_what_is_not_divided_is_refused() -> None:
    small = FlareConfig(channels=16, num_heads=2, num_latents=4, num_blocks=1)
    with pytest.raises(UsageError, match=r"only FLARE's points .* and FlarePlusPlus isn't FLARE"):
        check_divisible(nn.Sequential(FlarePlusPlus()))
    with pytest.raises(UsageError, match=r"only FLARE's points .* and Linear isn't FLARE"):
        check_divisible(nn.Linear(3, 1))
    model = Flare(small)
    assert check_divisible(nn.Sequential(model)) == [model]
    model.compile()
    with pytest.raises(UsageError, match="a compiled model can't be divided"):
        check_divisible(model)
    with pytest.raises(UsageError, match=r"call torch\.distributed\.init_process_group first"):
        PointRanks.of_world()
