"""Components of tensors under their right names: NetFabb's files, the simulator's, meshio's and VTK's."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from pathlib import Path

import meshio
import numpy as np
import pytest
from numpy.typing import NDArray
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkIOXML import vtkXMLUnstructuredGridReader

import pipelines.ensight
from flare_model.predict import Prediction, write_vtu
from flare_model.prediction.parts import Part as PredictedPart
from flare_model.prediction.parts import read_parts
from lpbf_data.case.schema import SYMMETRIC_TENSOR
from lpbf_data.case.tensor_order import (
    ENSIGHT_ORDER,
    VTK_ORDER,
    TensorOrder,
    as_matrices,
    order_by_principal_values,
    reorder,
)
from pipelines.ensight import Dialect, read_variable, write_variable
from pipelines.netfabb.run import NETFABB_ORDER, NetfabbRun
from pipelines.reporting.summary import tensor_remarks
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.physics.elements import elasticity_matrix
from pipelines.sources.case_files import open_case
from pipelines.sources.finding import find_cases
from tests.netfabb_cases import Part, box_mesh, write_part
from tests.pipelines.test_simulation_files import simulate_one
from tests.pipelines.vtk_oracle import VtkFrames

SIZES = ("max", "mid", "min")
STRESSES = ("cauchy_stress", *(f"principal_stress_{s}" for s in SIZES))
DIRECTIONS = tuple(f"principal_stress_direction_{s}" for s in SIZES)


def run_of(folder: Path) -> NetfabbRun:
    (location,) = find_cases([folder]).locations
    return NetfabbRun(location.case_id, open_case(location))


def random_tensors(
    count: int, order: TensorOrder
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Tensors with known principal values, largest first, and vectors: `[:, k]` belongs to value k."""
    rng = np.random.default_rng(3)
    values = np.sort(rng.normal(scale=300, size=(count, 3)), axis=1)[:, ::-1]
    turned = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    full = np.einsum("nik,nk,njk->nij", turned, values, turned)
    columns = [full[:, "xyz".index(a), "xyz".index(b)] for a, b in order]
    return np.stack(columns, axis=1).astype("f4"), values.astype("f4"), np.swapaxes(turned, 1, 2)


def test_real_tensors_have_the_principal_stresses_and_directions_beside_them(samples: Path) -> None:
    frames = 0
    for location in find_cases([samples]).locations:
        run = NetfabbRun(location.case_id, open_case(location))
        assert run.tensor_order == (NETFABB_ORDER, "checked")
        assert (run.info().tensor_order, run.info().tensor_order_basis) == ("xx yy zz xy yz xz", "checked")
        for frame in range(run.num_frames):
            fields = run.read_case((*STRESSES, *DIRECTIONS), frame).fields
            full = as_matrices(fields["cauchy_stress"], SYMMETRIC_TENSOR)
            told = np.stack([fields[f"principal_stress_{s}"] for s in SIZES], axis=1).astype(np.float64)
            np.testing.assert_allclose(np.linalg.eigvalsh(full)[:, ::-1], told, atol=0.005)
            # A direction is that of an eigenvector, scaled so that its largest component is 1 or -1.
            apart = np.min(np.abs(np.diff(told, axis=1)), axis=1) > 1.0
            assert apart.sum() > 300
            for k, name in enumerate(DIRECTIONS):
                direction = fields[name].astype(np.float64)
                np.testing.assert_allclose(np.abs(direction).max(axis=1), 1, atol=1e-6)
                direction /= np.linalg.norm(direction, axis=1, keepdims=True)
                off = np.einsum("nij,nj->ni", full, direction) - told[:, [k]] * direction
                assert np.abs(off[apart]).max() < 0.02
            frames += 1
    assert frames == 12


@pytest.mark.parametrize("order", [ENSIGHT_ORDER, VTK_ORDER])
def test_the_order_is_told_by_principal_values(order: TensorOrder) -> None:
    tensors, values, _ = random_tensors(9000, order)
    assert order_by_principal_values(tensors, values) == order
    assert order_by_principal_values(tensors[:3], values[:3, ::-1]) == order
    flat = tensors * np.array([1, 1, 1, 1, 0, 0], np.float32)
    assert order_by_principal_values(flat, np.linalg.eigvalsh(as_matrices(flat, order))) is None
    assert order_by_principal_values(np.zeros((5, 6)), np.zeros((5, 3))) is None
    with pytest.raises(ValueError, match="in either order"):
        order_by_principal_values(tensors, values * 1.1)


def _rewrite(results: Path, **stresses: NDArray[np.float32]) -> None:
    """Put other values into the last frame."""
    for suffix, values in stresses.items():
        (results / f"mechanical00_8.{suffix}.ens").write_bytes(write_variable(values))


def _say_version(root: Path, version: str) -> None:
    log = root / "mechanical.out"
    log.write_text(log.read_text().replace("v24.0.18", f"v{version}"))


@pytest.mark.parametrize("version", ["24.0.18", "0.1.0-lpbf", "0.2.0-lpbf"])
@pytest.mark.parametrize("written", [ENSIGHT_ORDER, VTK_ORDER])
@pytest.mark.parametrize("told", ["data", "nothing", "nonsense"])
def test_convention_and_data(tmp_path: Path, version: str, written: TensorOrder, told: str) -> None:
    root = write_part(tmp_path, Part("p"))
    _say_version(root, version)
    count = len(run_of(root).geometry().points)
    tensors, values, _ = random_tensors(count, SYMMETRIC_TENSOR)
    _rewrite(root / "results", sig=reorder(tensors, SYMMETRIC_TENSOR, written))
    if told == "nothing":
        case_file = root / "results/mechanical.case"
        case_file.write_text(case_file.read_text().replace("Principal_stress_mid", "Another"))
    else:
        shift = 50.0 if told == "nonsense" else 0.0
        _rewrite(root / "results", **{f"sp{k + 1}": values[:, k] + np.float32(shift) for k in range(3)})
    run = run_of(root)
    known = ENSIGHT_ORDER if version == "0.1.0-lpbf" else VTK_ORDER
    basis = {"nothing": "solver", "nonsense": "unconfirmed", "data": "checked" if written == known else "data"}[told]
    assert run.tensor_order == ((written if told == "data" else known), basis)
    read = run.read_case(["cauchy_stress"]).fields["cauchy_stress"]
    np.testing.assert_array_equal(np.array_equal(read, tensors), told == "data" or written == known)
    record = dataclasses.replace(_measured(root), case_id="p")
    sentences = [str(remark) for remark in tensor_remarks([record, record])]
    assert len(sentences) == (basis in ("data", "unconfirmed"))
    if sentences:
        assert ("changed" if basis == "data" else "guessed") in sentences[0]
        assert "(p, …)" in sentences[0]


def _measured(root: Path):  # type: ignore[no-untyped-def]
    from pipelines.measuring.convert import measure_location

    (location,) = find_cases([root]).locations
    record = measure_location(location).record
    assert record.failure is None
    return record


def test_damaged_principal_stresses_dont_fail_a_case_that_needs_none(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("p"))
    (root / "results/mechanical00_8.sp2.ens").write_bytes(b"short")
    assert run_of(root).tensor_order == (NETFABB_ORDER, "solver")
    assert _measured(root).run.tensor_order_basis == "solver"


def test_files_whose_names_differ_in_case_check_tensors_too(samples: Path, tmp_path: Path) -> None:
    """As of a disk that doesn't tell upper from lower case, copied to one that does."""
    results = min(samples.rglob("results"))
    shutil.copytree(results.parent, tmp_path / "case")
    for path in (tmp_path / "case/results").glob("*.ens"):
        path.rename(path.with_name(path.name.upper()))
    assert run_of(tmp_path / "case").tensor_order == (NETFABB_ORDER, "checked")


@pytest.mark.parametrize("kind", [Dialect(), Dialect(pipelines.ensight.Encoding.ASCII)], ids=["binary", "text"])
def test_meshio_gives_vtks_order_for_netfabb(tmp_path: Path, kind: Dialect) -> None:
    root = write_part(tmp_path, Part("p", dialect=kind))
    mesh = meshio.read(root / "mechanical.case")
    expected = run_of(root).read_case(["cauchy_stress", "elastic_strain"]).fields
    for name, field in (("Cauchy_stress", "cauchy_stress"), ("Elastic_strain", "elastic_strain")):
        np.testing.assert_array_equal(mesh.point_data[name], reorder(expected[field], SYMMETRIC_TENSOR, VTK_ORDER))


def test_real_tensors_reach_vtk_right(samples: Path, tmp_path: Path) -> None:
    for location in find_cases([samples]).locations:
        folder = next(path for path in samples.rglob(location.case_id) if path.is_dir())
        mesh = meshio.read(folder / f"{location.case_id}_mechanical.case")
        told = mesh.point_data["Principal_stress_max"].astype(np.float64)
        # As VTU, which VTK reads; and as EnSight again, which VTK's own reader turns into its order.
        meshio.write(tmp_path / "real.vtu", mesh)
        meshio.write(tmp_path / "real.case", mesh)
        *_, from_case, _ = VtkFrames(tmp_path / "real.case").read(0)
        for stress in (_vtu_arrays(tmp_path / "real.vtu")["Cauchy_stress"], from_case["Cauchy_stress"]):
            largest = np.linalg.eigvalsh(as_matrices(stress, VTK_ORDER))[:, 2]
            np.testing.assert_allclose(largest, told, atol=0.005)


def _vtu_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    reader = vtkXMLUnstructuredGridReader()
    reader.SetFileName(str(path))
    reader.Update()
    data = reader.GetOutput().GetPointData()
    return {data.GetArrayName(k): vtk_to_numpy(data.GetArray(k)).copy() for k in range(data.GetNumberOfArrays())}


def test_meshio_takes_an_unknown_writers_file_as_vtk_does(tmp_path: Path) -> None:
    points, cells = box_mesh((2, 2, 2))
    tensors, _, _ = random_tensors(len(points), VTK_ORDER)
    at_cells, _, _ = random_tensors(len(cells), VTK_ORDER)
    mesh = meshio.Mesh(points, [("hexahedron", cells)], {"stress": tensors}, {"strain": [at_cells]})
    meshio.write(tmp_path / "x.case", mesh)
    *_, at_points, in_cells = VtkFrames(tmp_path / "x.case").read(0)
    again = meshio.read(tmp_path / "x.case")
    for found in (at_points["stress"], again.point_data["stress"]):
        np.testing.assert_array_equal(found, tensors)
    for found in (in_cells["strain"], again.cell_data["strain"][0]):
        np.testing.assert_array_equal(found, at_cells)
    raw = read_variable((tmp_path / "x_1.000.ens").read_bytes(), Dialect(), count=len(points), num_components=6)
    np.testing.assert_array_equal(raw, reorder(tensors, VTK_ORDER, ENSIGHT_ORDER))


def test_meshio_warns_where_principal_stresses_fit_no_order(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("p"))
    shutil.copy(root / "results/mechanical00_8.sp1.ens", root / "results/mechanical00_8.sp3.ens")
    with pytest.warns(UserWarning, match="in either order; the shear components are read as xy yz xz"):
        meshio.read(root / "mechanical.case")


def test_predictions_show_tensors_as_vtk_reads_them(tmp_path: Path) -> None:
    points, cells = box_mesh((3, 2, 2))
    tensors, values, vectors = random_tensors(len(points), SYMMETRIC_TENSOR)
    part = PredictedPart("p", points, cells, {})
    prediction = Prediction(part, {"cauchy_stress": tensors}, {"cauchy_stress": tensors}, {}, (), 0.0)
    write_vtu(tmp_path / "p.vtu", prediction)
    shown = _vtu_arrays(tmp_path / "p.vtu")
    for name in ("cauchy_stress_predicted", "cauchy_stress"):
        full = as_matrices(shown[name], VTK_ORDER)
        np.testing.assert_allclose(np.linalg.eigvalsh(full)[:, ::-1], values, atol=1e-3)
        applied = np.einsum("nij,nkj->nki", full, vectors)
        np.testing.assert_allclose(applied, values[:, :, None] * vectors, atol=1e-2)
    # The same file is a part to predict on, its fields features of a model.
    np.testing.assert_array_equal(next(read_parts(tmp_path / "p.vtu")).fields["cauchy_stress"], tensors)


def test_predictions_of_other_things_with_six_columns_stay_as_they_are(tmp_path: Path) -> None:
    points, cells = box_mesh((3, 2, 2))
    tensors = random_tensors(len(points), SYMMETRIC_TENSOR)[0]
    fields = {"elastic_strain": tensors, "modes": tensors, "strain_of_mine_predicted": tensors}
    prediction = Prediction(PredictedPart("p", points, cells, {}), fields, fields, {}, (), 0.0)
    write_vtu(tmp_path / "p.vtu", prediction)
    shown = _vtu_arrays(tmp_path / "p.vtu")
    for name in ("modes_predicted", "modes", "modes_error", "strain_of_mine_predicted"):
        np.testing.assert_array_equal(shown[name], tensors - tensors if name.endswith("_error") else tensors)
    np.testing.assert_array_equal(shown["elastic_strain_predicted"], reorder(tensors, SYMMETRIC_TENSOR, VTK_ORDER))


OLD = Path(__file__).parents[1] / "old_simulator" / "v0.1.0.zip"
"""Mechanical files of a small cantilever, as version 0.1.0 of the simulator wrote them."""


def test_what_the_simulator_wrote_before_is_read_in_its_order(tmp_path: Path) -> None:
    (location,) = find_cases([OLD]).locations
    run = NetfabbRun(location.case_id, open_case(location))
    assert run.log.solver_version == "0.1.0-lpbf"
    assert run.tensor_order == (ENSIGHT_ORDER, "checked")
    for frame in range(run.num_frames):
        fields = run.read_case((*STRESSES, "elastic_strain"), frame).fields
        told = np.stack([fields[f"principal_stress_{s}"] for s in SIZES], axis=1)
        full = as_matrices(fields["cauchy_stress"], SYMMETRIC_TENSOR)
        np.testing.assert_allclose(np.linalg.eigvalsh(full)[:, ::-1], told, atol=1e-2)
        # Isotropic elasticity: shear stress over engineering shear strain is one number, component by component.
        shear, strain = fields["cauchy_stress"][:, 3:].ravel(), fields["elastic_strain"][:, 3:].ravel()
        modulus = float(shear @ strain / (strain @ strain)) if strain.any() else 0.0
        np.testing.assert_allclose(shear, modulus * strain, atol=1e-2)
    # The principal stresses aside, the version in the log alone decides.
    with zipfile.ZipFile(OLD) as archive:
        archive.extractall(tmp_path)
    for path in tmp_path.rglob("mechanical.case"):
        path.write_text(path.read_text().replace("Principal_stress_mid", "Another"))
    blind = run_of(tmp_path)
    assert blind.tensor_order == (ENSIGHT_ORDER, "solver")
    for name in ("cauchy_stress", "elastic_strain"):
        np.testing.assert_array_equal(blind.read_case([name]).fields[name], run.read_case([name]).fields[name])


def test_the_simulator_writes_tensors_as_netfabb_does(tmp_path: Path) -> None:
    folder, _ = simulate_one(tmp_path)
    run = run_of(folder)
    assert run.log.solver_version == "0.4.3-lpbf"
    assert run.tensor_order == (NETFABB_ORDER, "checked")
    material = MATERIALS["Inc625"]
    compliance = np.linalg.inv(elasticity_matrix(material.young, material.poisson))
    seen = set()
    for frame in range(run.num_frames):
        case = run.read_case((*STRESSES, *DIRECTIONS, "elastic_strain"), frame)
        told = np.stack([case.fields[f"principal_stress_{s}"] for s in SIZES], axis=1)
        files = {
            short: read_variable(
                (folder / f"results/mechanical00_{frame + 1}.{short}.ens").read_bytes(),
                run.geometry(frame).dialect,
                count=case.num_points,
                num_components=6,
            ).astype(np.float64)
            for short in ("sig", "ept")
        }
        np.testing.assert_allclose(np.linalg.eigvalsh(as_matrices(files["sig"], VTK_ORDER))[:, ::-1], told, atol=0.01)
        full = as_matrices(case.fields["cauchy_stress"], SYMMETRIC_TENSOR)
        for k, name in enumerate(DIRECTIONS):  # scaled as NetFabb's: the largest component is 1
            direction = case.fields[name].astype(np.float64)
            np.testing.assert_allclose(direction.max(axis=1), np.abs(direction).max(axis=1))
            np.testing.assert_allclose(direction.max(axis=1), 1, atol=1e-6)
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            off = np.einsum("nij,nj->ni", full, direction) - told[:, [k]] * direction
            assert np.abs(off).max() < 0.02
        # What NetFabb's files give: `ept` less C⁻¹ `sig` is the inherent strain, equal along x and y, without shears.
        inherent = files["ept"] - files["sig"] @ compliance
        np.testing.assert_allclose(inherent[:, 3:], 0, atol=2e-7)
        seen |= set(np.round(inherent[:, :3], 6).reshape(-1).tolist())
    assert min(seen) == pytest.approx(min(material.inherent_strain), abs=2e-6)
    assert len(seen) < 60  # shares of one strain: all or none of the cells at a node, or some of eight
