"""Training under SLURM, whose variables give the number of processes and the rank of each."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_model.training.devices import _processes
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import TINY, losses
from tests.flare_model.test_flare_checkpoints import Pointwise
from tests.forked import Program, command, end_all

JOB = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}

SIZES = {f"model.config.{name}": value for name, value in TINY["init_args"]["config"].items()}


class OneFails(Pointwise):
    """Raises in the sixth step of the second process."""

    steps = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.steps += self.training
        if self.steps == 6 and torch.distributed.get_rank() == 1:
            raise IndexError("no such corner")
        return super().forward(*inputs)


def start_task(data: str, out: Path, variables: dict[str, str], model: dict[str, Any] = SIZES) -> Program:
    """Start a training run of one epoch with the variables of a task of SLURM."""
    options = {"data": data, "out": str(out), "recipe.epochs": 1, "recipe.batch_size": 2, "accelerator": "cpu"} | model
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | JOB | variables
    said = out.with_name(f"{out.name}-{variables.get('SLURM_PROCID', '')}-said")
    return Program(command, said, "flare_model.train", *words, environment=environment)


def run_two_tasks(data: str, out: Path, model: dict[str, Any] = SIZES) -> tuple[list[int], list[str]]:
    """Run two tasks as srun starts them; returns their exit statuses and their outputs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"}
    tasks = [
        start_task(data, out, meeting | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}, model)
        for rank in ("0", "1")
    ]
    return end_all(tasks), [task.text() for task in tasks]


def test_a_folder_that_can_not_be_locked_ends_every_task(box_dataset: str, tmp_path: Path) -> None:
    """Only the first task asks for the lock, and srun ends no task because another one ended."""
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    ended, said = run_two_tasks(box_dataset, tmp_path / "run")
    assert ended == [1, 1], said
    for text in said:
        (told,) = (line for line in text.splitlines() if line.startswith("error: "))
        assert "Is a directory" in told
        assert str(tmp_path / "run" / ".lock") in told
        assert "Traceback" not in text


def test_the_task_that_fails_names_the_last_checkpoint(box_dataset: str, tmp_path: Path) -> None:
    model = {"model.class_path": f"{__name__}.OneFails", "recipe.epochs": 4, "checkpoint_every": 3}
    ended, (first, second) = run_two_tasks(box_dataset, tmp_path / "run", model)
    assert ended == [1, 1], (first, second)
    left = f"the last checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-00000003'}; the same command goes on from"
    assert left in second.replace("\n", " ")
    assert "raised IndexError: no such corner" in second.replace("\n", " ")
    # The other task prints the message of the one that failed, or its connection breaks first, which it then reports.
    assert ("another process of the run ended, a" in first.replace("\n", " ")) != (left in first.replace("\n", " "))


def test_tasks_that_srun_started_train_together(box_dataset: str, tmp_path: Path) -> None:
    ended, said = run_two_tasks(box_dataset, tmp_path / "run")
    assert ended == [0, 0], said
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    # Each task has half of every batch of four: one run, whose steps are logged once.
    assert [int(row[0]) for row in losses(tmp_path / "run")] == list(range(1, result["steps"] + 1))
    alone = start_task(box_dataset, tmp_path / "alone", {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert alone.end() == 0, alone.text()
    steps = json.loads((tmp_path / "alone" / "result.json").read_text(encoding="utf-8"))["steps"]
    assert result["steps"] == steps // 2


def test_a_job_of_eight_tasks_without_srun_is_refused_with_the_way_to_start_it(
    box_dataset: str, tmp_path: Path
) -> None:
    task = start_task(box_dataset, tmp_path / "run", {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert task.end() != 0
    said = task.text()
    assert "8 tasks" in said
    assert "write srun before python" in said.replace("\n", " ")
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "training.csv").exists()


def test_processes_and_nodes_are_read_from_the_variables_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    alone = (1, 1, "LightningEnvironment")
    step = {"SLURM_NTASKS": "8", "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    for variables, found in (
        ({}, alone),
        ({"SLURM_NTASKS": "1"}, alone),
        (step, (4, 2, "SLURMEnvironment")),
        (step | {"SLURM_STEP_NUM_TASKS": "1"}, alone),
        (step | {"SLURM_JOB_NAME": "interactive"}, alone),
        (step | torchrun, (4, 2, "TorchElasticEnvironment")),
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert _processes() == found
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with pytest.raises(UsageError, match="write srun before python"):
        _processes()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(UsageError, match="3 processes on 2 nodes"):
        _processes()
