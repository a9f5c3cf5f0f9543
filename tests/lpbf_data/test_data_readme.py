"""Every Python block of the package's README runs, one after the other, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import lpbf_data
from tests.data_hub_server import serve_hub
from tests.data_support import make_case, write_dataset, write_published
from tests.lpbf_data.launch_support import launch_command, run_program

README = Path(lpbf_data.__file__).with_name("README.md")
TEXT = README.read_text(encoding="utf-8")
PAGE = TEXT[TEXT.index("## With Lightning, accelerate, SLURM") : TEXT.index("## For analysis")]


def blocks_of(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


BLOCKS = blocks_of(TEXT.replace(PAGE, ""))
SCRIPTS = dict(zip(("none", "accelerate", "torchrun"), blocks_of(PAGE), strict=True))
"""Programs of their own, by what starts them."""
GROUP = "    import weakref\n    group = weakref.ref(torch.distributed.group.WORLD)\n"
ENDED = '    assert group() is None, "the group lives on"\n'


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [make_case(seed, 5_000) for seed in range(16)]
    (tmp_path / "lpbf").mkdir()
    write_dataset(tmp_path / "lpbf", {"train": cases})
    write_published(tmp_path / "published", {"train": cases[:2]})
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with serve_hub({"vedantpuri/LPBF_FLARE": {"main": tmp_path / "published"}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"{README.name}, block {number}", "exec"), names)
    assert len(BLOCKS) >= 7
    assert names["part"].case_id == cases[0].case_id
    assert names["state"]["consumed"] == 2
    assert names["other"].state_dict()["consumed"] == 2
    assert names["saved"]["epoch"] == 1
    exact = float(names["stress"])
    assert exact <= names["percentile"] <= exact + 0.5


# What accelerate starts, `test_data_accelerate` does in the fast suite.
@pytest.mark.parametrize("launcher", ["none", "torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_what_the_readme_says_of_launchers_runs(tmp_path: Path, launcher: str) -> None:
    place = tmp_path / "run"
    (place / "lpbf").mkdir(parents=True)
    write_dataset(place / "lpbf", {name: [make_case(seed) for seed in range(4)] for name in ("train", "validation")})
    script = SCRIPTS[launcher]
    if launcher == "torchrun":
        script = script.replace("    del model", f"{GROUP}    del model") + ENDED
    (place / "train.py").write_text(script, encoding="utf-8")
    command = launch_command(launcher, ranks=2 if launcher != "none" else 1)
    said = run_program([*command, str(place / "train.py")], place, {"ACCELERATE_USE_CPU": "true"})
    assert "RanksWarning" not in said
    assert "shared out twice" not in said
