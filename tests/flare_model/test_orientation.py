"""Orientations of a part: directions, rotations, overhangs by hand, and a ranking like that of single predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from flare_model import from_pretrained
from flare_model.decision.answer import Auxiliary, answer_of
from flare_model.decision.orientation import (
    MAX_RANKED_POINTS,
    cost_of,
    directions,
    points_for_equal_cells,
    rank_orientations,
    rotation_to,
    turn,
)
from flare_model.decision.overhangs import overhangs_of
from flare_model.decision.prediction import predict_part
from flare_model.predict import predict
from flare_model.prediction.surface_parts import mesh_surface
from lpbf_data.errors import UsageError
from lpbf_data.geometry.surface_files import load_surface
from tests.flare_model.test_decision import box, model, part_of, surface_of, table, write_constant_risk

__all__ = ["model"]


def test_directions_differ_and_begin_with_the_part_as_it_is() -> None:
    found = np.array(directions(surface_of(table()), 24))
    assert found.shape == (24, 3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert found[0].tolist() == [0, 0, -1]
    assert (found @ found.T - np.eye(24)).max() < np.cos(np.radians(8))
    sides = {tuple(row) for row in np.vstack([np.eye(3), -np.eye(3)]).tolist()}
    assert sides <= {tuple(row) for row in found[:7].round(6).tolist()}


@pytest.mark.parametrize("seed", range(4))
def test_a_rotation_turns_its_direction_down_and_keeps_lengths(seed: int) -> None:
    down = np.random.default_rng(seed).normal(size=3)
    down = np.array([0.0, 0.0, 1.0]) if seed == 0 else down / np.linalg.norm(down)
    rotation = rotation_to(down)
    np.testing.assert_allclose(rotation @ down, [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    turned = turn(surface_of(table()), rotation)
    assert turned.volume == pytest.approx(surface_of(table()).volume)
    np.testing.assert_allclose(turned.bounds[0] + turned.bounds[1], [0, 0, np.ptp(turned.bounds[:, 2])], atol=1e-9)


def test_overhangs_of_a_table_by_hand() -> None:
    part = part_of(table(), 3000)
    assert part.origin is not None
    found = overhangs_of(part.origin.surface, part.points, part.cells)
    assert found.area == pytest.approx(160)  # the underside of the top, less the area of the leg
    assert found.support_volume == pytest.approx(160 * 8, rel=0.1)
    assert found.height == pytest.approx(10)
    over = turn(part.origin.surface, rotation_to(np.array([0.0, 0.0, 1.0])))
    upside = mesh_surface(over, "upside", 3000)
    none = overhangs_of(over, upside.points, upside.cells)
    assert (none.area, none.support_volume) == (0, 0)


def test_a_face_overhangs_below_45_degrees() -> None:
    areas = []
    for degrees in (44, 46):
        plate = trimesh.creation.box((10, 10, 1))
        plate.apply_transform(trimesh.transformations.rotation_matrix(np.radians(degrees), [0, 1, 0]))
        surface = turn(surface_of(plate), np.eye(3))
        part = mesh_surface(surface, "plate", 500)
        areas.append(overhangs_of(surface, part.points, part.cells).area)
    # At 44 degrees the plate's underside; at 46 degrees its narrow end, which then is at 44 degrees to the build plate.
    assert areas == pytest.approx([100, 10])


def test_a_ranking_agrees_with_single_predictions(model: Path, tmp_path: Path) -> None:
    surrogate, part = from_pretrained(model), part_of(table())
    assert part.origin is not None
    ranking = rank_orientations(surrogate, Auxiliary(), part, 5, best=2)
    moved = [way.displacement for way in ranking.orientations]
    assert len(moved) == 5
    assert moved == sorted(moved)
    first, second = ranking.best
    assert {id(first.turned), id(second.turned)} == {id(way) for way in ranking.orientations[:2]}
    full = [max(abs(best.answer.up.value), abs(best.answer.down.value)) for best in (first, second)]  # type: ignore[union-attr]
    assert full == sorted(full)
    turned = turn(part.origin.surface, rotation_to(np.array(first.turned.down)))
    again = mesh_surface(turned, "part", len(part.points), refined=True)
    wanted = answer_of(predict_part(surrogate, again), Auxiliary(), ("ti64",))
    assert first.answer == wanted
    with pytest.raises(UsageError, match="only surfaces"):
        rank_orientations(surrogate, Auxiliary(), part.__class__("mesh", part.points, part.cells), 3)


def test_all_orientations_have_cells_of_similar_size(model: Path) -> None:
    """A plate along the axes is meshed with wide cells; tilted it needs narrow ones, which then all get."""
    surrogate, part = from_pretrained(model), part_of(box(30, 30, 1.2), 300)
    ranking = rank_orientations(surrogate, Auxiliary(), part, 7, best=1)
    cells = [np.prod(way.answer.mesh["cell"]) ** (1 / 3) for way in ranking.orientations if way.answer is not None]
    assert len(cells) == 7
    assert max(cells) < 1.4 * min(cells)
    first = [
        mesh_surface(turn(surface_of(box(30, 30, 1.2)), way.rotation), "plate", 300) for way in ranking.orientations
    ]
    assert max(len(one.points) for one in first) > 4 * min(len(one.points) for one in first)
    assert points_for_equal_cells([(300, 2.0), None, (1500, 1.0), (400, 1.3)]) == [2400, None, None, None]
    assert points_for_equal_cells([(300, 100.0), (300, 1.0)]) == [MAX_RANKED_POINTS, None]


def test_the_cost_of_an_orientation_rises_with_the_chance_of_a_hit() -> None:
    assert cost_of(0.1, 0.0) == 0.1
    assert cost_of(0.1, 1.0) == pytest.approx(0.5)
    assert cost_of(0.1, 0.5) < cost_of(0.35, 0.0) < cost_of(0.1, 0.9)


def test_the_command_ranks_orientations_and_writes_pictures_and_surfaces(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_constant_risk(model, 0.0)
    box(10, 12, 30).export(tmp_path / "bar.stl")
    out = tmp_path / "out"
    monkeypatch.setattr("flare_model.decision.orientation.PATIENCE", 0.0)
    assert predict(str(model), [str(tmp_path / "bar.stl")], out=str(out), points=150, orientations=4) == 0
    captured = capsys.readouterr()
    told = captured.out
    assert "bar, turned: 4 of 4 orientations (100 %) after " in captured.err
    page = (out / "answer.html").read_text(encoding="utf-8")
    rows = [line.split() for line in told.splitlines() if line.strip()[:2] in ("1 ", "4 ")]
    assert len(rows) == 2  # the best and the last, as on the page
    for row in rows:
        risk, warps, height, area, volume = row[-5:]
        words = f"risk of a hit {risk}, warps {warps} µm, height {height} mm, overhangs {area} mm², supports {volume}"
        assert f"<dt>{row[0]}.</dt><dd>{' '.join(row[1:-5])}: {words} mm³</dd>" in page
    assert "<dt>best 1</dt><dd>with all points, " in page
    assert "bar: 4 orientations, best first" in told
    assert "best 3, with all points: " in told
    stored = json.loads((out / "bar_orientations.json").read_text())["orientations"]
    assert len(stored) == 4
    for number in (1, 2, 3):
        built = load_surface(out / f"bar_best_{number}.stl")
        assert built.volume == pytest.approx(10 * 12 * 30, rel=1e-5)
        (down,) = (np.array(way["down"]) for way in stored if way.get("best") == number)
        assert np.ptp(built.bounds[:, 2]) == pytest.approx(np.abs(down) @ [10, 12, 30], rel=1e-5)
    assert (out / "bar_orientations.png").read_bytes().startswith(b"\x89PNG")
