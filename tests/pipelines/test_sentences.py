"""The page that lists what is refused and warned of has the sentences that users see."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("pipelines/sources", "pipelines/netfabb", "pipelines/building", "pipelines/selection", "lpbf_data/geometry")
HEADING = "## What is refused, what is warned of\n"
_SHOWN = 32  # characters of a sentence that must be there, from its beginning or behind its first number


def constants(node: ast.expr) -> list[str]:
    """The fixed parts of a text."""
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    return [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]


def sentences() -> Iterator[tuple[str, str]]:
    """Where it stands and the longest fixed part of every sentence of a remark."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "sentence"
                if named and (parts := constants(node.value)):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", max(parts, key=len)


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("`", ""))


def page() -> str:
    text = (ROOT / "pipelines" / "README.md").read_text(encoding="utf-8")
    assert text.count(HEADING) == 1
    return plain(text.split(HEADING)[1].split("\n## ")[0])


SENTENCES = dict(sentences())


def test_sentences_are_found() -> None:
    assert len(SENTENCES) > 20


@pytest.mark.parametrize("place", SENTENCES)
def test_a_sentence_of_a_remark_stands_on_the_page(place: str) -> None:
    assert plain(SENTENCES[place])[:_SHOWN].strip(" ,;") in page()


PACKAGES = ("pipelines", "lpbf_data", "flare_model")
_VARIES = re.compile(r"[\d(){}:;…·→=`%]+|\bnote\b|\blpbf\b|\b(?:left out|changed|guessed|repaired|kept)(?=:)")


@functools.cache  # not at import, which all processes of pytest do
def said_by_code() -> str:
    """The fixed parts of every text in the code, one a line; a text that is one in the code is one here."""
    found: dict[str, None] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr | ast.Constant):
                    found |= dict.fromkeys(map(plain, constants(node)))
    return "\n".join(found)


def fragments() -> list[str]:
    """What the page says that users see, cut where numbers and names stand, in pieces of four words and more."""
    text = (ROOT / "pipelines" / "README.md").read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0]
    found = []
    for line in text.splitlines():
        if line.startswith("|") and not re.match(r"\|(-|\s*(what|met)\b)", line):
            pieces = (plain(piece).strip(" ,.'") for piece in _VARIES.split(line.strip().strip("|").split(" | ")[-1]))
            found += [piece for piece in pieces if len(piece.split()) >= 4]
    return list(dict.fromkeys(found))


def unsaid(fragment: str) -> list[str]:
    """Words of a fragment that stand in no run of three that the code says."""
    words, left = fragment.split(), []
    while words:
        length = next((n for n in range(len(words), 2, -1) if " ".join(words[:n]) in said_by_code()), 0)
        if not length:
            left.append(words[0])
        words = words[length or 1 :]
    return left


def test_the_page_is_cut_into_sentences() -> None:
    assert len(fragments()) > 60
    assert "close its holes in a CAD program" in fragments()
    assert unsaid("close its holes in a cupboard") == ["cupboard"]


@pytest.mark.parametrize("fragment", fragments())
def test_a_sentence_of_the_page_stands_in_the_code(fragment: str) -> None:
    """So that the page doesn't tell of what is said otherwise by now; a name or a unit in it may vary."""
    assert len(unsaid(fragment)) <= (2 if len(fragment.split()) > 5 else 1)
