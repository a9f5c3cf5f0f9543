"""The page that lists what is refused and warned of has the sentences that users see."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("pipelines/sources", "pipelines/netfabb", "pipelines/building", "pipelines/selection", "lpbf_data/geometry")
HEADING = "## What is refused, what is warned of\n"
_SHOWN = 32  # characters of a sentence that must be there, from its beginning or behind its first number


def constants(node: ast.expr) -> list[str]:
    """The fixed parts of a text."""
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    return [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]


def sentences() -> Iterator[tuple[str, str]]:
    """Where it stands and the longest fixed part of every sentence of a remark."""
    for room in ROOMS:
        for path in sorted((ROOT / room).glob("*.py")):
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
