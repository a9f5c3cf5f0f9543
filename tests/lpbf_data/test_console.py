"""Output of commands: progress in logs, errors in options, characters that an encoding lacks, text without markup."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from lpbf_data.command_line import run
from lpbf_data.console import ProgressLines, follow, open_console, say_while_waiting
from tests.commands import run_here
from tests.forked import Program, command
from tests.netfabb_cases import Part, write_part

OPTIONS = [
    ("flare_model.train", ["--data", "x"], "--recipe.lerning_rate", "--recipe.learning_rate"),
    ("flare_model.train", ["--data", "x"], "--model.config.num_bloks", "--model.config.num_blocks"),
    ("flare_model.train", ["--data", "x"], "--learning_rate", "--recipe.learning_rate"),
    ("flare_model.predict", ["--checkpoint", "x", "--src", "y"], "--ponts", "--points"),
    ("flare_model.evaluate", ["--checkpoint", "x", "--data", "y"], "--wurst", "--worst"),
    ("flare_model.spectrum", ["--checkpoint", "x", "--data", "y"], "--splitt", "--split"),
    ("pipelines.build", ["--src", "x"], "--filters.max_point", "--filters.max_points"),
    ("pipelines.simulate", ["--out", "x"], "--familys", "--families"),
    ("pipelines.publish", ["x"], "--licence", "--license"),
    ("pipelines.report", ["x"], "--galery", "--gallery"),
    ("pipelines.verify", ["x"], "--worker", "--workers"),
]


def call(module: str, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    started = [sys.executable, "-m", module, *words]
    return subprocess.run(started, capture_output=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize(("module", "words", "wrong", "right"), OPTIONS, ids=[o[0] + o[2] for o in OPTIONS])
def test_an_unknown_option_is_one_sentence_with_the_nearest_name(
    module: str, words: list[str], wrong: str, right: str
) -> None:
    done = run_here(module, *words, wrong, "3")
    assert done.stderr == f"error: unknown option {wrong}; did you mean {right}? --help lists all\n"
    assert done.stdout == ""
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe.epochs", "many"], "--recipe.epochs must be a whole number, not 'many'"),
        (["--recipe.loss", "l3"], "--recipe.loss must be one of relative_l2, mse, not 'l3'"),
        (["--seed", "1,b"], "each value of --seed must be a whole number, not 'b'"),
        (["--thin_to", "few"], "--thin_to must be a whole number, not 'few'"),
        (["--out"], "--out needs a value; --help lists all"),
        (["--symmetries", "maybe"], "--symmetries must be true or false, not 'maybe'"),
    ],
)
def test_a_wrong_value_is_one_sentence(words: list[str], said: str) -> None:
    done = run_here("flare_model.train", "--data", "x", *words)
    assert done.stderr == f"error: {said}\n"
    assert done.returncode == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("words", [["--most", "inf"], ["--most=inf"], ["--most", "INF"], ["--most", ".inf"]])
def test_a_limit_can_be_infinite(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def tell(most: float = 1.0, name: str = "inf") -> None:
        """Tell.

        Args:
            most: A limit.
            name: A text.
        """
        print(most, name)

    with pytest.raises(SystemExit) as ended:
        run(tell, "tell", [*words, "--name", "inf"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "inf inf\n"


def test_an_option_that_must_be_given_is_named() -> None:
    done = run_here("flare_model.spectrum", "--data", "x")
    assert (done.stderr, done.returncode) == ("error: --checkpoint must be given; --help lists all\n", 2)


def test_help_names_the_configurations_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from flare_model.configs import config_names

    monkeypatch.setenv("COLUMNS", "10000")
    done = run_here("flare_model.train", "--help")
    assert f"a configuration of this package: {', '.join(config_names())}." in done.stdout


@pytest.mark.parametrize(("total", "lines"), [(1000, 10), (10, 10), (7, 7), (1, 1)])
def test_progress_without_a_terminal_is_a_line_a_tenth(
    total: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(follow(range(total), total, "count", "case")) == list(range(total))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert said[-1].startswith(f"count: {total:,} of {total:,} cases (100 %) after ")


def test_short_work_says_nothing_and_its_lines_begin_after_some_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("lpbf_data.console.time.monotonic", lambda: now)
    for seconds, expected in ((0.4, []), (1.0, [6, 7, 8, 9, 10])):
        shown = []
        for number in follow(range(10), 10, "count", "case", after=6.0):
            shown += [number] if capsys.readouterr().err else []
            now += seconds
        shown += [10] if capsys.readouterr().err else []
        assert shown == expected


def test_work_that_can_not_be_counted_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with say_while_waiting("mesh", after=60.0):
        pass
    assert capsys.readouterr().err == ""
    with say_while_waiting("mesh", after=0.01):
        time.sleep(0.2)
    said = capsys.readouterr().err.splitlines()
    assert 1 <= len(said) <= 5  # at 0.01, 0.02, 0.04, 0.08 and 0.16 s
    assert set(said) == {"mesh: 0 s so far"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("words", "value"),
    [([], True), (["--pictures", "no"], False), (["--pictures=OFF"], False), (["--pictures", "false"], False),
     (["--pictures", "yes"], True), (["--pictures"], True)],
)  # fmt: skip
def test_a_switch_takes_yes_and_no(words: list[str], value: bool) -> None:
    taken: list[bool] = []

    def command(*, pictures: bool = True) -> None:
        """Take the switch.

        Args:
            pictures: It.
        """
        taken.append(pictures)

    with pytest.raises(SystemExit) as ended:
        run(command, "python -m command", words)
    assert (ended.value.code, taken) == (0, [value])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "words",
    [["a.stl", "b.stl", "--json"], ["--json", "a.stl", "b.stl"], ["--json", "--src", "a.stl", "b.stl"],
     ["--json", "yes", "a.stl", "b.stl"], ["--json=on", "a.stl", "b.stl"], ["--src", "a.stl", "b.stl", "--json"]],
)  # fmt: skip
def test_files_may_follow_a_switch(words: list[str]) -> None:
    taken: list[tuple[list[str], bool]] = []

    def command(src: list[str], *, json: bool = False) -> None:
        """Take files.

        Args:
            src: They.
            json: A switch.
        """
        taken.append((src, json))

    with pytest.raises(SystemExit) as ended:
        run(command, "python -m command", words, positional=("src",))
    assert (ended.value.code, taken) == (0, [(["a.stl", "b.stl"], True)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_word_that_is_no_answer_to_a_switch_is_told_where_no_file_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(src: str, out: str, *, anyway: bool = False) -> None:
        """Take two files.

        Args:
            src: One.
            out: Another.
            anyway: A switch.
        """
        print(src, out, anyway)

    for words, status in (("a.stl --anyway b.stl", 0), ("--anyway a.stl b.stl", 0), ("a.stl b.stl --anyway maybe", 2)):
        with pytest.raises(SystemExit) as ended:
            run(command, "python -m command", words.split(), positional=("src", "out"))
        assert ended.value.code == status
    said = capsys.readouterr()
    assert said.out == 2 * "a.stl b.stl True\n"
    assert "--anyway must be true or false, not 'maybe'" in said.err


def test_long_work_says_that_it_began_and_each_twentieth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first line comes after a minute, and one for a twentieth a minute after the last line or later."""
    now = 0.0
    monkeypatch.setattr("lpbf_data.console.time.monotonic", lambda: now)
    for seconds, expected in ((20.0, [3, 6, 10, 15, 20]), (1.0, [10, 20])):
        lines = ProgressLines(100, 0, "train", "step", shown=True)
        shown = []
        for step in range(1, 21):
            now += seconds
            lines.update()
            shown += [step] if capsys.readouterr().err else []
        assert shown == expected


def test_progress_that_goes_on_counts_what_is_done_and_tells_where_it_broke(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(ValueError), ProgressLines(100, 42, "measure", "case", shown=True) as lines:
        lines.set_postfix(failed=2)
        for _ in range(9):
            lines.update()
        raise ValueError("broken")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" after ")[0] for line in said] == [
        "measure: 50 of 100 cases (50 %)",
        "measure: 51 of 100 cases (51 %)",
    ]
    assert all(line.endswith(", failed 2") for line in said)


def test_a_terminal_gets_a_bar(built: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    started = [sys.executable, "-m", "pipelines.verify", str(built), "--workers", "0"]
    done = subprocess.run(started, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    assert done.returncode == 0
    assert b"shard/s]" in shown or b"s/shard]" in shown


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set that verifies."""
    folder = tmp_path_factory.mktemp("built")
    for number in range(3):
        write_part(folder / "src", Part(f"case[bold]{number}", cell=(6.0 + number, 6.0, 12.0)))
    words = ["--src", str(folder / "src"), "--out", str(folder / "lpbf"), "--workers", "0", "--no_report"]
    done = call("pipelines.build", *words)
    assert done.returncode == 0, done.stderr
    return folder / "lpbf"


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux says so when the other end is closed.
        return b""


@pytest.mark.parametrize(
    "encoding",
    # Others of one byte and of several a sign are slow.
    ["ascii", "gbk", "cp1252", "utf-8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp932", "latin-1"))],
)
def test_no_encoding_of_the_output_ends_a_command(encoding: str, built: Path, tmp_path: Path) -> None:
    """Tables, paths with any sign, and bytes that are no text at all."""
    data = tmp_path / "µ·→…é日本 [bold]x[/b] :smile:"
    shutil.copytree(built, data)
    done = call("pipelines.verify", str(data), "--workers", "0", PYTHONIOENCODING=encoding, COLUMNS="400")
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode(encoding)
    assert "[bold]x[/b] :smile:" in said
    assert ("µ·→…é日本" if encoding == "utf-8" else "[bold]") in said
    if encoding == "ascii":
        assert r"u*->...e\u65e5\u672c" in said
    missing = call("pipelines.verify", os.fsdecode(b"no\xffne\xe2\x80\xa6"), PYTHONIOENCODING=encoding)
    assert missing.returncode == 1
    assert missing.stderr.decode(encoding).startswith("error: ")
    assert b"Traceback" not in missing.stderr


def test_a_build_keeps_marks_and_ends_well_in_ascii(tmp_path: Path) -> None:
    for number in range(3):
        write_part(tmp_path / "src", Part(f"case[bold]{number}", cell=(6.0 + number, 6.0, 12.0)))
    out = tmp_path / "set[x][bold]…"
    words = ["--src", str(tmp_path / "src"), "--out", str(out), "--workers", "0", "--no_report"]
    done = call("pipelines.build", *words, PYTHONIOENCODING="ascii", COLUMNS="400")
    assert done.returncode == 0, done.stderr
    assert "set[x][bold]..." in done.stdout.decode("ascii")
    assert b"\r" not in done.stderr
    assert len(done.stderr.splitlines()) < 30
    assert b"measure: 3 of 3 cases (100 %)" in done.stderr


def test_marks_appear_as_they_are() -> None:
    file = io.StringIO()
    open_console(file=file, width=100).print("case[/b] [bold]x[/bold] :smile: [x]")
    assert file.getvalue() == "case[/b] [bold]x[/bold] :smile: [x]\n"


ALONE = """
import os, runpy, sys
os.setresuid(54321, 0, 0)  # A user without an entry, who may still read what root may.
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
GONE = ("HOME", "LPBF_CACHE", "XDG_CACHE_HOME", "USER", "LOGNAME", "USERNAME", "LNAME")
Trained = tuple[Path, Path, str]
TINY = ["--recipe.epochs", "1", "--targets", "displacement_z", "--accelerator", "cpu"]
SIZES = {"channels": 8, "num_blocks": 1, "num_heads": 2, "num_latents": 4}


def alone(module: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user who has neither a home nor an entry."""
    if os.name == "nt" or os.getuid() != 0:
        pytest.skip("only root can become a user without an entry")
    bare = {k: v for k, v in os.environ.items() if k not in GONE}
    started = [sys.executable, "-c", ALONE, module, *words]
    return subprocess.run(started, capture_output=True, text=True, env=bare | environment, check=False)


def training(built: Path, out: Path) -> list[str]:
    sizes = [f"--model.config.{name}={size}" for name, size in SIZES.items()]
    return ["--data", str(built), "--out", str(out), *TINY, *sizes]


def test_without_a_home_there_is_no_cache_and_one_warning(built: Path, tmp_path: Path) -> None:
    done = alone("flare_model.train", *training(built, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("there is no home folder for the cache") == 1
    assert "Traceback" not in done.stderr


def as_nobody(*words: str) -> None:
    """Run a command as a user without an entry, who may still read what root may."""
    if os.name != "nt" and os.getuid() == 0:
        os.setresuid(54321, 0, 0)
    command(*words)


def said_by(program: Program) -> str:
    """What a program said that ended well."""
    assert program.end() == 0, program.text()
    return program.text()


@pytest.fixture(scope="module")
def trained(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run, its cache, and what was said, by a user without a home where one can be made."""
    folder = tmp_path_factory.mktemp("trained")
    run, cache = folder / "run[x]", folder / "cache"
    bare = {name: value for name, value in os.environ.items() if name not in GONE}
    environment = bare | {"LPBF_CACHE": str(cache), "PYTHONIOENCODING": "ascii"}
    words = ["flare_model.train", *training(built, run)]
    return run, cache, said_by(Program(as_nobody, folder / "said", *words, environment=environment))


def test_without_a_home_the_named_cache_is_used(trained: Trained) -> None:
    if os.name == "nt" or os.getuid() != 0:
        pytest.skip("only root can become a user without an entry")
    _, cache, said = trained
    assert "home folder" not in said  # Matplotlib has words of its own on its folder.
    assert any(cache.iterdir())


def test_a_tilde_that_stands_for_no_home_is_one_sentence(built: Path, tmp_path: Path) -> None:
    done = alone("flare_model.train", *training(built, tmp_path / "run"), LPBF_CACHE="~/cache")
    assert done.stderr == "error: LPBF_CACHE ~/cache: no home folder is known for ~; give the whole path\n"
    assert done.returncode == 1


def test_without_a_home_a_data_set_is_built_drawn_and_verified(tmp_path: Path) -> None:
    write_part(tmp_path / "src", Part("case"))
    out = str(tmp_path / "lpbf")
    done = alone("pipelines.build", "--src", str(tmp_path / "src"), "--out", out, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert alone("pipelines.verify", out, "--workers", "0").returncode == 0


def test_what_goes_on_says_from_where_and_marks_in_ids_stay(built: Path, trained: Trained, tmp_path: Path) -> None:
    run, cache, first = trained
    assert "goes on" not in first
    assert "run[x]" in first
    steps = json.loads((run / "result.json").read_text(encoding="utf-8"))["steps"]
    (run / "result.json").unlink()
    environment = os.environ | {"LPBF_CACHE": str(cache), "PYTHONIOENCODING": "ascii"}
    words = ["flare_model.train", *training(built, run)]
    again = said_by(Program(command, tmp_path / "again", *words, environment=environment))
    assert f"run[x] goes on from step {steps} of {steps}\n" in again
    words = ["flare_model.spectrum", "--checkpoint", str(run), "--data", str(built), "--split", "train"]
    program = Program(command, tmp_path / "said", *words, environment=environment, apart=tmp_path / "apart")
    assert said_by(program).startswith("case[bold]")


def test_what_is_done_is_not_trained_again(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flare_model.train import train
    from flare_model.training.recipe import Recipe

    words = {"targets": ["displacement_z"], "recipe": Recipe(epochs=1), "accelerator": "cpu"}
    model = {"class_path": "Flare", "init_args": {"config": SIZES}}
    for _ in range(2):
        assert train(str(built), out=str(tmp_path / "run"), model=model, **words) == 0
    said = capsys.readouterr().err
    assert said.count("ended at step") == said.count("nothing is left to train") == 1


def test_a_tilde_in_the_name_of_the_cache_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lpbf_data.reading.cache import cache_root

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LPBF_CACHE", "~/kept")
    assert cache_root(None) == tmp_path / "kept"


def test_a_reader_that_goes_away_ends_no_work() -> None:
    """As behind `| head`: what is printed from then on is dropped."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        console = open_console(file=stream, width=80)
        console.print("read")
        os.close(reading)
        console.print("nobody reads this")
        console.print("nor this")


COMMAND_THAT_COMPUTES = """
import ctypes, importlib.util, sys
from pathlib import Path
from lpbf_data.command_line import run

def compute() -> None:
    \"\"\"Load the OpenMP that PyTorch brings and computes with.\"\"\"
    (folder,) = importlib.util.find_spec("torch").submodule_search_locations
    (library,) = Path(folder, "lib").glob("libgomp*.so*")
    ctypes.CDLL(str(library))
    assert "torch" not in sys.modules

run(compute, "compute", [])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
@pytest.mark.parametrize(
    ("given", "spins"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_threads_that_wait_sleep_soon(given: dict[str, str], spins: str) -> None:
    """As OpenMP itself says; on cores that others use too, computing was 30 times slower without."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "verbose"} | given
    words = [sys.executable, "-c", COMMAND_THAT_COMPUTES]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
