"""Materials as YAML files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lpbf_data.errors import UsageError
from pipelines.simulation.materials.calibrations import CALIBRATIONS
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.materials.material_files import choose_material, load_material, material_values


@pytest.mark.parametrize("calibration", list(CALIBRATIONS))
@pytest.mark.parametrize("name", list(MATERIALS))
def test_a_material_reads_back_as_it_was_written(name: str, calibration: str, tmp_path: Path) -> None:
    material = MATERIALS[name].calibrated(calibration)
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(material_values(material)), encoding="utf-8")
    assert load_material(tmp_path / "one.yaml") == material


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("based_on: Ti64\nexpansion: hot\n", "expansion must be a number"),
        ("based_on: Ti64\npoisson: 0.6\n", "poisson must be"),
        ("based_on: Ti64\ncolour: red\n", "unknown colour"),
        ("name: mine\n", "must be given"),
        ("- a\n", "isn't a material file"),
    ],
)
def test_a_wrong_file_is_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        choose_material(str(tmp_path / "bad.yaml"))
