"""Parts like those that engineers print: whether their mesh represents them, and what is reported where it doesn't."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import trimesh

from flare_model import from_pretrained
from flare_model.decision.answer import Answer, Auxiliary, answer_of
from flare_model.decision.answer_text import answer_facts, answer_line
from flare_model.decision.prediction import predict_part
from flare_model.judging.risk_curves import LogisticCurve
from flare_model.judging.risk_model import RiskModel
from flare_model.prediction.part import Meshing, Part
from flare_model.prediction.parts import read_parts
from lpbf_data.errors import GeometryError
from lpbf_data.geometry.mesh_check import check_mesh
from lpbf_data.geometry.voxelize import voxelize_to_size
from tests.flare_model.test_decision import box, model, part_of, surface_of

__all__ = ["model"]

LIKELY_HIT = Auxiliary(risk_model=RiskModel("build_clearance_min", LogisticCurve(-80.0, 5.0, 9.0, 0.0), 100, 50))


def union(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.boolean.union(list(meshes), engine="manifold")


def difference(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.boolean.difference(list(meshes), engine="manifold")


def fins() -> trimesh.Trimesh:
    """Thirteen fins of 0.3 mm on a plate."""
    return union(box(30, 30, 2), *(box(0.3, 28, 15, at=(x, 0, 1.5)) for x in np.arange(-13, 13.1, 2)))


def lattice() -> trimesh.Trimesh:
    """Inclined struts of 1 mm between two plates, and upright ones of 1.2 mm."""
    places = (-8.0, 0.0, 8.0)
    struts = [((x, y, 0.5), (x, y, 17.5), 0.6) for x in places for y in places]
    for x, y, z in ((x, y, z) for x in places[:2] for y in places[:2] for z in (0.5, 9.0)):
        struts += [((x, y, z), (x + 8, y + 8, z + 8.5), 0.5), ((x + 8, y, z), (x, y + 8, z + 8.5), 0.5)]
    drawn = [trimesh.creation.cylinder(r, segment=[a, b], sections=8) for a, b, r in struts]
    return union(box(24, 24, 1), box(24, 24, 1, at=(0, 0, 17)), *drawn)


def gyroid() -> trimesh.Trimesh:
    """A gyroid's sheet, about 0.8 mm thick, in a cube of 20 mm."""
    import manifold3d

    def depth(x: float, y: float, z: float) -> float:
        a, b, c = (2 * np.pi / 10 * v for v in (x, y, z))
        return float(0.45 - abs(np.sin(a) * np.cos(b) + np.sin(b) * np.cos(c) + np.sin(c) * np.cos(a)))

    mesh = manifold3d.Manifold.level_set(depth, (-10, -10, 0.0, 10, 10, 20.0), 1.0).to_mesh()
    return trimesh.Trimesh(mesh.vert_properties[:, :3], mesh.tri_verts)


def raised_text(depth: float = 0.6) -> trimesh.Trimesh:
    """Four letters on a plate."""
    import manifold3d
    from matplotlib.textpath import TextPath

    outlines = [np.asarray(outline)[:-1] for outline in TextPath((-14, -4), "LPBF", size=10).to_polygons()]
    section = manifold3d.CrossSection(outlines, manifold3d.FillRule.EvenOdd)
    mesh = manifold3d.Manifold.extrude(section, depth + 0.5).translate((0, 0, 3.5)).to_mesh()
    return union(box(32, 14, 4), trimesh.Trimesh(mesh.vert_properties[:, :3], mesh.tri_verts))


def cut_feet() -> trimesh.Trimesh:
    """A table of which one foot is cut off 2.5 mm above the plate."""
    feet = [box(4, 4, 12.5, at=(x, y, 0)) for x, y in ((12, -12), (-12, 12), (12, 12))]
    return union(box(30, 30, 3, at=(0, 0, 12)), *feet, box(4, 4, 10, at=(-12, -12, 2.5)))


def bracket() -> trimesh.Trimesh:
    """An L-shaped bracket with two holes in its base and one in its upright side."""
    holes = [trimesh.creation.cylinder(2.6, segment=[(x, 0, -1), (x, 0, 9)], sections=48) for x in (0, 12)]
    holes.append(trimesh.creation.cylinder(4, segment=[(-25, 0, 18), (-10, 0, 18)], sections=48))
    return difference(union(box(40, 20, 4), box(4, 20, 30, at=(-18, 0, 0))), *holes)


def cup(wall: float, size: float = 30) -> trimesh.Trimesh:
    """A box that is open at the top; `wall` and `size` in mm."""
    return difference(box(size, size, 20), box(size - 2 * wall, size - 2 * wall, 20, at=(0, 0, 1)))


def answer_for(folder: Path, part: Part) -> Answer:
    return answer_of(predict_part(from_pretrained(folder), part), LIKELY_HIT)


def printed_facts(told: Answer) -> dict[str, str]:
    return dict(answer_facts(told))


@pytest.mark.parametrize("draw", [bracket, cut_feet])
def test_a_part_that_the_mesh_resolves_gets_a_verdict(model: Path, draw: object) -> None:
    mesh = draw()  # type: ignore[operator]
    told = answer_for(model, part_of(mesh, 2000))
    assert told.volume == pytest.approx(mesh.volume)
    assert told.mesh["volume_share"] == pytest.approx(1, abs=0.07)
    assert told.mesh["lost"] == ()
    assert told.mesh["wall"] == pytest.approx(4 if draw is bracket else 3, rel=0.01)
    assert told.hit is not None
    assert told.hit.verdict == "yes"
    assert "too coarse" not in printed_facts(told)["mesh"]


def test_a_foot_that_ends_above_the_plate_overhangs(model: Path) -> None:
    part = part_of(cut_feet(), 2000)
    low = part.points[part.points[:, 2] == part.points[:, 2].min()]
    assert not ((low[:, 0] < 0) & (low[:, 1] < 0)).any()
    ends = part.points[(part.points[:, :2] < -9).all(axis=1)]
    assert ends[:, 2].min() == pytest.approx(2.5, abs=0.7)


@pytest.mark.parametrize(
    ("draw", "missing", "advice"),
    [
        (fins, 0.5, r"no mesh .* represents the part, up to 50,000 points; make these walls 0\.\d+ mm thick"),
        (lattice, 0.1, r"--points \d+ gives a mesh that represents the part"),
    ],
)
def test_a_part_whose_mesh_lacks_walls_gets_no_verdict(model: Path, draw: object, missing: float, advice: str) -> None:
    part = part_of(draw(), 2000)  # type: ignore[operator]
    told = answer_for(model, part)
    assert part.origin is not None
    assert part.origin.check.missing > missing
    assert told.hit is not None
    assert (told.hit.verdict, told.hit.why) == ("can't tell", "its mesh isn't quite the part, see below")
    assert told.hit.chance is not None
    assert told.hit.chance > 0.99
    assert re.search(r"\d\d% of its walls are missing", printed_facts(told)["mesh"])
    assert re.search(f"so coarse for that wall .*: {advice}", printed_facts(told)["mesh"])
    assert "can't tell whether the recoater hits it (a hit is more than 99 % likely)" in answer_line(told)


@pytest.mark.parametrize("draw", [lattice, raised_text, gyroid])
def test_the_suggested_number_of_points_resolves_the_walls(draw: object) -> None:
    surface = surface_of(draw())  # type: ignore[operator]
    part = part_of(draw(), 2000)  # type: ignore[operator]
    assert part.origin is not None
    needed = part.origin.check.needed_points
    assert needed is not None
    check = check_mesh(surface, voxelize_to_size(surface, needed, layer=0.04))
    assert check.cells_across is not None
    assert check.cells_across >= 1
    assert check.missing < 0.02
    assert check.is_quite_the_part
    assert check.differences() == ()


def test_the_thickness_of_a_gyroids_sheet_is_measured(model: Path) -> None:
    part = part_of(gyroid(), 2000)
    told = printed_facts(answer_for(model, part))
    assert part.origin is not None
    assert part.origin.check.missing < 0.05
    assert 0.3 < (part.origin.check.wall or 0) < 1.1
    assert "of the volume" in told["mesh"]
    assert told["size"].startswith("20 × 20 × 20 mm")


def test_letters_thinner_than_a_cell_are_reported(model: Path) -> None:
    part = part_of(raised_text(), 2000)
    told = answer_for(model, part)
    assert part.origin is not None
    assert told.mesh["cells_across"] < 1
    assert "so coarse for that wall" in printed_facts(told)["mesh"]
    assert told.size[2] == pytest.approx(4.6)


def test_walls_that_50000_points_do_not_resolve_are_refused_with_a_thickness_that_they_would() -> None:
    with pytest.raises(GeometryError, match="walls are missing") as refused:
        part_of(cup(0.1, 50), 2000)
    sentence = str(refused.value)
    wall = re.search(r"make these walls ([\d.]+) mm thick, or cut the part into pieces", sentence)
    assert wall is not None
    # Walls of that thickness are resolved by as many points.
    surface = surface_of(cup(float(wall[1]), 50))
    check = check_mesh(surface, voxelize_to_size(surface, 50_000, layer=0.04))
    assert check.cells_across == pytest.approx(1, abs=0.25)
    assert check.missing < 0.05


def test_bodies_of_one_file_are_numbered_and_a_part_that_is_too_large_gets_no_verdict(
    model: Path, tmp_path: Path
) -> None:
    pieces = [box(8, 8, 10, at=(-15, -15, 0)), box(6, 6, 20, at=(10, 10, 0)), box(10, 10, 5, at=(15, -15, 0))]
    trimesh.util.concatenate(pieces).export(tmp_path / "plate.stl")
    parts = [part for part in read_parts(tmp_path / "plate.stl", Meshing(400)) if isinstance(part, Part)]
    told = [answer_for(model, part) for part in parts]
    assert [one.body for one in told] == [(1, 3), (2, 3), (3, 3)]
    assert [one.size[2] for one in told] == pytest.approx([10, 20, 5])
    assert "body 2 of 3" in printed_facts(told[1])["size"]
    (huge,) = (answer_for(model, part) for part in (part_of(box(200, 70, 30), 400),))
    assert "larger than the build volume of 60 × 60 × 60 mm that the model knows: cut it" in printed_facts(huge)["size"]
    assert huge.hit is not None
    assert huge.hit.verdict == "can't tell"
    assert huge.hit.why.startswith("it is unlike")
    assert "e+" not in " ".join(printed_facts(huge).values())


def angle(wall: float) -> trimesh.Trimesh:
    """An L of 40 × 30 × 34 mm on the plate."""
    return union(box(40, 30, wall), box(wall, 30, 34, at=((wall - 40) / 2, 0, 0)))


@pytest.mark.parametrize("wall", [4.0, 5.0, 5.5, 6.0])
def test_brackets_are_represented_well_by_a_refined_mesh(tmp_path: Path, wall: float) -> None:
    """Refined, a mesh has more points where cells of the usual size make walls too thick or too thin."""
    angle(wall).export(tmp_path / "bracket.stl")
    plain, refined = (
        next(read_parts(tmp_path / "bracket.stl", Meshing(1792, refined=refined))) for refined in (False, True)
    )
    assert isinstance(plain, Part)
    assert isinstance(refined, Part)
    assert plain.origin is not None
    assert refined.origin is not None
    assert refined.origin.check.is_quite_the_part
    named = [remark for remark in refined.remarks if remark.kind == "refined"]
    assert len(named) == (not plain.origin.check.is_quite_the_part)
    assert len(plain.points) <= len(refined.points) <= 4 * 1792 * 1.1


def test_an_error_about_a_mesh_suggests_another_unit(tmp_path: Path) -> None:
    mesh = angle(5.0)
    mesh.apply_scale(1e-3)
    mesh.export(tmp_path / "metres.stl")
    hint = (
        r"metres.stl: lengths were read in mm, since .* if they are in metres, use --units m.*, if in mm, --units mm;"
    )
    with pytest.raises(GeometryError, match=hint) as refused:
        list(read_parts(tmp_path / "metres.stl", Meshing(2000)))
    assert "points" not in str(refused.value)
    with pytest.raises(GeometryError, match=r"read in mm, and the part is less than 1 mm wide.*; .* points"):
        list(read_parts(tmp_path / "metres.stl", Meshing(2000, units="mm")))  # stated, and so the mesh is to blame
