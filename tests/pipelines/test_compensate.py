"""The part to print by the simulator: it ends up straight, its shell stays closed, and what can't be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from lpbf_data.errors import GeometryError, UsageError
from lpbf_data.geometry.compensation import subdivide
from lpbf_data.geometry.surface_files import load_bodies, load_surface
from lpbf_data.geometry.voxel_mesh import mesh_of_mask
from pipelines.compensate import compensate
from pipelines.simulation.compensated_build import BuildFailedError, built_displacement, compensate_mesh, distance
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.materials.material_files import load_material
from pipelines.simulation.physics.moved_elements import moved_mesh

TITANIUM = MATERIALS["Ti64"]


def box(*size: float, at: tuple[float, float, float] = (0, 0, 0)) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(size)
    return mesh.apply_translation((at[0], at[1], at[2] + size[2] / 2))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A top on one leg, which rises at its ends."""
    path = tmp_path_factory.mktemp("compensate") / "table.stl"
    mesh = trimesh.boolean.union([box(4, 10, 8.5, at=(3, 0, 2)), box(20, 10, 2, at=(3, 0, 10))], engine="manifold")
    mesh.export(path)
    return path


def run(source: Path, out: Path, **words: Any) -> dict[str, Any]:
    assert compensate(str(source), str(out), points=250, **words) == 0
    told: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return told


def test_the_printed_part_ends_up_straight(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(table, tmp_path / "new.stl")
    (body,) = told["bodies"]
    before, once, twice = (one["mean"] for one in body["distances"])
    assert before > 20 * once > 400 * twice
    surface = load_surface(tmp_path / "new.stl")  # checks that it is closed
    wanted = load_surface(table)
    assert np.abs(surface.bounds - wanted.bounds).max() < 1.01 * body["largest_move"]
    said = capsys.readouterr()
    assert "from the nominal shape as it is, then" in " ".join(said.out.split())
    assert "feet aren't flat any more" in said.err


def test_what_the_simulator_says_of_the_part_that_is_printed() -> None:
    """Independently of the loop: the mesh moved by what it found is built, and lies where it is wanted."""
    mask = np.zeros((7, 2, 5), bool)
    mask[:2], mask[:, :, 3:] = True, True
    mesh = mesh_of_mask(mask, (0, 0, 0), (2.0, 2.0, 1.2))
    plain = built_displacement(mesh, TITANIUM)
    for iterations, better in ((1, 20), (2, 400)):
        found = compensate_mesh(mesh, TITANIUM, -1.0, iterations)
        printed = moved_mesh(mesh, -found.displacement)
        ends_up = printed.points + built_displacement(printed, TITANIUM)
        off = distance(mesh.points, ends_up - mesh.points)
        assert off.mean == pytest.approx(found.distances[-1].mean, rel=1e-6)
        assert off.mean < distance(mesh.points, plain).mean / better
    np.testing.assert_array_equal(compensate_mesh(mesh, TITANIUM, -1.0, 1).displacement, plain)


def test_a_distance_is_free_of_where_the_part_lies() -> None:
    points = np.random.default_rng(0).uniform(-10, 10, (50, 3))
    turned = np.cross([1e-3, -2e-3, 5e-4], points) + np.array([0.1, -0.2, 0.3])
    assert distance(points, turned).largest < 1e-12
    bent = np.zeros_like(points)
    bent[:, 2] = 1e-3 * (points[:, 0] ** 2)
    found = distance(points, turned + bent)
    assert found.mean == pytest.approx(distance(points, bent).mean)
    assert found.largest > found.mean > 0.01


def test_bodies_stay_where_they_lie_and_a_scale_of_one_warps_them(tmp_path: Path) -> None:
    pair = trimesh.util.concatenate([box(10, 10, 12, at=(100, 0, 3)), box(10, 8, 20, at=(120, 0, 7))])
    pair.export(tmp_path / "pair.stl")
    both = []
    for scale in (-1.0, 1.0):
        told = run(tmp_path / "pair.stl", tmp_path / f"new{scale}.stl", scale=scale, iterations=1)
        assert [body["name"] for body in told["bodies"]] == ["pair_1", "pair_2"]
        assert [len(body["distances"]) for body in told["bodies"]] == [2 if scale == -1 else 1] * 2
        both.append(trimesh.load_mesh(tmp_path / f"new{scale}.stl", process=False).triangles)
    # Compensated and warped surfaces lie as far on either side of the wanted one.
    bodies = load_bodies(tmp_path / "pair.stl").bodies
    edges = [body["longest_edge"] for body in told["bodies"]]
    middle = [subdivide(body, edge)[0] for body, edge in zip(bodies, edges, strict=True)]
    wanted = np.concatenate([one.vertices[one.triangles] for one in middle])
    np.testing.assert_allclose(sum(both) / 2, wanted, atol=1e-4)
    assert np.abs(both[0] - wanted).max() > 0.01


def test_a_material_of_ones_own_moves_it_further(table: Path, tmp_path: Path) -> None:
    text = "based_on: Ti64\ncalibration: {name: mine, strain: -0.0056, source: a test}\n"
    (tmp_path / "mine.yaml").write_text(text)
    moved = [
        run(table, tmp_path / f"{number}.stl", iterations=1, scale=1.0, **words)["bodies"][0]["largest_move"]
        for number, words in enumerate(({}, {"material": str(tmp_path / "mine.yaml")}))
    ]
    assert moved[1] > 1.5 * moved[0]
    assert load_material(tmp_path / "mine.yaml").label == "ti64 (mine)"


def test_what_can_not_be_compensated_is_refused(table: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "new.stl")
    for words, said in (
        ({"scale": 5.5}, "--scale must lie between -5 and 5"),
        ({"scale": float("nan")}, "--scale must lie between -5 and 5"),
        ({"iterations": 0}, "--iterations must be 1 to 10"),
        ({"points": 10}, "--points must be 50 to"),
        ({"material": "Gold"}, "unknown --material Gold"),
        ({"out": str(table)}, "--out must be another file"),
        ({"out": "new.ply"}, "--out must be an STL file"),
        ({"src": "part.step"}, "holds no triangles; export it as STL"),
        ({"src": "part.vtu"}, "surfaces are read from"),
    ):
        with pytest.raises(UsageError, match=said):
            compensate(**({"src": str(table), "out": out} | words))  # type: ignore[arg-type]
    text = "based_on: Ti64\ncalibration: {name: mine, strain: -0.09, source: a test}\n"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BuildFailedError, match=r"more than the 2 mm that a build survives|blade jams"):
        compensate(str(table), out, points=250, material=str(tmp_path / "mine.yaml"))
    trimesh.Trimesh(box(1, 1, 1).vertices, box(1, 1, 1).faces[1:]).export(tmp_path / "open.stl")
    with pytest.raises(GeometryError, match="not watertight"):
        compensate(str(tmp_path / "open.stl"), out)
    assert not Path(out).exists()


def test_walls_that_would_run_into_each_other_are_told(tmp_path: Path) -> None:
    """Two towers with a narrow gap lean into each other where they are moved by five times what they bend."""
    (tmp_path / "soft.yaml").write_text(
        "based_on: Ti64\ncalibration: {name: soft, strain: -0.03, source: a test}\n", encoding="utf-8"
    )
    towers = [box(2, 2, 5, at=(x, 0, 1)) for x in (-1.25, 1.25)]
    trimesh.boolean.union([*towers, box(5, 2, 1.5)], engine="manifold").export(tmp_path / "towers.stl")
    words = {"points": 900, "iterations": 1, "material": str(tmp_path / "soft.yaml")}
    with pytest.raises(GeometryError, match=r"towers would cross itself at \d+ points \(x -?0\.\d+, y"):
        compensate(str(tmp_path / "towers.stl"), str(tmp_path / "new.stl"), scale=5.0, **words)  # type: ignore[arg-type]
    assert not (tmp_path / "new.stl").exists()
