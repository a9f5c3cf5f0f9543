"""Files of surfaces: one of each suffix, units, true reasons, repairs, bodies, and archives that unfold without end."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import manifold3d
import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface, surface_of_arrays
from lpbf_data.geometry.face_counts import MAX_TRIANGLES
from lpbf_data.geometry.stl import stl_bytes
from lpbf_data.geometry.surface_files import bodies_of, load_bodies, load_surface
from lpbf_data.geometry.surface_formats import MILLIMETRES, SURFACE_SUFFIXES, Units
from lpbf_data.geometry.surface_repair import repair
from lpbf_data.geometry.voxelize import fill_fractions, voxelize

CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"


def write_text_stl(path: Path, corners: NDArray[np.float64], *, end: bool = True, name: str = "part") -> None:
    lines = [f"solid {name}"]
    for facet in corners.tolist():
        lines += ["facet normal 0 0 0", " outer loop"]
        lines += [f"  vertex {x!r} {y!r} {z!r}" for x, y, z in facet]
        lines += [" endloop", "endfacet"]
    path.write_text("\n".join(lines + [f"endsolid {name}"] * end) + "\n")


def write_3mf(path: Path, mesh: trimesh.Trimesh, unit: str | None, build: str = '<item objectid="1"/>') -> None:
    vertices = "".join(f'<vertex x="{x}" y="{y}" z="{z}"/>' for x, y, z in mesh.vertices.tolist())
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in mesh.faces.tolist())
    stated = "" if unit is None else f' unit="{unit}"'
    model = (
        f'<?xml version="1.0" encoding="UTF-8"?><model{stated} xmlns="{CORE}"><resources><object id="1" type="model">'
        f"<mesh><vertices>{vertices}</vertices><triangles>{triangles}</triangles></mesh></object></resources>"
        f"<build>{build}</build></model>"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("3D/3dmodel.model", model)


def kinds(path: Path, units: Units | None = None) -> list[str]:
    return [remark.kind for remark in load_bodies(path, units).remarks]


@pytest.mark.parametrize("suffix", SURFACE_SUFFIXES)
def test_a_file_of_each_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    mesh, path = trimesh.creation.cylinder(radius=5, height=7, sections=24), tmp_path / f"part{suffix}"
    if suffix == ".3mf":
        write_3mf(path, mesh, "millimeter")
    else:
        mesh.export(path)
    (body,) = load_bodies(path).bodies
    assert body.volume == pytest.approx(mesh.volume, rel=1e-6)
    np.testing.assert_allclose(body.bounds, mesh.bounds, atol=1e-5)
    assert kinds(path) == []


@pytest.mark.parametrize(
    ("unit", "length"),
    [("micron", 1e-3), ("millimeter", 1), ("centimeter", 10), ("inch", 25.4), ("foot", 304.8), ("meter", 1e3)],
)
def test_a_3mf_states_its_unit(tmp_path: Path, unit: str, length: float) -> None:
    size = 20 / length
    write_3mf(tmp_path / "cube.3mf", trimesh.creation.box((size, size, size)), unit)
    assert load_surface(tmp_path / "cube.3mf").volume == pytest.approx(8000)
    assert kinds(tmp_path / "cube.3mf") == []


def test_others_read_the_stl_that_is_written() -> None:
    made = trimesh.creation.annulus(3, 5, 7)
    surface = surface_of_arrays(made.vertices, made.faces)
    content = stl_bytes(surface, "lengths in mm")
    assert content.startswith(b"lengths in mm ")
    assert stl_bytes(surface)[:80] == bytes(80)
    read = trimesh.load(io.BytesIO(content), file_type="stl", process=False)
    np.testing.assert_array_equal(read.triangles, surface.vertices.astype(np.float32)[surface.triangles])
    np.testing.assert_allclose(read.face_normals, made.face_normals, atol=1e-6)


def test_a_3mf_without_a_unit_is_in_millimetres_and_units_given_win(tmp_path: Path) -> None:
    write_3mf(tmp_path / "cube.3mf", trimesh.creation.box((20, 20, 20)), None)
    assert load_surface(tmp_path / "cube.3mf").volume == pytest.approx(8000)
    assert load_surface(tmp_path / "cube.3mf", "cm").volume == pytest.approx(8e6)
    assert kinds(tmp_path / "cube.3mf", "cm") == ["units"]
    write_3mf(tmp_path / "odd.3mf", trimesh.creation.box(), "parsec")
    with pytest.raises(GeometryError, match="unit 'parsec' is unknown"):
        load_surface(tmp_path / "odd.3mf")


def test_a_3mf_places_its_objects(tmp_path: Path) -> None:
    build = '<item objectid="1"/><item objectid="1" transform="0 2 0 -1 0 0 0 0 1 30 0 5"/>'
    write_3mf(tmp_path / "two.3mf", trimesh.creation.box((4, 6, 8)), "millimeter", build)
    first, second = load_bodies(tmp_path / "two.3mf").bodies
    assert first.volume == pytest.approx(4 * 6 * 8)
    assert second.volume == pytest.approx(2 * 4 * 6 * 8)
    np.testing.assert_allclose(second.bounds, [[27, -4, 1], [33, 4, 9]])


@pytest.mark.parametrize("units", list(MILLIMETRES))
def test_units_of_a_file_that_states_none_can_be_given(tmp_path: Path, units: Units) -> None:
    size = 20 / MILLIMETRES[units]
    trimesh.creation.box((size, size, size)).export(tmp_path / "box.stl")
    assert load_surface(tmp_path / "box.stl", units).volume == pytest.approx(8000, rel=1e-5)
    assert kinds(tmp_path / "box.stl", units) == []


def test_parts_of_35_micrometres_or_4_metres_are_warned_of_and_those_that_may_be_in_inches(tmp_path: Path) -> None:
    for size, shown, advice in (
        (0.035, "0.035 mm", "--units m"),
        (1.5, "1.5 mm, in inches it would be 38.1 mm", "--units inch"),
        (4500.0, "4.5e+03 mm", "--units um"),
    ):
        trimesh.creation.box((size, size / 2, size / 3)).export(tmp_path / "box.stl")
        (remark,) = load_bodies(tmp_path / "box.stl").remarks
        assert (remark.treatment, remark.kind) == ("guessed", "unusual_size")
        assert advice in remark.sentence
        assert shown in str(remark)
        assert "the file states no unit" in remark.sentence


def test_small_parts_far_apart_in_one_file_may_be_in_inches_too(tmp_path: Path) -> None:
    boxes = [trimesh.creation.box((1, 1, 0.5)) for _ in range(3)]
    for number, one in enumerate(boxes):
        one.apply_translation((5.5 * number, 0, 0))
    trimesh.util.concatenate(boxes).export(tmp_path / "plate.stl")
    said = [str(remark) for remark in load_bodies(tmp_path / "plate.stl").remarks if remark.kind == "unusual_size"]
    assert len(said) == 1
    assert "1 mm, in inches it would be 25.4 mm" in said[0]


def box_corners() -> NDArray[np.float64]:
    mesh = trimesh.creation.box((20, 20, 20))
    return np.asarray(mesh.vertices[mesh.faces])


def test_a_text_stl_whose_name_holds_keywords_or_that_does_not_end_is_read(tmp_path: Path) -> None:
    write_text_stl(tmp_path / "name.stl", box_corners(), name="facet of vertex plate")
    assert load_surface(tmp_path / "name.stl").volume == pytest.approx(8000)
    assert kinds(tmp_path / "name.stl") == []
    write_text_stl(tmp_path / "open.stl", box_corners(), end=False)
    assert load_surface(tmp_path / "open.stl").volume == pytest.approx(8000)
    assert kinds(tmp_path / "open.stl") == ["stl_no_end"]


def test_decimal_commas_are_read_as_points(tmp_path: Path) -> None:
    write_text_stl(tmp_path / "point.stl", box_corners() + 0.5)
    text = (tmp_path / "point.stl").read_text()
    (tmp_path / "comma.stl").write_text(text.replace(".", ","))
    np.testing.assert_allclose(load_surface(tmp_path / "comma.stl").bounds, [[-9.5] * 3, [10.5] * 3])
    assert kinds(tmp_path / "comma.stl") == ["decimal_commas"]
    (tmp_path / "thousands.stl").write_text(text.replace("10.5", "1,010.5"))
    with pytest.raises(GeometryError, match=r"isn't three numbers: '.*1,010.5"):
        load_surface(tmp_path / "thousands.stl")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_text_stl_that_is_cut_short_says_so(tmp_path: Path, share: float) -> None:
    write_text_stl(tmp_path / "part.stl", box_corners())
    content = (tmp_path / "part.stl").read_bytes()
    end = content.rfind(b"vertex", 0, int(share * len(content))) + 9
    (tmp_path / "part.stl").write_bytes(content[:end])
    with pytest.raises(GeometryError, match=r"cut short|isn't three numbers"):
        load_surface(tmp_path / "part.stl")


def test_a_binary_stl_says_what_is_wrong_with_its_size(tmp_path: Path) -> None:
    trimesh.creation.box((20, 20, 20)).export(tmp_path / "box.stl")
    content = (tmp_path / "box.stl").read_bytes()
    path = tmp_path / "part.stl"
    path.write_bytes(content[:-60])
    with pytest.raises(GeometryError, match="cut short: it says that it holds 12 triangles, and 10 are there"):
        load_surface(path)
    path.write_bytes(content + b"\0")
    assert (load_surface(path).volume, kinds(path)) == (pytest.approx(8000), ["stl_extra_bytes"])
    path.write_bytes(content[:80] + bytes(4) + content[84:])
    assert (load_surface(path).volume, kinds(path)) == (pytest.approx(8000), ["stl_count"])
    path.write_bytes(content + content[84:184])
    with pytest.raises(GeometryError, match="says that it holds 12 triangles, and its size is that of 14"):
        load_surface(path)
    path.write_bytes(b"solid" + content[5:])  # binary files whose header begins as text does
    assert load_surface(path).volume == pytest.approx(8000)
    path.write_bytes(content[:80] + bytes(4))
    with pytest.raises(GeometryError, match="holds no triangles"):
        load_surface(path)
    path.write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(GeometryError, match=r"no STL file|cut short"):
        load_surface(path)


def test_holes_are_told_from_walls_that_end_within(tmp_path: Path) -> None:
    corners = box_corners()
    with pytest.raises(GeometryError, match="3 of 18 edges have no neighbour; close its holes"):
        repair(corners[:-1], "part")
    fin = np.concatenate([corners[0, :2], [[40.0, 40.0, 40.0]]])[None]
    with pytest.raises(GeometryError, match="2 of 20 edges have no neighbour"):
        repair(np.concatenate([corners, fin]), "part")
    wall = trimesh.Trimesh(*inner_wall(), process=False)
    with pytest.raises(GeometryError, match="triangles too many") as raised:
        repair(wall.vertices[wall.faces], "part")
    assert "hole" not in str(raised.value)


def inner_wall() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A box with one wall across, from edge to edge along its diagonal plane."""
    box = trimesh.creation.box()
    low, high = box.bounds
    diagonal = [(low[0], low[1], low[2]), (high[0], high[1], low[2]), (high[0], high[1], high[2])]
    diagonal.append((low[0], low[1], high[2]))
    at = [int(np.argmin(np.linalg.norm(box.vertices - point, axis=1))) for point in diagonal]
    top_bottom = [f for f in box.faces.tolist() if len(set(box.vertices[f][:, 2].tolist())) == 1]
    sides = [f for f in box.faces.tolist() if f not in top_bottom]
    other = [i for i in range(8) if i not in at]
    caps = [[at[0], at[1], i] for i in other if box.vertices[i][2] == low[2]]
    caps += [[at[3], at[2], i] for i in other if box.vertices[i][2] == high[2]]
    walls = [[at[0], at[1], at[2]], [at[0], at[2], at[3]]]
    return np.asarray(box.vertices), np.array(sides + caps + walls)


def test_a_surface_without_an_inside_is_refused_for_that() -> None:
    steps = 24  # a Klein bottle's figure-eight immersion closes with a twist
    u, v = np.meshgrid(np.arange(steps), np.arange(steps), indexing="ij")
    a, b = 2 * np.pi * u / steps, 2 * np.pi * v / steps
    ring = 3 + np.cos(a / 2) * np.sin(b) - np.sin(a / 2) * np.sin(2 * b)
    places = np.stack(
        [ring * np.cos(a), ring * np.sin(a), np.sin(a / 2) * np.sin(b) + np.cos(a / 2) * np.sin(2 * b)], 2
    )

    def corner(i: int, j: int) -> NDArray[np.float64]:
        return places[i % steps, (-j if i >= steps else j) % steps]

    facets = []
    for i in range(steps):
        for j in range(steps):
            p, q, r, s = corner(i, j), corner(i + 1, j), corner(i + 1, j + 1), corner(i, j + 1)
            facets += [(p, q, r), (p, r, s)]
    with pytest.raises(GeometryError, match="Klein bottle"):
        repair(np.array(facets), "bottle")


def solid(seed: int, count: int) -> trimesh.Trimesh:
    """A random closed body: hulls, rings and balls, cut and joined."""
    rng = np.random.default_rng(seed)
    whole = manifold3d.Manifold.cube((10, 10, 10), center=True)
    for number in range(count):
        tool = manifold3d.Manifold.sphere(rng.uniform(2, 5), 12) if number % 2 else manifold3d.Manifold.cube((4, 5, 30))
        tool = tool.rotate(rng.uniform(0, 90, 3).tolist()).translate(rng.uniform(-5, 5, 3).tolist())
        whole = whole - tool if number % 3 == 1 else whole + tool
    mesh = max(whole.decompose(), key=lambda piece: piece.volume()).to_mesh64()
    return trimesh.Trimesh(np.asarray(mesh.vert_properties)[:, :3], np.asarray(mesh.tri_verts, np.int64), process=False)


@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 5),
    doubled=st.integers(0, 8),
    turned=st.integers(0, 8),
    doubled_and_turned=st.integers(0, 3),
    jitter=st.sampled_from([0.0, 1e-9, 1e-7, 1e-6]),
)
@settings(max_examples=60, deadline=None)
def test_damage_is_repaired_to_the_clean_volume_or_refused(
    seed: int, count: int, doubled: int, turned: int, doubled_and_turned: int, jitter: float
) -> None:
    clean, rng = solid(seed, count), np.random.default_rng(seed + 1)
    corners = np.array(clean.vertices[clean.faces], np.float64)
    turned_ones = rng.integers(len(corners), size=turned)
    corners[turned_ones] = corners[turned_ones][:, ::-1]
    copies = corners[rng.integers(len(corners), size=doubled)]
    mirrored = corners[rng.integers(len(corners), size=doubled_and_turned)][:, ::-1]
    corners = np.concatenate([corners, copies, mirrored])[rng.permutation(len(corners) + len(copies) + len(mirrored))]
    corners += rng.uniform(-jitter, jitter, corners.shape)
    try:
        surface, remarks = repair(corners, "body")
    except GeometryError:
        assert jitter > 0 or doubled_and_turned > 0  # what is there twice or turned alone has one answer
        return
    assert surface.volume == pytest.approx(clean.volume, rel=1e-4)
    if doubled:
        assert "merged_facets" in [remark.kind for remark in remarks]
    low, high = clean.bounds[0] - 0.123, clean.bounds[1] + 0.123
    grid = [fill_fractions(one, low, (high - low) / 24, (24, 24, 24)) for one in (surface, trusted(clean))]
    assert abs(float(grid[0].sum() - grid[1].sum())) <= 0.001 * float(grid[1].sum())


def trusted(clean: trimesh.Trimesh) -> Surface:
    return surface_of_arrays(clean.vertices, clean.faces)


def test_a_doubled_facet_fills_no_column() -> None:
    mesh = trimesh.creation.annulus(5, 10, 20)
    corners = np.asarray(mesh.vertices[mesh.faces])
    for number in range(0, len(corners), 7):
        surface, (remark,) = repair(np.concatenate([corners, corners[number : number + 1]]), "ring")
        assert (remark.kind, remark.count) == ("merged_facets", 1)
        assert voxelize(surface, (1, 1)).num_cells == voxelize(repair(corners, "ring")[0], (1, 1)).num_cells
    doubled = np.concatenate([mesh.faces, mesh.faces[:1]])
    with pytest.raises(GeometryError, match="there twice"):
        surface_of_arrays(mesh.vertices, doubled)


def test_turned_files_and_cavities_keep_their_meaning() -> None:
    outer, inner = trimesh.creation.box((10, 10, 10)), trimesh.creation.box((4, 4, 4))
    cavity = inner.copy()
    cavity.invert()
    hollow = trimesh.util.concatenate([outer, cavity])
    turned = hollow.copy()
    turned.invert()
    for mesh in (hollow, turned):
        surface, _ = repair(np.asarray(mesh.vertices[mesh.faces]), "hollow")
        assert surface.volume == pytest.approx(1000 - 64)
        assert voxelize(surface, (1, 1)).num_cells == 1000 - 64
        assert len(bodies_of(surface)) == 1
    apart = cavity.copy()
    apart.apply_translation((20, 0, 0))
    both = trimesh.util.concatenate([outer, apart])
    surface, (remark,) = repair(np.asarray(both.vertices[both.faces]), "two")
    assert (remark.kind, remark.count) == ("turned_facets", 12)
    assert sorted(body.volume for body in bodies_of(surface)) == pytest.approx([64, 1000])


def test_shells_in_one_another_are_united_and_their_volume_is_counted_once() -> None:
    outer, inner = trimesh.creation.box((10, 10, 10)), trimesh.creation.box((4, 4, 4))
    across = trimesh.creation.box((20, 4, 4))
    for pieces in ([outer, inner], [outer, across], [outer, inner, across]):
        mesh = trimesh.util.concatenate(pieces)
        (body,) = bodies_of(repair(np.asarray(mesh.vertices[mesh.faces]), "part")[0])
        meshed = voxelize(body, (1, 1))
        union = trimesh.boolean.union(pieces, engine="manifold").volume
        assert meshed.num_cells == round(union)
        assert body.volume - meshed.surplus == pytest.approx(union)


def test_bodies_are_told_apart() -> None:
    boxes = [trimesh.creation.box((10, 10, 10)) for _ in range(4)]
    boxes[1].apply_translation((10, 0, 0))  # shares a face
    boxes[2].apply_translation((0, 30, 0))
    boxes[3].apply_translation((5, 33, 3))  # overlaps
    mesh = trimesh.util.concatenate(boxes)
    found = bodies_of(repair(np.asarray(mesh.vertices[mesh.faces]), "part")[0])
    assert [round(float(np.ptp(body.bounds, axis=0)[0])) for body in found] in ([20, 15], [15, 20])
    shell, hole, loose = (trimesh.creation.box((n, n, n)) for n in (10, 8, 2))
    hole.invert()
    rattle = trimesh.util.concatenate([shell, hole, loose])
    volumes = [body.volume for body in bodies_of(repair(np.asarray(rattle.vertices[rattle.faces]), "part")[0])]
    assert sorted(volumes) == pytest.approx([8, 1000 - 512])


def test_nine_bodies_are_said_and_read_one_by_one(tmp_path: Path) -> None:
    boxes = [trimesh.creation.box((10, 10, 10)) for _ in range(9)]
    for number, box in enumerate(boxes):
        box.apply_translation((90 * (number % 3), 90 * (number // 3), 0))
    trimesh.util.concatenate(boxes).export(tmp_path / "plate.stl")
    found = load_bodies(tmp_path / "plate.stl")
    assert [body.volume for body in found.bodies] == pytest.approx([1000] * 9)
    (remark,) = found.remarks
    assert (remark.kind, str(remark).endswith("(plate.stl: 9 bodies)")) == ("several_bodies", True)


def test_more_bodies_than_a_bound_are_refused(tmp_path: Path) -> None:
    corners = box_corners()
    many = np.concatenate([corners + np.array([30.0 * n, 0, 0]) for n in range(201)])
    write_text_stl(tmp_path / "many.stl", many)
    with pytest.raises(GeometryError, match="201 bodies; at most 200"):
        load_bodies(tmp_path / "many.stl")


def test_an_archive_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    bomb = zipfile.ZipFile(tmp_path / "bomb.3mf", "w", zipfile.ZIP_DEFLATED)
    with bomb, bomb.open("3D/3dmodel.model", "w") as member:
        for _ in range(400):
            member.write(b" " * 2**20)
    with pytest.raises(GeometryError, match="unfolds to 400 MiB"):
        load_surface(tmp_path / "bomb.3mf")
    levels = ['<object id="1"><mesh><vertices><vertex x="0" y="0" z="0"/></vertices><triangles>']
    levels.append('<triangle v1="0" v2="0" v3="0"/></triangles></mesh></object>')
    for level in range(2, 12):
        parts = f'<component objectid="{level - 1}"/>' * 10
        levels.append(f'<object id="{level}"><components>{parts}</components></object>')
    with zipfile.ZipFile(tmp_path / "many.3mf", "w") as archive:
        build = '<build><item objectid="11"/></build>'
        model = f'<model xmlns="{CORE}"><resources>{"".join(levels)}</resources>{build}</model>'
        archive.writestr("3D/3dmodel.model", model)
    with pytest.raises(GeometryError, match="too many objects"):
        load_surface(tmp_path / "many.3mf")
    with zipfile.ZipFile(tmp_path / "entities.3mf", "w") as archive:
        archive.writestr("3D/3dmodel.model", f'<!DOCTYPE m [<!ENTITY a "b">]><model xmlns="{CORE}">&a;</model>')
    with pytest.raises(GeometryError, match="document type"):
        load_surface(tmp_path / "entities.3mf")


MEASURED = """
import resource
import sys
from pathlib import Path
from lpbf_data.errors import GeometryError
from lpbf_data.geometry.surface_files import load_bodies
from lpbf_data.geometry.voxelize import voxelize
import manifold3d, trimesh
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for body in load_bodies(Path(sys.argv[1])).bodies:
        voxelize(body, (float(sys.argv[2]),) * 2)
except GeometryError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("cell", [1.0, 0.2, 0.01])
def test_memory_is_bounded(tmp_path: Path, cell: float) -> None:
    plate, pole = trimesh.creation.box((190, 190, 1)), trimesh.creation.box((1, 1, 190))
    pole.apply_translation((0, 0, 90))
    trimesh.util.concatenate([plate, pole]).export(tmp_path / "tall.stl")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "tall.stl"), str(cell)]
    *said, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(grown) < 1.5 * 2**20  # KiB
    assert bool(said) == (cell < 0.5)
    assert all("too fine" in line for line in said)


GROWN = """
import resource
import sys
from pathlib import Path
import manifold3d, scipy.sparse.csgraph, scipy.spatial
from lpbf_data.geometry.surface_files import load_bodies
for path in map(Path, sys.argv[1:]):  # from small to large, since the most that was taken is what is told
    load_bodies(path)
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units of ru_maxrss are those of Linux")
@pytest.mark.parametrize("suffix", SURFACE_SUFFIXES)
def test_memory_of_each_format_is_bounded(tmp_path: Path, suffix: str) -> None:
    """What a triangle more takes, measured between two sizes, keeps the largest file within the stated bound."""
    paths, counts = [], []
    for subdivisions in (5, 6):
        mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=20)
        path = tmp_path / f"{subdivisions}{suffix}"
        paths.append(path)
        if suffix == ".3mf":
            write_3mf(path, mesh, None)
        else:
            mesh.export(path)
        counts.append(len(mesh.faces))
    said = subprocess.run([sys.executable, "-c", GROWN, *map(str, paths)], capture_output=True, text=True, check=True)
    grown, sizes = [int(line) for line in said.stdout.splitlines()], [path.stat().st_size for path in paths]
    triangles = counts[1] - counts[0]
    taken, bytes_each = (grown[1] - grown[0]) / triangles, (sizes[1] - sizes[0]) / triangles
    largest = 1_000_000_000 / bytes_each if suffix == ".stl" else MAX_TRIANGLES
    assert taken * largest < 10 * bytes_each * largest + 1.5 * 2**30


def test_a_surface_of_too_many_triangles_is_refused_before_it_is_read(tmp_path: Path) -> None:
    count = MAX_TRIANGLES + 1
    (tmp_path / "a.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 3\nelement face %d\nend_header\n" % count)
    (tmp_path / "a.off").write_bytes(b"OFF # by hand\n3 %d 0\n" % count)
    (tmp_path / "a.obj").write_bytes(b"v 0 0 0\nv 1 0 0\nv 0 1 0\n" + b"f 1 2 3\n" * count)
    for name in ("a.ply", "a.off", "a.obj"):
        with pytest.raises(GeometryError, match="it holds 3,000,001 triangles; at most 3,000,000 are read"):
            load_surface(tmp_path / name)
