"""Report and pictures: what they say, that nothing hostile gets in, and that a build never depends on them."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpbf_data.case.schema import DEFAULT_FIELDS, resolve_fields
from lpbf_data.errors import LpbfError, SchemaError, StoreError, UsageError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.geometry.outer_surface import extract_surface
from lpbf_data.remarks import Remark, Treatment
from lpbf_data.stores.predictions import PredictionFile, write_predictions
from lpbf_data.viewer.page import ASSETS as VIEWER
from lpbf_data.viewer.palettes import SIGNED_PALETTE, palette
from lpbf_data.viewer.shown_fields import shown_fields
from lpbf_data.viewer.surface_codec import COLUMN_BITS, COORDINATE_BITS, encode_surface
from pipelines.build import build, run_build
from pipelines.building.engine import Resources
from pipelines.reporting.blade_risk import blade_risk
from pipelines.reporting.gallery_parts import KeptCases, choose_cases, judge_predictions
from pipelines.reporting.gallery_pictures import Drawing, PartRenderer
from pipelines.reporting.origin import solver_sentence
from pipelines.reporting.overview import QUANTITIES, Summary, table_6
from pipelines.reporting.report_data import Report, make_report
from pipelines.reporting.report_page import ASSETS, PageContent, render_page
from pipelines.reporting.split_balance import balance_splits, leak_sentence
from pipelines.selection.filters import Filters
from pipelines.verify import verify_dataset
from tests.commands import run_here
from tests.netfabb_cases import TERMINATED, Part, box_mesh, write_part
from tests.pipelines.report_support import HOSTILE, hostile_records, records_of
from tests.pipelines.test_build import request, tree
from tests.surface_reader import decode_surface


@pytest.fixture(scope="module")
def whole(built: Path) -> Report:
    """The report of all its kept cases."""
    return make_report(DatasetFolder(built))


class Page(HTMLParser):
    """Tags and texts of a page, as a browser without scripts sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(1e-6, 1e6), st.floats(-1e5, 1e5))
def test_surfaces_come_back_within_half_a_step(seed: int, count: int, scale: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    points = (rng.standard_normal((count, 3)) * scale + offset).astype(np.float32)
    faces = rng.integers(0, count, (2 * count, 4))
    columns = {"a": rng.standard_normal(count) * scale + offset, "constant": np.full(count, offset)}
    shown = decode_surface(encode_surface(points, faces, columns))
    assert np.array_equal(shown.faces, faces)
    spans = np.ptp(points.astype(np.float64), axis=0)
    rounding = 1e-9 * max(scale, abs(offset))
    assert np.all(np.abs(shown.points - points) <= spans / 2 / (2**COORDINATE_BITS - 1) * 1.001 + rounding)
    for name, values in columns.items():
        step = np.ptp(values) / (2**COLUMN_BITS - 1)
        assert np.abs(shown.columns[name] - values).max() <= step / 2 * 1.001 + rounding


def test_table_6_has_the_published_conventions(samples: Path) -> None:
    """Aspect ratios of the published set are known case by case: their summary must give the paper's figures."""
    path = samples.parent / "reference" / "netfabb_case_statistics.csv"
    if not path.exists():
        pytest.skip("the statistics of the published cases aren't there")
    with path.open() as file:
        kept = [row for row in csv.DictReader(file) if row["kept"] == "1"]
    for name in ("aspect_ratio_mean", "aspect_ratio_max"):
        published = next(quantity.published for quantity in QUANTITIES if quantity.name == name)
        found = Summary.of([float(row[name]) for row in kept])
        assert published is not None
        assert found is not None
        for field in dataclasses.fields(Summary):
            # The paper gives five digits.
            assert float(f"{getattr(found, field.name):.5g}") == getattr(published, field.name), (name, field.name)


def test_summaries() -> None:
    found = Summary.of([1, 2, 3, 10])
    assert found == Summary(4.0, pytest.approx(np.std([1, 2, 3, 10], ddof=1)), 1, 1.75, 2.5, 4.75, 10)
    assert Summary.of([7.0]) == Summary(7, 0, 7, 7, 7, 7, 7)
    assert Summary.of([]) is None


def test_the_page_says_what_the_manifest_says(built: Path) -> None:
    records = records_of(built)
    status = [record.status for record in records]
    assert (status.count("kept"), status.count("rejected"), status.count("failed")) == (7, 2, 1)
    page = Page((built / "report.html").read_text(encoding="utf-8"))
    said = " ".join(" ".join(page.texts).split())
    for words in (
        "10 cases found",
        "7 kept",
        "1 of them hit: closer to the blade than the solver tolerates",
        "0 of the hit ones in contact with it",
        "2 rejected by the filter",
    ):
        assert words in said, words
    assert leak_sentence(records, "train=0.5,test=0.5") in said
    assert "No design lies in two splits" in said
    assert solver_sentence(records) == "All kept cases were simulated with Autodesk Netfabb Simulation (24.0.18)."
    assert "solver_terminated" in said
    assert "max_points" in said
    heights = table_6(records)["height"]
    kept = [r.measures.height for r in records if r.status == "kept" and r.measures]
    assert heights.mean == pytest.approx(np.mean(kept))
    # All parts are there, those with the least clearance first, each with a picture and words for it.
    parts = [attributes for tag, attributes in page.tags if tag == "button" and "data-part" in attributes]
    assert len(parts) == 7
    assert str(parts[0]["aria-label"]).startswith("900_11b839a3_1: ")
    assert "closer to the blade than the solver tolerates" in str(parts[0]["aria-label"])
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 7
    assert len({attributes["src"] for attributes in pictures}) == 7
    assert all("alt" in attributes for attributes in pictures)


def test_contact_is_told_from_other_hits(built: Path, whole: Report) -> None:
    records, clearances = [], (-20.0, 0.0, 0.1, 79.9, 80.0)
    kept = [record for record in records_of(built) if record.placement is not None][: len(clearances)]
    for record, clearance in zip(kept, clearances, strict=True):
        assert record.measures is not None
        measures = dataclasses.replace(
            record.measures, recoater_clearance_min=clearance, recoater_interference=clearance < 80
        )
        run = dataclasses.replace(record.run, solver_version="0.2.0-lpbf")
        records.append(dataclasses.replace(record, measures=measures, run=run))
    assert [blade_risk(r.measures) for r in records if r.measures] == ["contact", "contact", "hit", "hit", "clear"]
    rows = balance_splits(records, "train=0.5,test=0.5")
    assert (sum(row.hits for row in rows), sum(row.contacts for row in rows)) == (4, 2)
    specs = resolve_fields(DEFAULT_FIELDS)
    shown = [part for part in whole.gallery_parts if part.case_id in {record.case_id for record in records}]
    content = PageContent(records, "0" * 64, {}, "train=1", specs, shown_fields(specs), shown, "")
    said = " ".join(" ".join(Page(render_page(content).decode()).texts).split())
    assert "4 of them hit: closer to the blade" in said
    assert "2 of the hit ones in contact with it" in said
    assert "falls below 80 % of a layer" in said
    assert "neither supports nor plasticity" in said
    assert "neither supports nor plasticity" not in whole.page.decode()


def test_nothing_is_fetched_and_no_path_or_time_gets_in(built: Path, tmp_path: Path) -> None:
    text = (built / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    addresses = [
        v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "action") and v
    ]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert str(built.parent) not in text
    for name in ("vendor.min.js", "vendor.LICENSES.txt"):
        for folder in (VIEWER, ASSETS):
            text = text.replace((folder / name).read_text(encoding="utf-8").strip(), "")
    assert not re.search(r"\b20[2-9]\d-\d\d-\d\d", text)


@pytest.mark.slow  # of builds without a report the fast suite asks the same
def test_bytes_do_not_depend_on_workers_or_repetition(built: Path, tmp_path: Path) -> None:
    src = built.parent / "src"
    options = {"filters": Filters(max_points=100), "report": True}
    run_build(request(src, tmp_path / "other", **options), Resources(workers=2))
    before = tree(built)
    assert {"report.html", "pictures/parts.png", "pictures/distributions.png", "README.md"} <= set(before)
    assert tree(tmp_path / "other") == before
    run_build(request(src, tmp_path / "other", **options))
    assert tree(tmp_path / "other") == before
    assert verify_dataset(tmp_path / "other").problems == ()
    # Left out, nothing stale stays.
    run_build(request(src, tmp_path / "other", filters=Filters(max_points=100)))
    assert not {"report.html", "pictures/parts.png"} & set(tree(tmp_path / "other"))
    assert "pictures/" not in (tmp_path / "other" / "README.md").read_text(encoding="utf-8")


def test_verify_knows_the_report_and_the_pictures(built: Path, tmp_path: Path) -> None:
    import shutil

    dataset = tmp_path / "lpbf"
    shutil.copytree(built, dataset)
    assert verify_dataset(dataset).problems == ()
    (dataset / "pictures" / "parts.png").unlink()
    text = (dataset / "report.html").read_bytes()
    (dataset / "report.html").write_bytes(text.replace(b'sha256" content="', b'sha256" content="0', 1))
    said = [str(problem) for problem in verify_dataset(dataset).problems]
    assert said == [
        "README.md: shows pictures/parts.png, which is missing",
        "report.html: shows another state of the data set; make it again with python -m pipelines.report",
    ]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(
            "raise ImportError('no pyvista here')", "no pyvista here; install pyvista", marks=pytest.mark.slow
        ),
        ("import os; os.abort()", "the process that draws with VTK died"),
        pytest.param(
            "raise RuntimeError('driver: no screen')", "RuntimeError: driver: no screen", marks=pytest.mark.slow
        ),
    ],
)
def test_a_build_survives_a_vtk_that_cannot_draw(fault: str, said: str, tmp_path: Path) -> None:
    write_part(tmp_path / "src", Part("a"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyvista.py").write_text(fault, encoding="utf-8")
    search = os.pathsep.join([str(tmp_path / "broken"), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "pipelines.build", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*words, "--workers", "0"], capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": search}
    )
    assert done.returncode == 0, done.stderr
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert said in note
    assert verify_dataset(tmp_path / "out").problems == ()
    assert b'class="still"' in (tmp_path / "out" / "report.html").read_bytes()
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "pictures/distributions.png" in card
    assert "pictures/parts.png" not in card


@pytest.mark.usefixtures("no_pictures_of_parts")
def test_a_report_that_fails_leaves_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_part(tmp_path / "src", Part("a"))
    # A folder in the place of the page: it can't be written.
    (tmp_path / "out" / ".build").mkdir(parents=True)
    original = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name == "report.html":
            raise PermissionError("read-only")
        return original(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        assert build([str(tmp_path / "src")], out=str(tmp_path / "out"), workers=0, time_limit=math.inf) == 0
    assert "note: there is no report (PermissionError: read-only)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.html").exists()
    assert verify_dataset(tmp_path / "out").problems == ()


def test_parts_are_drawn_as_they_are() -> None:
    points, cells = box_mesh((4, 3, 2))
    surface = extract_surface(points, cells)
    values = points[surface.point_numbers, 2] - 1
    with (
        PartRenderer() as renderer
    ):  # not here: an OpenGL in this process may not go together with what other tests load
        drawings = [Drawing(points[surface.point_numbers], surface.faces, sign * values) for sign in (1, -1, 1)]
        started = [renderer.start(drawing) for drawing in drawings]
        above, below, again = (renderer.finish(future) for future in started)
    assert renderer.problem is None
    assert above is not None
    assert below is not None
    assert above.shape == (240, 320, 4)
    solid = above[..., 3] == 255
    assert 0.2 < solid.mean() < 0.8
    rows = np.flatnonzero(solid.any(axis=1))
    columns = np.flatnonzero(solid.any(axis=0))
    # It fits: something is left at every side, and at two of them not much.
    assert rows[0] > 0
    assert rows[-1] < 239
    assert columns[0] > 0
    assert columns[-1] < 319
    assert min(rows[0] + 239 - rows[-1], columns[0] + 319 - columns[-1]) < 40
    # The top is red where values are large and blue where they are small.
    top = (rows[0] + 25, 160)
    assert above[top][0] > above[top][2] + 60
    assert below[top][2] > below[top][0] + 60
    assert np.array_equal(above, again)
    # Everywhere but at edges the colours are those of the bar, whichever way a face looks.
    of_bar = palette(SIGNED_PALETTE).astype(int)
    found = above[solid][:, :3].astype(int)
    distance = np.abs(found[:, None] - of_bar[None]).max(axis=2).min(axis=1)
    assert (distance <= 2).mean() > 0.9


def test_hostile_texts_stay_texts_on_the_page(built: Path, whole: Report) -> None:
    records = hostile_records(built)
    names = dict(zip([r.case_id for r in records_of(built)], [r.case_id for r in records], strict=True))
    parts = [dataclasses.replace(e, case_id=names[e.case_id]) for e in whole.gallery_parts]
    specs = resolve_fields(DEFAULT_FIELDS)
    content = PageContent(records, "0" * 64, {}, "train=1", specs, shown_fields(specs), parts, HOSTILE[1], (), "")
    remark = Remark(Treatment.KEPT, "hostile", HOSTILE[0], 2, (HOSTILE[2],))
    content = dataclasses.replace(content, remarks=(remark,))
    page = Page(render_page(content).decode())
    plain = Page(whole.page.decode())
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == [
        tag for tag, _ in plain.tags if tag in ("script", "img")
    ]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    said = "".join(page.texts)
    assert all(words in said for words in HOSTILE)


@pytest.mark.usefixtures("no_pictures_of_parts")
def test_samples_are_chosen_by_hash_and_hold_the_riskiest(built: Path) -> None:
    records = records_of(built)
    kept = [r.case_id for r in records if r.status == "kept"]
    assert sorted(choose_cases(records, 100)) == sorted(kept)
    few = choose_cases(records, 3)
    assert few[0] == "900_11b839a3_1"
    assert few == choose_cases(records[::-1], 3)
    assert few == choose_cases(records, 5)[:1] + few[1:]
    rest = sorted((i for i in kept if i != few[0]), key=lambda i: hashlib.sha256(i.encode()).digest())
    assert few[1:] == rest[:2]
    report = make_report(DatasetFolder(built), most_parts=3)
    assert [part.case_id for part in report.gallery_parts] == few
    assert b"This is a sample: 3 of 7 kept parts" in report.page


def test_larger_sets_stay_under_the_size(built: Path, whole: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    one = len(whole.gallery_parts[0].surface) + len(whole.gallery_parts[0].still or b"")
    monkeypatch.setattr("pipelines.reporting.report_data._MAX_BYTES", 3 * one * 4 // 3 + 3000)
    cut = make_report(DatasetFolder(built))
    assert 2 <= len(cut.gallery_parts) < len(whole.gallery_parts)
    assert [e.surface for e in cut.gallery_parts] == [e.surface for e in whole.gallery_parts[: len(cut.gallery_parts)]]
    assert f"This is a sample: {len(cut.gallery_parts)} of 7".encode() in cut.page


def predict(dataset: Path, path: Path, factor: float = 1.1, digest: str | None = None) -> Path:
    """Predictions that are wrong by a known factor for all cases of the test split, and by 1 mm for one."""
    cases = KeptCases(DatasetFolder(dataset))
    rows = []
    for record in cases.manifest.records:
        if record.placement is not None and record.placement.split == "test":
            case = cases.read(record.case_id, ["displacement"])
            rows.append((record.case_id, {"displacement_z": case.fields["displacement"][:, 2] * np.float32(factor)}))
    rows[-1][1]["displacement_z"] += np.float32(1)
    write_predictions(path, rows, ["displacement_z"], digest or str(cases.manifest.digest), "a model <b>")
    return path


@pytest.mark.usefixtures("no_pictures_of_parts")
def test_predictions_are_judged_against_the_truth(built: Path, tmp_path: Path) -> None:
    path = predict(built, tmp_path / "predictions.parquet")
    cases = KeptCases(DatasetFolder(built))
    found = judge_predictions(cases, PredictionFile(path))
    test = [r.case_id for r in cases.manifest.records if r.placement and r.placement.split == "test"]
    assert {row.case_id for row in found} == set(test)
    assert found[0].case_id == test[-1]
    assert found[0].max_error == pytest.approx(1, abs=0.05)
    for row in found[1:]:
        truth = cases.read(row.case_id, ["displacement"]).fields["displacement"][:, 2].astype(np.float64)
        assert row.relative_l2 == pytest.approx(0.1, rel=1e-5)
        assert row.mean_error == pytest.approx(0.1 * np.abs(truth).mean(), rel=1e-5)
        assert row.max_error == pytest.approx(0.1 * np.abs(truth).max(), rel=1e-5)
    report = make_report(DatasetFolder(built), predictions=path)
    text = report.page.decode()
    assert f"{len(test)} cases predicted by a model &lt;b&gt;" in text
    assert report.gallery_parts[0].case_id == test[-1]
    shown = decode_surface(report.gallery_parts[1].surface)
    truth, error = shown.columns["displacement_z"], shown.columns["displacement_z error"]
    assert np.abs(error - 0.1 * truth).max() < 2e-4 * np.abs(truth).max()
    assert "displacement_z error" not in decode_surface(report.gallery_parts[-1].surface).columns


def test_bad_predictions_are_one_sentence(built: Path, tmp_path: Path) -> None:
    def refused(path: Path, said: str, kind: type[LpbfError]) -> None:
        with pytest.raises(kind, match=said) as caught:
            make_report(DatasetFolder(built), predictions=path)
        assert "\n" not in str(caught.value)

    cases = KeptCases(DatasetFolder(built))
    digest = str(cases.manifest.digest)
    case_id = next(r.case_id for r in cases.manifest.records if r.placement)
    count = cases.read(case_id, []).num_points
    right = np.zeros(count, dtype=np.float32)
    wrong = right.copy()
    wrong[3] = np.nan

    def write(name: str, values: np.ndarray, case: str = case_id) -> Path:
        write_predictions(tmp_path / name, [(case, {"displacement_z": values})], ["displacement_z"], digest)
        return tmp_path / name

    refused(tmp_path / "nowhere", "doesn't exist", StoreError)
    (tmp_path / "text").write_text("no parquet")
    refused(tmp_path / "text", "can't be read as predictions", StoreError)
    refused(built / "manifest.parquet", "isn't a file of predictions", SchemaError)
    refused(write("short", right[:-1]), f"has {count - 1} values, the case {count} points", StoreError)
    refused(write("nan", wrong), "aren't finite", StoreError)
    refused(write("other", right, "nobody"), "predicts no case that", UsageError)
    refused(predict(built, tmp_path / "stale", digest="0" * 64), "another build of the data set", UsageError)
    with pytest.raises(SchemaError, match="'heat' is no column"):
        write_predictions(tmp_path / "x", [], ["heat"], digest)


@pytest.mark.usefixtures("no_pictures_of_parts")
def test_the_command(built: Path, tmp_path: Path) -> None:
    done = run_here("pipelines.report", str(built), "--out", str(tmp_path / "page.html"), "--gallery", "2")
    assert done.returncode == 0, done.stderr
    assert "2 parts in 3D" in done.stdout
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")
    for words, said in (
        (["nowhere"], "nowhere is no folder of a data set"),
        ([str(built), "--gallery", "0"], "--gallery must be 1 or more"),
        ([str(built), "--out", str(tmp_path)], "is a folder"),
        ([str(tmp_path)], "has no manifest.parquet"),
    ):
        bad = run_here("pipelines.report", *words)
        assert bad.returncode == 1
        assert said in bad.stderr
        assert len(bad.stderr.strip().splitlines()) == 1


def test_a_data_set_without_kept_cases_has_a_page_too(tmp_path: Path) -> None:
    write_part(tmp_path / "src", Part("a", verdict=TERMINATED))
    run_build(request(tmp_path / "src", tmp_path / "out", report=True))
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "No part was kept." in text
    assert not (tmp_path / "out" / "pictures").exists()


def test_colours_have_contrast() -> None:
    """Ratios of WCAG 2.2: 4.5 for text, light and dark."""
    css = (VIEWER / "viewer.css").read_text() + (ASSETS / "report.css").read_text()
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)", css))

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for scheme in (0, 1):
        colours = {name: luminance(pair.split(", ")[scheme]) for name, pair in pairs.items()}
        for text, grounds in {
            "text": ("ground", "raised", "stage"),
            "soft": ("ground", "raised"),
            "accent": ("ground", "raised"),
            "alarm": ("ground", "raised", "alarm-ground"),
        }.items():
            for ground in grounds:
                light, dark = sorted((colours[text], colours[ground]), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground, scheme)
