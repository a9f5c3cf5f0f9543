"""The card of a data set: valid for the hub, complete, its code runs, and nothing hostile gets in."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from importlib import resources
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from PIL import Image

from lpbf_data.case.schema import DEFAULT_FIELDS, resolve_fields
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.remarks import Remark, Treatment
from pipelines.publish import with_license
from pipelines.reporting.card import make_card
from pipelines.reporting.gallery_parts import KeptCases
from tests.pipelines.report_support import HOSTILE, hostile_records, records_of


def test_the_card_is_valid_for_the_hub_and_complete(built: Path) -> None:
    card = DatasetCard.load(built / "README.md")
    data = card.data.to_dict()
    assert data["size_categories"] == ["n<1K"]
    assert {entry["split"] for entry in data["configs"][0]["data_files"]} == {"train", "test"}
    assert "license" not in data
    text = card.content
    for heading in ("How it was made", "Splits", "Statistics", "Columns", "Loading", "Known limits", "Licence"):
        assert f"\n## {heading}\n" in text
    assert "Fusion 360 Gallery" in text
    assert "arXiv:2508.12594" in text
    assert text.count("```python") == 3
    for picture in re.findall(r"!\[([^\]]+)\]\((.*?)\)", text):
        assert len(picture[0]) > 40
        assert (built / picture[1]).exists()
    rows = re.findall(r"^\| (\S.*?) \| ([\d,.]+) \((20,972)\)", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["mean"]


def test_the_card_of_own_simulations_says_so(built: Path) -> None:
    records = [
        dataclasses.replace(r, run=dataclasses.replace(r.run, solver_version="0.1.0-lpbf")) for r in records_of(built)
    ]
    specs = resolve_fields(DEFAULT_FIELDS)
    text = make_card(records, specs, ["parquet"], {}, "train=0.5,test=0.5", "0" * 64).decode()
    assert "**Every case was simulated by this project (`python -m pipelines.simulate`), not by NetFabb.**" in text
    assert "Fusion 360" not in text


def test_hostile_texts_stay_texts_on_the_card(built: Path) -> None:
    remark = Remark(Treatment.KEPT, "hostile", HOSTILE[0], 2, (HOSTILE[4],))
    specs = resolve_fields(DEFAULT_FIELDS)
    text = make_card(hostile_records(built), specs, ["parquet"], {}, "train=1", "0" * 64, remarks=[remark]).decode()
    _, front, body = text.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"pretty_name", "task_categories", "tags", "size_categories", "configs"}
    assert not re.search(r"<(script|img|!--)", body)
    assert "](javascript" not in body
    assert "деталь 部品 قطعة 🔧" in body


def test_pictures_of_the_card_show_something(built: Path) -> None:
    for name, least_colours in (("parts", 100), ("distributions", 5)):
        with Image.open(built / "pictures" / f"{name}.png") as picture:
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > least_colours
        assert (built / "pictures" / f"{name}.png").stat().st_size < 400_000


def test_the_metadata_are_words_that_the_hub_knows(built: Path) -> None:
    """What is checked here is what `datasets` and `huggingface_hub` know of the hub's rules without a network."""
    card = DatasetCard(with_license((built / "README.md").read_text(encoding="utf-8"), "cc-by-4.0"))
    known = json.loads((resources.files(datasets) / "utils/resources/size_categories.json").read_text())
    assert set(card.data.size_categories) <= set(known)
    assert card.data.license == "cc-by-4.0"
    assert card.data.task_categories == ["graph-ml"]
    configs = datasets.utils.metadata.MetadataConfigs.from_dataset_card_data(card.data)
    assert set(configs) == {"default"}
    for entry in configs["default"]["data_files"]:
        assert sorted(built.glob(entry["path"])), entry


def test_the_code_of_the_card_runs_and_gives_the_same_values(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ways to the same numbers."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("LPBF_CACHE", str(tmp_path / "cache"))
    dataset = shutil.copytree(built, tmp_path / "path", ignore=shutil.ignore_patterns(".build"))
    snippets = re.findall(r"```python\n(.*?)```", (dataset / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 3
    found = []
    for snippet in snippets:
        names: dict[str, object] = {}
        exec(snippet.replace("path/or/hub-id", str(dataset)).replace("path/", f"{dataset}/"), names)
        found.append(names)
    graph, rows, part = found
    cases = KeptCases(DatasetFolder(dataset))
    first = graph["graph"].case_id  # type: ignore[attr-defined]
    truth = cases.read(first, ["displacement"]).fields["displacement"][:, 2]
    np.testing.assert_array_equal(graph["graph"].y.numpy()[:, 0], truth)  # type: ignore[attr-defined]
    assert rows["rows"][0]["case_id"] == first  # type: ignore[index]
    np.testing.assert_array_equal(rows["displacement_z"], truth)
    assert str(part["part"]["case_id"].values[0]) == first  # type: ignore[index]
    np.testing.assert_array_equal(part["displacement_z"], truth)
