"""Named draws: which candidate a case is, its weight, and the same parts at other sizes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpbf_data.case.record import Measures
from lpbf_data.console import open_console
from lpbf_data.durable import sha256_of_tree
from lpbf_data.errors import UsageError
from lpbf_data.geometry.hexahedra import hex_aspect_ratio
from lpbf_data.stores.manifest import decode_manifest
from pipelines.build import build
from pipelines.building.engine import SERIAL, Resources
from pipelines.netfabb.solver_log import PartOrigin, read_log, write_origin
from pipelines.simulate import print_outcomes, run_simulation
from pipelines.simulation.case_task import _mesh_near
from pipelines.simulation.parts import draws as draws_module
from pipelines.simulation.parts.corpus import parameters_of, part_surface
from pipelines.simulation.parts.draws import BALANCED, DRAWS, PUBLISHED, Draw, plan_streams
from pipelines.simulation.parts.families import FAMILIES
from pipelines.simulation.parts.outcomes import CaseOutcome
from pipelines.simulation.request import SimulationOptions, check_request
from pipelines.simulation.results import failures

QUICK = ("plate", "bracket", "ribbed_plate", "cantilever", "clevis")  # families of few triangles
SMALL = SimulationOptions(cases=3, points=100, seed=6, draw="balanced", families=QUICK)


def run_small(out: Path, options: SimulationOptions = SMALL, resources: Resources = SERIAL) -> tuple[CaseOutcome, ...]:
    return run_simulation(check_request(str(out), options), resources)


def visible(out: Path) -> dict[str, str]:
    return {p.name: sha256_of_tree(p)[0] for p in sorted(out.iterdir()) if p.name != ".simulate"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[CaseOutcome, ...]]:
    out = tmp_path_factory.mktemp("drawn") / "out"
    return out, run_small(out)


def measures(*, hit: bool, moved: float = 0.2, height: float = 30.0) -> Measures:
    return Measures(1000, 5000, 700, 1.2, 1.2, height, moved, moved, moved, 500.0, 50.0 if hit else 90.0, 1.0, hit)


def test_cases_are_the_same_whoever_works_and_however_often_they_are_stopped(
    tmp_path: Path, drawn: tuple[Path, tuple[CaseOutcome, ...]]
) -> None:
    out, outcomes = drawn
    assert sum(sum(one.passed_over.values()) for one in outcomes) > 0  # somebody was passed over
    grown = tmp_path / "grown"
    assert run_small(grown, dataclasses.replace(SMALL, cases=2)) == outcomes[:2]
    (grown / ".simulate/outcomes" / f"{outcomes[1].case_id}.json").unlink()  # as if it had been killed
    assert run_small(grown, resources=Resources(workers=2)) == outcomes
    assert visible(grown) == visible(out)
    assert run_small(grown) == outcomes  # from what is kept


def test_weights_are_one_over_the_acceptance_and_reach_log_and_manifest(
    tmp_path: Path, drawn: tuple[Path, tuple[CaseOutcome, ...]]
) -> None:
    out, outcomes = drawn
    build([str(out)], out=str(tmp_path / "lpbf"), workers=0, time_limit=math.inf, splits="train=1", no_report=True)
    records = {r.case_id: r for r in decode_manifest((tmp_path / "lpbf/manifest.parquet").read_bytes()).records}
    for one in outcomes:
        record = records[one.case_id]
        assert one.origin is not None
        assert record.status == "kept"  # what is accepted lies within the published limits
        assert record.measures is not None
        assert one.origin.weight == pytest.approx(1 / BALANCED.acceptance(record.measures))
        assert (record.run.family, record.run.draw, record.run.weight) == dataclasses.astuple(one.origin)
    weights = {one.recoater_interference: one.origin.weight for one in outcomes if one.origin}
    assert weights[False] == 1.0
    assert weights[True] == pytest.approx(1 / BALANCED.hit)


@pytest.mark.parametrize("draw", list(DRAWS))
def test_candidates_are_accepted_as_often_as_their_weights_say(draw: str) -> None:
    named: Draw = DRAWS[draw]  # type: ignore[index]
    lucks = np.array([s.candidate(0)[1] for s in plan_streams(named.name, 1, 3000, 500, ("gear", "shaft"))])
    for part in (measures(hit=True), measures(hit=False), measures(hit=True, moved=0.05, height=5.0)):
        acceptance = named.acceptance(part)
        assert 0 < acceptance <= 1
        found = float((lucks < acceptance).mean())
        assert found == pytest.approx(acceptance, abs=4 * np.sqrt(acceptance * (1 - acceptance) / len(lucks)) + 1e-9)


@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_weighted_means_over_accepted_parts_are_those_over_all(share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hits, lucks = rng.uniform(size=20_000) < share, rng.uniform(size=20_000)
    acceptances = np.where(hits, BALANCED.acceptance(measures(hit=True)), BALANCED.acceptance(measures(hit=False)))
    accepted = lucks < acceptances
    weights = 1 / acceptances[accepted]
    assert np.average(hits[accepted], weights=weights) == pytest.approx(hits.mean(), abs=0.03)


def test_what_ends_a_run_early_would_not_have_been_accepted() -> None:
    draw = dataclasses.replace(PUBLISHED, hit=0.4, by_height=(1.0, 0.5, 0.2, 0.1), by_displacement=(0.1, 0.2, 0.6, 1.0))
    for height in (1.0, 10.0, 30.0, 60.0):
        for moved in (0.01, 0.2, 0.3, 0.9):
            for hit in (False, True):
                part = measures(hit=hit, moved=moved, height=height)
                assert draw.acceptance(part) <= draw.most(height, hit=hit) <= draw.most(height, hit=False)


def test_a_stream_without_an_accepted_candidate_is_a_failed_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = dataclasses.replace(BALANCED, clear=0.0, hit=0.0)
    monkeypatch.setattr("pipelines.simulation.parts.trial.DRAWS", {"balanced": never})
    monkeypatch.setattr("pipelines.simulation.case_task.MAX_CANDIDATES", 3)
    (outcome,) = run_small(tmp_path, dataclasses.replace(SMALL, cases=1))
    assert outcome.status == "failed"
    assert "None of 3 candidates was accepted" in outcome.reason
    assert sum(outcome.passed_over.values()) == 3
    assert "Analysis terminated" in (tmp_path / outcome.case_id / "mechanical.out").read_text()
    assert {p.name for p in (tmp_path / outcome.case_id).iterdir()} == {"mechanical.out", "thermal.out"}


def test_parts_that_no_build_would_survive_end_as_failed_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataclasses.replace(SMALL, draw=None)
    assert all(one.status == "completed" for one in run_small(tmp_path / "whole", options))
    before = run_small(tmp_path / "before", dataclasses.replace(SMALL, cases=1))
    monkeypatch.setattr(failures, "MAX_DISPLACEMENT", 0.1)
    outcomes = run_small(tmp_path / "strict", options)
    (lost,) = (one for one in outcomes if one.status == "failed")
    assert not lost.survived
    assert "more than the 0.1 mm that a build survives" in lost.reason
    print_outcomes(outcomes, tmp_path / "strict", open_console())
    assert "no build would survive │ 1 (33.3%)" in " ".join(capsys.readouterr().out.split())
    drawn = run_small(tmp_path / "drawn", dataclasses.replace(SMALL, cases=1))
    # A candidate that the blade hit before moves too far for this limit; the one after it is taken all the same.
    assert [one.passed_over for one in (*before, *drawn)] == [{"hit by the blade": 1}, {"no build would survive": 1}]
    assert drawn[0].candidate == before[0].candidate


def test_accepted_parts_at_another_size_are_the_same_parts(
    tmp_path: Path, drawn: tuple[Path, tuple[CaseOutcome, ...]]
) -> None:
    out, outcomes = drawn
    options = SimulationOptions(cases=2, points=600, parts_of=str(out))
    finer = run_small(tmp_path / "finer", options)
    for one, other in zip(outcomes, finer, strict=False):
        assert other.case_id == f"{one.case_id}000600"
        assert other.candidate == one.candidate
        assert other.origin == one.origin  # weight and draw as well
        assert other.num_points > one.num_points
        stl = [
            (folder / case.case_id / "test.stl").read_bytes()
            for folder, case in ((out, one), (tmp_path / "finer", other))
        ]
        assert stl[0] == stl[1]
    build(
        [str(out), str(tmp_path / "finer")],
        out=str(tmp_path / "lpbf"),
        workers=0,
        time_limit=math.inf,
        splits="train=1",
        no_report=True,
    )
    records = decode_manifest((tmp_path / "lpbf/manifest.parquet").read_bytes()).records
    assert len({r.design_id for r in records}) == 3
    assert len(records) == 5


def test_lean_results_build_the_same_data_set(tmp_path: Path, drawn: tuple[Path, tuple[CaseOutcome, ...]]) -> None:
    out, outcomes = drawn
    lean = dataclasses.replace(SMALL, cases=2, results="lean")
    assert run_small(tmp_path / "lean", lean) == outcomes[:2]
    sizes = []
    for folder, name in ((out, "a"), (tmp_path / "lean", "b")):
        src = [str(folder / one.case_id) for one in outcomes[:2]]
        sizes.append(sum(p.stat().st_size for one in src for p in Path(one).rglob("*")))
        build(src, out=str(tmp_path / name), workers=0, time_limit=math.inf, splits="train=1", no_report=True)
    assert sizes[1] < 0.5 * sizes[0]
    records = [decode_manifest((tmp_path / name / "manifest.parquet").read_bytes()).records for name in "ab"]
    assert [(r.case_id, r.measures, r.statistics) for r in records[0]] == [
        (r.case_id, r.measures, r.statistics) for r in records[1]
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"draw": "balanced", "parts_of": "x"}, "exclude each other"),
        ({"draw": "fair"}, "unknown --draw fair"),
        ({"draw": None, "parts_of": "nowhere"}, "is no output of pipelines.simulate with --draw"),
    ],
)
def test_impossible_draws_are_refused(tmp_path: Path, change: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_request(str(tmp_path / "out"), dataclasses.replace(SMALL, **change))  # type: ignore[arg-type]


def test_parts_of_a_folder_that_has_too_few_or_was_altered_are_refused(
    tmp_path: Path, drawn: tuple[Path, tuple[CaseOutcome, ...]]
) -> None:
    out, _ = drawn
    for options, words in (
        (SimulationOptions(cases=4, points=600, parts_of=str(out)), "holds 3 accepted parts, --cases asks for 4"),
        (SimulationOptions(cases=2, points=100, parts_of=str(out)), "ask for another one"),
    ):
        with pytest.raises(UsageError, match=words):
            check_request(str(tmp_path / "finer"), options)
    place = tmp_path / "altered/.simulate"
    place.mkdir(parents=True)
    for content in ("[]", "{", json.dumps({"draw": ["x"], "seed": 1, "points": 2, "families": []})):
        (place / "request.json").write_text(content)
        with pytest.raises(UsageError, match="parts_of"):
            check_request(str(tmp_path / "finer"), SimulationOptions(parts_of=str(tmp_path / "altered")))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_flat_parts_mesh_within_the_published_aspect_ratio(name: str) -> None:
    middle = parameters_of(FAMILIES[name], dict.fromkeys(FAMILIES[name].ranges, 0.5))
    surface = part_surface(name, middle, 0, height=0.6, sized_for=1500)
    assert np.ptp(surface.bounds[:, 2]) == pytest.approx(0.6)
    mesh = _mesh_near(surface, 1500, 1.3, 0.04)
    assert mesh.num_planes >= 2
    assert hex_aspect_ratio(mesh.points, mesh.cells).max() <= 3


def test_a_tilted_part_is_the_part_turned_and_scaled() -> None:
    middle = parameters_of(FAMILIES["bracket"], dict.fromkeys(FAMILIES["bracket"].ranges, 0.5))
    upright, tilted = part_surface("bracket", middle, 1), part_surface("bracket", middle, 1, tilt=(35.0, 70.0))
    assert tilted.bounds[0, 2] == 0
    assert np.ptp(tilted.bounds, axis=0).max() == pytest.approx(60)

    def edges(surface: object) -> np.ndarray:
        a, b = (surface.vertices[surface.triangles[:, k]] for k in (0, 1))  # type: ignore[attr-defined]
        return np.sort(np.linalg.norm(a - b, axis=1))

    ratio = (tilted.volume / upright.volume) ** (1 / 3)
    np.testing.assert_allclose(edges(tilted), ratio * edges(upright), rtol=1e-3, atol=1e-4)
    horizontal = np.abs(np.diff(upright.vertices[upright.triangles][..., 2], axis=1)).max(axis=1) < 1e-6
    a, b, c = (tilted.vertices[tilted.triangles[: len(horizontal)][:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    steep = np.abs(normals[:, 2]) / np.linalg.norm(normals, axis=1)
    assert np.isclose(steep, np.cos(np.deg2rad(35.0)), atol=1e-3).sum() >= horizontal.sum() > 0


@pytest.mark.parametrize("draw", list(DRAWS.values()), ids=list(DRAWS))
def test_about_the_asked_share_of_candidates_is_tilted(draw: Draw) -> None:
    plans = [s.candidate(0)[0] for s in plan_streams(draw.name, 5, 600, 2000, tuple(FAMILIES))]
    assert np.mean([plan.tilt is not None for plan in plans]) == pytest.approx(draw.tilted, abs=0.07)
    assert all((plan.tilt is None) != (plan.height is None) for plan in plans)
    heights = [plan.height for plan in plans if plan.height is not None]
    assert 0.6 <= min(heights) < 2
    assert np.mean(np.array(heights) == 60) == pytest.approx(0.28, abs=0.07)
    assert {plan.family for plan in plans} == set(FAMILIES)
    sizes = [plan.num_points for plan in plans]
    shares = [share for _, share in draw.sizes]
    assert max(100, 2000 * min(shares)) <= min(sizes) <= max(sizes) <= 2000 * max(shares)


def test_lines_that_only_look_like_an_origin_are_somebody_elses() -> None:
    log = "\nAutodesk AM Process Simulation v0\n"
    told = PartOrigin("gear", "balanced", 2.5)
    assert read_log(log + write_origin(told)).origin == told
    for line in (
        'LPBF part: {"family": 3}',
        'LPBF part: {"family": "a\\u0000b"}',
        "LPBF part: {nothing}",
        'LPBF part: {"draw": "' + "x" * 200 + '"}',
    ):
        assert read_log(f"{log}{line}\n").origin == PartOrigin()
    for weight in ("0.5", "NaN", "Infinity", "true", '"2"', "-1"):
        assert read_log(f'{log}LPBF part: {{"family": "gear", "weight": {weight}}}\n').origin == PartOrigin("gear")


def test_draws_of_one_seed_are_different_and_the_first_cases_stay() -> None:
    names = tuple(FAMILIES)
    for draw in DRAWS:
        assert plan_streams(draw, 5, 40, 2000, names)[:15] == plan_streams(draw, 5, 15, 2000, names)
    plans = [plan_streams(draw, 5, 1, 2000, names)[0].candidate(0)[0] for draw in DRAWS]
    assert plans[0].parameters != plans[1].parameters
    assert draws_module.MAX_CANDIDATES >= 100
