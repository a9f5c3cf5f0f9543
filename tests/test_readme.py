"""Tests that what the README tells its reader to type works, in its order, on a small corpus and with a small model."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_hub_server import serve_hub
from tests.forked import Program, command
from tests.upload_hub import upload_hub

README = Path(__file__).parents[1] / "README.md"
SMALLER = {
    "pipelines.simulate": ["--cases", "10", "--points", "150", "--workers", "0"],
    # The report is made by its own command, below.
    "pipelines.build": ["--workers", "0", "--no_report"],
    "pipelines.verify": ["--workers", "0"],
    "pipelines.report": ["--gallery", "2"],
    "pipelines.publish": ["--workers", "0"],
    "flare_model.train": [
        *("--recipe.epochs", "1", "--model.init_args.config.num_blocks", "1"),
        *("--model.init_args.config.num_latents", "16", "--accelerator", "cpu"),
    ],
    "flare_model.predict": ["--points", "300", "--centre"],
}
"""Options that are added to a command of the README, to make it faster."""
STARTED = ("pipelines.publish",)
"""Commands that read their environment when they are imported. The others are forked, which is faster; `test_startup`
tests how commands start."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> dict[str, list[list[str]]]:
    """The README's commands, by module, in their order."""
    found: dict[str, list[list[str]]] = {}
    for line in "".join(blocks("bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "-m"]:
            found.setdefault(words[2], []).append(words[3:])
    return found


class Reader:
    """A reader of the README, who types its commands in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(folder / "hf"),
            "HF_TOKEN": "hf_of_the_tests",
            "OMP_NUM_THREADS": "1",
        }

    def types(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def runs(self, module: str) -> str:
        runs = (lambda *words: self.types("-m", *words)) if module in STARTED else self.forks
        return "\n".join(runs(module, *words, *SMALLER.get(module, [])) for words in commands()[module])

    def forks(self, *words: str) -> str:
        said = self.folder / "said.txt"
        said.unlink(missing_ok=True)
        program = Program(command, said, *words, environment=self.environment, folder=self.folder)
        assert program.end() == 0, f"{' '.join(words)}\n{program.text()}"
        return program.text()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A reader who has simulated results, and built the data set of them."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    reader.runs("pipelines.simulate")
    assert "kept" in reader.runs("pipelines.build")
    return reader


@pytest.fixture(scope="module")
def reported(reader: Reader) -> Reader:
    reader.runs("pipelines.report")
    return reader


@pytest.fixture(scope="module")
def trained(reader: Reader) -> Reader:
    reader.runs("flare_model.train")
    return reader


def test_links_lead_somewhere() -> None:
    """Links of all pages of this repository, to its files and to their headings."""
    root = README.parent
    pages = [page for folder in ("", "lpbf_data", "flare_model", "pipelines", "tests/benchmarks") for page in
             (root / folder).glob("**/*.md" if folder else "*.md") if "node_modules" not in page.parts]  # fmt: skip
    assert len(pages) > 6
    lost = []
    for page in pages:
        for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
            if target.startswith(("http:", "https:")):
                continue
            there = page.parent / target.replace("\\", "") if target else page
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE) if there.suffix == ".md" else []
            known = {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in headings}
            if not there.exists() or (heading and heading not in known):
                lost.append(f"{page.relative_to(root)}: {target}#{heading}")
    assert not lost


def test_the_two_commands_come_first() -> None:
    assert [line.split("#")[0].strip() for line in blocks("bash")[0].splitlines()] == ["make demo", "make test"]


def test_every_command_is_known() -> None:
    tested = {"simulate", "build", "verify", "report", "publish"}, {"train", "evaluate", "predict", "spectrum"}
    assert set(commands()) == {f"pipelines.{name}" for name in tested[0]} | {
        f"flare_model.{name}" for name in tested[1]
    }


def test_the_data_set_verifies_and_has_a_report(reported: Reader) -> None:
    reported.runs("pipelines.verify")
    assert (reported.folder / "lpbf" / "report.html").stat().st_size > 100_000


def test_it_is_published(reported: Reader) -> None:
    with upload_hub() as hub:
        reported.environment["HF_ENDPOINT"] = hub.url
        try:
            reported.runs("pipelines.publish")
        finally:
            del reported.environment["HF_ENDPOINT"]
        assert {"README.md", "manifest.parquet", "report.html"} <= set(hub.files)


def test_the_python_runs(reader: Reader) -> None:
    """The hub is one on the loopback interface."""
    (program,) = blocks("python")
    check = "\nassert part.y.shape == (len(part.pos), 1)\nassert len(list(stream)) == len(train)\nnext(iter(loader))"
    with serve_hub({"vedantpuri/LPBF_FLARE": {"main": reader.folder / "lpbf"}}) as hub:
        reader.environment["HF_ENDPOINT"] = hub.url
        try:
            (reader.folder / "snippet.py").write_text(f"if __name__ == '__main__':\n{_indent(program + check)}\n")
            reader.types("snippet.py")
        finally:
            del reader.environment["HF_ENDPOINT"]


def _indent(program: str) -> str:
    return "\n".join(f"    {line}" for line in program.splitlines())


def test_a_trained_model_is_evaluated_and_looked_into(trained: Reader) -> None:
    said = trained.runs("flare_model.evaluate")
    assert all(word in said for word in ("displacement_z", "zero", "mean"))
    trained.runs("flare_model.spectrum")


def test_a_part_of_ones_own_is_predicted(trained: Reader) -> None:
    surface = min((trained.folder / "netfabb_out").rglob("*.stl"))
    shutil.copy(surface, trained.folder / "part.stl")
    trained.runs("flare_model.predict")
    assert list(trained.folder.rglob("*part*.vtu"))
