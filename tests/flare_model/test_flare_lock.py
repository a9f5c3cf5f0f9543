"""One folder, one run at a time: a job that was submitted twice trains once."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

import flare_model.training.run_lock
from flare_model.training.run_lock import HOLDER_NAME, is_local_lock, locked_run
from flare_model.training.trainer import Trainer
from lpbf_data.errors import UsageError
from tests.forked import Program, command

HOLDING = """
import sys, time
from pathlib import Path
from flare_model.training.run_lock import locked_run
with locked_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def train_until_file_exists(run: str, *words: str) -> None:
    """Train, and wait after the first step until a file `go` exists beside the run."""
    plain = Trainer._after_step

    def after_step(self: Trainer) -> None:
        plain(self)
        while not Path(run).with_name("go").exists():
            time.sleep(0.01)

    Trainer._after_step = after_step  # type: ignore[method-assign]
    command("flare_model.train", *words)


def train_without_waiting(*words: str) -> None:
    """Train, and don't wait for a process that holds the lock."""
    flare_model.training.run_lock.locked_run = partial(locked_run, patience=0)  # type: ignore[assignment]
    command("flare_model.train", *words)


def test_two_processes_with_one_folder_train_once(box_dataset: str, tmp_path: Path) -> None:
    """As of a job that was submitted twice: one trains to the end, the other's error names the process that does."""
    run = tmp_path / "run"
    words = ["--data", box_dataset, "--out", str(run), "--recipe.epochs", "2", "--accelerator", "cpu"]
    sizes = ["--model.config.channels", "8", "--model.config.num_heads", "2", "--model.config.num_blocks", "1"]
    first = Program(train_until_file_exists, tmp_path / "first", str(run), *words, *sizes)
    while not (run / HOLDER_NAME).exists():
        assert first.running(), first.text()
        time.sleep(0.01)
    # The first process holds the lock until the second has ended.
    second = Program(train_without_waiting, tmp_path / "second", *words, *sizes)
    assert second.end() == 1
    (run.parent / "go").touch()
    assert first.end() == 0, first.text()
    said = second.text()
    assert said.startswith(f"error: another process ({first.pid} on ")
    assert said.count("\n") == 1
    with (run / "training.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 17))
    assert not (run / HOLDER_NAME).exists()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """However the process ends; the file that names it is then replaced."""
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        words = rf"another process \({holder.pid} on .*\) trains into .*another --out"
        with pytest.raises(UsageError, match=words), locked_run(tmp_path, patience=0):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    assert json.loads((tmp_path / HOLDER_NAME).read_text())["pid"] == holder.pid
    with locked_run(tmp_path, patience=0) as remarks:
        assert json.loads((tmp_path / HOLDER_NAME).read_text())["pid"] == os.getpid()
        assert remarks == ()
    assert not (tmp_path / HOLDER_NAME).exists()


def test_a_process_that_waits_gets_the_lock(tmp_path: Path) -> None:
    """Processes that read ahead for one that was killed hold its lock for some seconds more."""
    code = HOLDING.replace("time.sleep(600)", "sys.stdin.read()")
    command_line = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command_line, text=True, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "held\n"
        let_go: list[float] = []

        def let_it_go() -> None:
            let_go.append(time.monotonic())
            holder.stdin.close()

        threading.Timer(0.5, let_it_go).start()
        with locked_run(tmp_path, patience=60):
            got = time.monotonic()
            assert let_go  # not before
            assert got > let_go[0]
            assert json.loads((tmp_path / HOLDER_NAME).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("line", "local"),
    [
        ("server:/export /data nfs4 rw,vers=4.2,local_lock=none,addr=10.0.0.1 0 0", False),
        ("server:/export /data nfs rw,vers=3,nolock,local_lock=all 0 0", True),
        ("server:/export /data nfs rw,vers=3,local_lock=flock 0 0", True),
        ("lustre@tcp:/fs /data lustre rw,localflock 0 0", True),
        ("/dev/sda1 /data ext4 rw 0 0", False),
        ("server:/export /data/other nfs rw,nolock 0 0", False),
        ("", False),
    ],
)
def test_locks_that_other_machines_do_not_see_are_recognised(line: str, local: bool) -> None:
    mounts = f"/dev/sda1 / ext4 rw 0 0\n{line}\n/dev/sdb1 /home ext4 rw 0 0\n"
    assert is_local_lock(Path("/data/runs/first"), mounts) is local


def test_a_local_lock_gets_a_remark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "mounts"
    told.write_text(f"server:/x {tmp_path}/a\\040b nfs rw,nolock 0 0\n")
    monkeypatch.setattr("flare_model.training.run_lock._MOUNTS", told)
    with locked_run(tmp_path / "a b" / "run") as (remark,):
        assert str(remark).startswith("kept: other machines that share the file system of the run's folder don't see")
        assert remark.examples == (str(tmp_path / "a b" / "run"),)
