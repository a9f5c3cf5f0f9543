"""Surfaces as strangers' programs write them: each is the cube that it shows, with what was done said, or is refused
with its true reason."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.surface_files import load_bodies

POINTS = np.array([[x, y, z] for z in (0.0, 20.5) for x, y in ((0.0, 0.0), (20.5, 0.0), (20.5, 20.5), (0.0, 20.5))])
QUADS = [(0, 3, 2, 1), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
TRIANGLES = [three for a, b, c, d in QUADS for three in ((a, b, c), (a, c, d))]
MIXED = [*QUADS[:3], *TRIANGLES[6:]]
CORNERS = POINTS[np.array(TRIANGLES)]
VOLUME = 20.5**3
L_SHAPE = [(0, 0), (20, 0), (20, 10), (10, 10), (10, 20), (0, 20)]

LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\n"

Content = str | bytes


def stl(number: Callable[[float], str] = repr, end: str = "\n") -> str:
    lines = ["solid part"]
    for facet in CORNERS.tolist():
        lines += ["facet normal 0 0 0", "outer loop", *("vertex " + " ".join(map(number, point)) for point in facet)]
        lines += ["endloop", "endfacet"]
    return end.join([*lines, "endsolid part", ""])


def binary_stl(order: str = "<", header: bytes = b"", attribute: int = 0) -> bytes:
    facets = [struct.pack(f"{order}12fH", 0, 0, 0, *facet.ravel(), attribute) for facet in CORNERS]
    return header.ljust(80) + struct.pack(f"{order}I", len(facets)) + b"".join(facets)


def obj(faces: Sequence[Sequence[object]] = (), tail: str = "\n") -> str:
    faces = faces or [[n + 1 for n in quad] for quad in QUADS]
    lines = [f"v {x} {y} {z}" for x, y, z in POINTS.tolist()] + [f"f {' '.join(map(str, face))}" for face in faces]
    return tail.join([*lines, ""])


def two_with_relative_corners() -> str:
    """Each cube names the eight vertices before it, as `-1` to `-8`."""
    cube = "".join(f"f {' '.join(str(n - 8) for n in quad)}\n" for quad in QUADS)
    vertices = ("".join(f"v {x + move} {y} {z}\n" for x, y, z in POINTS.tolist()) for move in (0, 50))
    return cube.join([*vertices, ""])


def prism(first: int) -> str:
    """An L whose polygons of six corners begin at any of them, also where they are concave."""
    ring = L_SHAPE[first:] + L_SHAPE[:first]
    sides = "".join(f"f {n + 1} {(n + 1) % 6 + 1} {(n + 1) % 6 + 7} {n + 7}\n" for n in range(6))
    return "".join(f"v {x} {y} {z}\n" for z in (0, 10) for x, y in ring) + "f 6 5 4 3 2 1\nf 7 8 9 10 11 12\n" + sides


def ply(
    form: str, faces: Sequence[Sequence[int]], number: str = "float", more: str = "", values: Sequence[float] = ()
) -> bytes:
    header = (
        f"ply\nformat {form} 1.0\nelement vertex 8\nproperty {number} x\nproperty {number} y\nproperty {number} z\n"
        f"{more}element face {len(faces)}\nproperty list uchar uint vertex_indices\nproperty uchar red\nend_header\n"
    )
    rows = np.concatenate([POINTS, np.tile(values, (8, 1))], axis=1) if values else POINTS
    if form == "ascii":
        lines = [" ".join(map(repr, row)) for row in rows.tolist()]
        lines += [f"{len(face)} {' '.join(map(str, face))} 9" for face in faces]
        return (header + "\n".join(lines) + "\n").encode()
    order = "<" if "little" in form else ">"
    body = rows.astype(order + {"float": "f4", "double": "f8"}[number]).tobytes()
    return header.encode() + body + b"".join(struct.pack(f"{order}B{len(f)}IB", len(f), *f, 9) for f in faces)


def off(start: str, faces: Sequence[Sequence[int]] = QUADS, more: str = "", end: str = "\n") -> str:
    lines = [f"{x} {y} {z}{more}" for x, y, z in POINTS.tolist()]
    lines += [f"{len(face)} {' '.join(map(str, face))} 255 0 0" for face in faces]
    return end.join([f"{start}{len(POINTS)} {len(faces)} 0", *lines, ""])


FINE: dict[str, Content] = {
    "mac.stl": stl(end="\r"), "utf16.stl": stl().encode("utf-16"), "mark.stl": stl().encode("utf-8-sig"),
    "fortran.stl": stl(lambda x: f"{x:.6E}".replace("E", "D")), "comment.stl": "; made by hand\n" + stl(),
    "upper.stl": stl().upper(), "solid.stl": binary_stl(header=b"solid by a program"),
    "attributes.stl": binary_stl(header=b"COLOR=\1\2\3\4", attribute=0x8123),
    "mac.obj": obj(tail="\r"), "windows.obj": obj(tail="\r\n"), "utf16.obj": obj().encode("utf-16"),
    "slashes.obj": "vt 0 0\nvn 0 0 1\n" + obj([[f"{n + 1}/1/1" for n in quad] for quad in QUADS]),
    "normals.obj": "vn 0 0 1\n" + obj([[f"{n + 1}//1" for n in quad] for quad in QUADS]),
    "back.obj": obj([[n - 8 for n in quad] for quad in QUADS]),
    "on.obj": obj([[*(n + 1 for n in quad[:2]), "\\\n", *(n + 1 for n in quad[2:])] for quad in QUADS]),
    "mac.ply": ply("ascii", QUADS).replace(b"\n", b"\r"),
    "text.ply": ply("ascii", MIXED, more="property float nx\nproperty uchar grey\n", values=(0.5, 7)),
    **{
        f"{form}_{number}_{len(faces)}.ply": ply(form, faces, number)
        for form in ("binary_little_endian", "binary_big_endian") for number in ("float", "double")
        for faces in (TRIANGLES, QUADS, MIXED)
    },
    "plain.off": off("OFF\n"), "line.off": off("OFF "), "none.off": off(""), "mac.off": off("OFF\n", end="\r"),
    "normals.off": off("NOFF\n", more=" 0 0 1"), "mixed.off": off("OFF # a\n\n# b\n", MIXED),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_what_loses_nothing_is_read_without_a_word(tmp_path: Path, name: str) -> None:
    content = FINE[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    found = load_bodies(tmp_path / name)
    (body,) = found.bodies
    assert body.volume == pytest.approx(VOLUME, rel=1e-5)
    np.testing.assert_allclose(body.bounds, [[0] * 3, [20.5] * 3], atol=1e-5)
    assert found.remarks == ()


@pytest.mark.parametrize("first", range(6))
def test_concave_polygons_keep_their_volume(tmp_path: Path, first: int) -> None:
    (tmp_path / "l.obj").write_text(prism(first))
    assert [body.volume for body in load_bodies(tmp_path / "l.obj").bodies] == pytest.approx([3000])


def test_corners_count_back_from_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "two.obj").write_text(two_with_relative_corners())
    found = load_bodies(tmp_path / "two.obj")
    assert [float(body.bounds[0, 0]) for body in found.bodies] == [0, 50]
    assert [remark.kind for remark in found.remarks] == ["several_bodies"]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("order.stl", binary_stl(">"), "stl_byte_order"),
        ("comma.obj", obj().replace("20.5", "20,5"), "decimal_commas"),
        ("comma.off", off("OFF\n").replace("20.5", "20,5"), "decimal_commas"),
        ("more.ply", ply("binary_little_endian", MIXED) + b"more", "ply_extra"),
        ("more_text.ply", ply("ascii", MIXED) + b"1 2 3\n", "ply_extra"),
    ],
)
def test_what_is_repaired_is_said(tmp_path: Path, name: str, content: Content, kind: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    found = load_bodies(tmp_path / name)
    assert [body.volume for body in found.bodies] == pytest.approx([VOLUME], rel=1e-5)
    assert [remark.kind for remark in found.remarks] == [kind]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("one.stl", stl().replace("vertex 20.5 20.5 20.5", "vertex 20.5"), "corner number .* isn't three numbers"),
        ("four.stl", stl().replace("20.5 20.5 20.5", "20.5 20.5 20.5 1"), "corner number .* isn't three numbers"),
        ("line.stl", stl().replace("20.5", "2_0.5"), "isn't three numbers"),
        ("huge.stl", stl(lambda x: repr(x * 1e300)), "its largest coordinate is 2.05e.301"),
        ("nan.stl", stl().replace("20.5 20.5 20.5", "20.5 nan 20.5"), "not a finite number"),
        ("zero.obj", obj(QUADS), "line 9 has a face that names vertex 0; OBJ files count from 1"),
        ("before.obj", obj([[-9, -1, -2]]), "names vertex -9; there are 8 before it"),
        ("beyond.obj", obj([[n + 2 for n in quad] for quad in QUADS]), "names a vertex that isn't there"),
        ("pointer.stl", f"{LFS}size 98884\n", "a pointer of Git LFS, .* fetch it with: git lfs pull"),
        ("pointer.obj", f"{LFS}size 98884\n", "a pointer of Git LFS"),
        ("page.stl", "<!DOCTYPE html>\n<html><body>" + "404 " * 50, "it is text that begins with '<!DOCTYPE html>'"),
        ("step.stl", "ISO-10303-21;\nHEADER;\n" + "DATA;" * 50, "it is text that begins with 'ISO-10303-21;'"),
        ("points.obj", obj([[1, 1, 1], [2, 2, 3]]), "corners of all its facets coincide"),
        ("line.obj", obj([["1_0", 1, 2]]), "a face whose corner '1_0' is no number"),
        ("line.ply", ply("ascii", QUADS).replace(b"20.5", b"2_0.5"), "holds what is no number"),
        ("line.off", off("OFF\n").replace("4 0 3 2 1", "4 0 3 2 0_1"), "isn't a number of corners and as many"),
        ("two.obj", obj([[1, 2]]), "a face of 2 corners"),
        ("lines.obj", obj().replace("f ", "l "), "it holds no faces"),
        ("cut.ply", ply("binary_big_endian", TRIANGLES)[:-30], "cut short: it says that it holds 12 of face, and"),
        ("cut_mixed.ply", ply("binary_little_endian", MIXED)[:-30], "cut short: it says that it holds 9 of face, and"),
        ("cut_text.ply", ply("ascii", MIXED)[:-30], "cut short: it says that it holds 9 of face, and"),
        ("points.ply", ply("ascii", []), "it holds no faces"),
        ("cloud.ply", ply("ascii", QUADS).replace(b"uint vertex_indices", b"uint others"), "it holds no faces"),
        ("twice.ply", ply("ascii", QUADS).replace(b"float y", b"float x"), "two properties of vertex have one name"),
        ("nan.ply", ply("ascii", QUADS).replace(b"4 0 3 2 1", b"4 0 3 2 nan"), "names a vertex that isn't there"),
        ("nan_length.ply", ply("ascii", QUADS).replace(b"4 0 3 2 1", b"nan 0 3 2 1"), "number that can't be read"),
        ("minus.ply", ply("ascii", QUADS).replace(b"4 0 3 2 1", b"-4 0 3 2 1"), "isn't what the header says"),
        ("cut.off", off("OFF\n")[:-45], "cut short: it says that it holds 6 faces, and 4 are there"),
        ("more.off", off("OFF\n") + "4 1 2 3 4\n", "it holds 6 faces, and line 17 follows them"),
        ("below.off", off("OFF\n").replace("4 0 3 2 1", "4 0 3 2 -7"), "names a vertex that isn't there"),
        ("binary.off", "OFF BINARY\n", "binary OFF files aren't read"),
        ("four.off", off("4OFF\n"), "begins with '4OFF'"),
    ],
)
def test_what_is_refused_has_its_true_reason(tmp_path: Path, name: str, content: Content, said: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(GeometryError, match=said):
        load_bodies(tmp_path / name)


PRUSA = '<config><object id="1"><volume firstid="0" lastid="11"><metadata type="volume" {}/></volume></object></config>'


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("Metadata/Slic3r_PE_model.config", PRUSA.format('key="volume_type" value="ParameterModifier"'), "ParameterM"),
        ("Metadata/Slic3r_PE_model.config", PRUSA.format('key="modifier" value="1"'), "modifier"),
        ("Metadata/model_settings.config", '<config><part id="2" subtype="negative_part"/></config>', "negative_part"),
        (None, '<metadatagroup><metadata name="cura:infill_mesh">True</metadata></metadatagroup>', "cura:infill_mesh"),
        ("Metadata/Slic3r_PE_model.config", PRUSA.format('key="volume_type" value="ModelPart"'), ""),
        ("Metadata/model_settings.config", '<config><part id="2" subtype="normal_part"/></config>', ""),
    ],
)
def test_a_project_of_a_slicer_is_its_part_alone(tmp_path: Path, name: str | None, text: str, kind: str) -> None:
    """Modifiers and negative volumes are meshes of a 3MF like any other; read as solids they make another part."""
    whole = cube(1) if name else cube(1).replace("<mesh>", f"{text}<mesh>")
    members = {FIRST: model(whole, ITEM)} | ({name: " " * 2**18 + text} if name else {})
    path = pack(tmp_path / "project.3mf", members)
    if kind:
        with pytest.raises(GeometryError, match=rf"a volume that is no solid \({kind}"):
            load_bodies(path)
    else:
        assert load_bodies(path).bodies[0].volume == pytest.approx(VOLUME)


CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
EXTENSIONS = "http://schemas.microsoft.com/3dmanufacturing/"
AT_50 = 'transform="1 0 0 0 1 0 0 0 1 50 0 0"'
ITEM = '<item objectid="1"/>'
BEAM = '<b:beamlattice xmlns:b="b" radius="1"><b:beams><b:beam v1="0" v2="6"/></b:beams></b:beamlattice>'


def cube(number: int, kind: str = "model", more: str = "") -> str:
    vertices = "".join(f'<vertex x="{x}" y="{y}" z="{z}"/>' for x, y, z in POINTS.tolist())
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in TRIANGLES)
    mesh = f"<mesh><vertices>{vertices}</vertices><triangles>{triangles}</triangles>{more}</mesh>"
    return f'<object id="{number}" type="{kind}">{mesh}</object>'


def model(resources: str, build: str, head: str = 'unit="millimeter"') -> str:
    return f'<model {head} xmlns="{CORE}"><resources>{resources}</resources><build>{build}</build></model>'


def part_of(file: str) -> str:
    there = f'<component p:path="/{file}" objectid="1"/>'
    return f'<object id="2" xmlns:p="{EXTENSIONS}production/2015/06"><components>{there}</components></object>'


def root(file: str) -> str:
    """What names the first model of an archive."""
    return (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r" '
        f'Target="/{file}" Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>'
    )


FIRST, OTHER = "3D/3dmodel.model", "3D/Objects/o.model"
SLICES = f'unit="millimeter" requiredextensions="s" xmlns:s="{EXTENSIONS}slice/2015/07"'
PRODUCTION = f'unit="millimeter" requiredextensions="p" xmlns:p="{EXTENSIONS}production/2015/06"'


@pytest.mark.parametrize(
    ("members", "kinds"),
    [
        ({FIRST: model(cube(1), f'{ITEM}<item objectid="1" printable="0" {AT_50}/>')}, ["3mf_not_printed"]),
        (
            {FIRST: model(cube(1) + cube(2, "support") + cube(3, "other"), f'{ITEM}<item objectid="2" {AT_50}/>')},
            ["3mf_supports"],
        ),
        ({FIRST: model(cube(1, more=BEAM), ITEM)}, ["3mf_beams"]),
        ({FIRST: model(cube(1), '<item objectid="1" transform="-1 0 0 0 1 0 0 0 1 20.5 0 0"/>')}, []),
        ({FIRST.replace("/", "\\"): model(cube(1), ITEM)}, []),
        ({OTHER: model(cube(1), ITEM), FIRST: model(cube(1), ITEM, 'unit="inch"'), "_rels/.rels": root(OTHER)}, []),
        ({FIRST: model(part_of(OTHER), '<item objectid="2"/>', PRODUCTION), OTHER: model(cube(1), "")}, []),
        (
            {FIRST: model(part_of(OTHER), '<item objectid="2"/>'), OTHER: model(cube(1), "", 'unit="inch"')},
            ["3mf_units"],
        ),
    ],
    ids=["not printed", "support", "beams", "mirrored", "backslashes", "another root", "another file", "another unit"],
)  # fmt: skip
def test_a_3mf_builds_what_a_printer_would(tmp_path: Path, members: dict[str, str], kinds: list[str]) -> None:
    found = load_bodies(pack(tmp_path / "part.3mf", members))
    (body,) = found.bodies
    np.testing.assert_allclose(body.bounds, [[0] * 3, [20.5] * 3], atol=1e-9)
    assert body.volume == pytest.approx(VOLUME)
    assert [remark.kind for remark in found.remarks] == kinds


def pack(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (model(cube(1), ITEM, SLICES), "can't be read without .*slice/2015/07, an extension of 3MF"),
        (model(cube(1), ""), "its build is empty"),
        (model(cube(1), ITEM).replace('"20.5"', '"2_0.5"'), "holds a wrong number: '2_0.5'"),
        (model(cube(1), ITEM).replace('v1="0"', 'v1="0_0"'), "holds a wrong number: '0_0'"),
        (model(cube(1, "support"), ITEM), "it builds supports alone"),
    ],
)
def test_a_3mf_that_can_not_be_known_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(GeometryError, match=said):
        load_bodies(pack(tmp_path / "part.3mf", {FIRST: text}))
