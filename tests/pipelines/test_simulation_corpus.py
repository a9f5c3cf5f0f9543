"""The parts of a corpus: families, sizes, ids."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpbf_data.case.record import CaseRecord, SourceRef
from lpbf_data.geometry.hexahedra import hex_aspect_ratio
from lpbf_data.geometry.voxelize import voxelize_to_size
from pipelines.selection.designs import design_namer
from pipelines.simulation.choices import FAMILY_NAMES
from pipelines.simulation.parts.corpus import parameters_of, part_surface, plan_corpus
from pipelines.simulation.parts.families import FAMILIES


def test_there_are_families_enough_and_parameters_enough() -> None:
    assert len(FAMILIES) >= 8
    assert tuple(FAMILIES) == FAMILY_NAMES
    assert all(len(family.ranges) >= 4 for family in FAMILIES.values())


@pytest.mark.parametrize("name", list(FAMILIES))
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_every_part_is_watertight_fits_and_meshes(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]
    shares = {key: data.draw(st.floats(0, 1)) for key in family.ranges}
    surface = part_surface(name, parameters_of(family, shares), data.draw(st.integers(0, 2)))  # refuses holes itself
    low, high = surface.bounds
    assert low[2] == 0
    assert high[2] <= 60
    assert np.abs(surface.bounds[:, :2]).max() <= 30.0001
    assert (high - low).max() == pytest.approx(60)
    mesh = voxelize_to_size(surface, 800, 1.28, layer=0.04, planes=2)
    assert np.ptp(mesh.points[:, 2]) > 1
    assert mesh.indices[:, 2].min() == 0


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_parameter_changes_the_part(name: str) -> None:
    family = FAMILIES[name]
    for key in family.ranges:
        moved = []
        for share in (0.3, 0.6):  # with one arm, say, it doesn't matter how arms differ
            shares = dict.fromkeys(family.ranges, share)
            parts = [part_surface(name, parameters_of(family, shares | {key: end}), 0) for end in (0.0, 1.0)]
            moved.append(not np.array_equal(parts[0].vertices, parts[1].vertices))
        assert any(moved), key


def test_ids_have_the_published_form_and_tell_the_design() -> None:
    plans = plan_corpus(0, 200, 2000)
    namer = design_namer("auto")
    assert len({plan.case_id for plan in plans}) == 200
    family_of: dict[str, str] = {}
    for plan in plans:
        assert re.fullmatch(r"\d+_[0-9a-f]{8}_\d+", plan.case_id)
        design = namer(CaseRecord(plan.case_id, SourceRef("a", "b")))
        assert family_of.setdefault(design, plan.family) == plan.family
    shared = 200 - len(family_of)
    assert 20 < shared < 120  # about a third of the published cases share their design with another


def test_a_corpus_can_be_extended() -> None:
    assert plan_corpus(5, 40, 2000)[:15] == plan_corpus(5, 15, 2000)
    assert plan_corpus(5, 15, 2000) != plan_corpus(6, 15, 2000)


def test_sizes_and_aspect_ratios_follow_the_published_simulations() -> None:
    plans = plan_corpus(1, 3000, 2000)
    sizes = np.array([plan.num_points for plan in plans])
    ratios = np.array([plan.aspect_ratio for plan in plans])
    # Of the 3,398 simulations at 20, 50 and 80 %: 5,596, 13,394 and 28,030 hexahedra, ratios of 1.28, 1.6 and 4.155.
    assert np.percentile(sizes, [20, 50, 80]) / 2000 == pytest.approx([0.418, 1.0, 2.093], rel=0.15)
    assert np.percentile(ratios, [20, 50, 80]) == pytest.approx([1.28, 1.6, 4.155], rel=0.1)
    assert (ratios > 3).mean() == pytest.approx(0.264, abs=0.03)  # beyond the published limit


def test_the_aspect_ratio_of_the_cells_is_the_one_that_was_drawn() -> None:
    close = []
    for plan in plan_corpus(2, 30, 1500):
        surface = part_surface(plan.family, plan.parameters, plan.up)
        mesh = voxelize_to_size(surface, plan.num_points, plan.aspect_ratio, layer=0.04, planes=2)
        found = hex_aspect_ratio(mesh.points, mesh.cells)
        assert np.ptp(found) < 1e-9  # one for all cells, as in the published meshes
        close.append(found[0] == pytest.approx(plan.aspect_ratio, rel=0.25))
    assert np.mean(close) > 0.75  # cells are fitted to the part, and high cells don't fit into low parts


def test_families_can_be_chosen() -> None:
    assert {plan.family for plan in plan_corpus(0, 20, 2000, ["gear", "tee"])} == {"gear", "tee"}
