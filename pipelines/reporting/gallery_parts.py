"""Parts that the report shows: which ones, and each as a surface with its fields and a picture.

Larger sets show a sample. It holds the parts that come nearest to the recoater blade (or those that are predicted
worst), and others by a hash of their ids, so that it doesn't depend on their order or on chance.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord
from lpbf_data.case.schema import FIELDS, FieldSpec
from lpbf_data.case.statistics import NEGLIGIBLE, total
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.geometry.outer_surface import MeshSurface, extract_surface
from lpbf_data.reading.catalog import read_manifest
from lpbf_data.reading.split_reader import SplitReader
from lpbf_data.stores.manifest import Manifest
from lpbf_data.stores.predictions import PredictionFile
from lpbf_data.viewer.shown_fields import ShownField, column_of, fields_of
from lpbf_data.viewer.surface_codec import encode_surface
from pipelines.reporting.gallery_pictures import Drawing, PartRenderer, Pixels, encode_still

_MAX_IN_FLIGHT: Final = 4


class KeptCases:
    """The kept cases of a data set, by id.

    Args:
        folder: The data set.

    Raises:
        StoreError: If it has no manifest.
    """

    def __init__(self, folder: DatasetFolder) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self.manifest.need_parts(folder.name, "python -m pipelines.report")
        self._readers = {split: SplitReader(folder, split) for split in self.manifest.splits}
        self._stored = {
            address.case_id: (reader, number)
            for reader in self._readers.values()
            for number, address in enumerate(reader.addresses)
        }

    @property
    def field_specs(self) -> tuple[FieldSpec, ...]:
        """Fields that are stored; none where no case was kept."""
        return next(iter(self._readers.values())).field_specs if self._readers else ()

    def read(self, case_id: str, fields: Sequence[str]) -> Case:
        """One case with some of its fields.

        Args:
            case_id: The case.
            fields: Names of fields.

        Raises:
            StoreError: If it can't be read.
        """
        reader, number = self._stored[case_id]
        return reader.read(number, [FIELDS[name] for name in fields])


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far a prediction of one column of one case is from the truth.

    Attributes:
        case_id: The case.
        column: The predicted column.
        relative_l2: ‖prediction - truth‖ / ‖truth‖; None where the truth is zero but for the solver's rounding.
        mean_error: Mean of the absolute error, in the unit of the column.
        max_error: Largest absolute error.
    """

    case_id: str
    column: str
    relative_l2: float | None
    mean_error: float
    max_error: float


def judge_predictions(cases: KeptCases, predictions: PredictionFile) -> list[Deviation]:
    """Errors of every predicted case that the data set holds, the largest relative error first.

    Args:
        cases: The data set.
        predictions: What a model says.

    Raises:
        StoreError: If a case or its prediction can't be read.
    """
    found = []
    kept = [record for record in cases.manifest.records if record.placement is not None]
    floors = {
        column: NEGLIGIBLE * total(record.statistics[column] for record in kept if column in record.statistics).std
        for column in predictions.columns
    }
    for record in kept:
        if record.case_id not in predictions.case_ids or record.measures is None:
            continue
        case = cases.read(record.case_id, fields_of(predictions.columns))
        for column, predicted in predictions.read(record.case_id, case.num_points).items():
            truth = column_of(case, column).astype(np.float64)
            error = predicted.astype(np.float64) - truth
            norm = float(np.linalg.norm(truth))
            is_known = norm > floors[column] * np.sqrt(len(truth))
            relative = float(np.linalg.norm(error)) / norm if is_known else None
            distances = np.abs(error)
            found.append(Deviation(record.case_id, column, relative, float(distances.mean()), float(distances.max())))
    return sorted(found, key=lambda e: (-np.inf if e.relative_l2 is None else -e.relative_l2, e.case_id, e.column))


def _by_hash(case_id: str) -> bytes:
    return hashlib.sha256(case_id.encode("utf-8", "surrogatepass")).digest()


def choose_cases(records: Sequence[CaseRecord], most: int, errors: Sequence[Deviation] = ()) -> list[str]:
    """Ids of the cases that are shown, the most telling ones first.

    A third of the gallery goes to the parts with the least recoater clearance, or to those with the largest errors of
    prediction; the others go by a hash of the id, predicted cases before those that aren't.

    Args:
        records: Rows of the manifest.
        most: How many may be shown.
        errors: Errors of prediction, the largest first.
    """
    kept = [r for r in records if r.placement is not None and r.measures is not None]
    predicted = dict.fromkeys(error.case_id for error in errors)
    if predicted:
        first = list(predicted)
    else:
        by_clearance = sorted(kept, key=lambda r: (r.measures.recoater_clearance_min if r.measures else 0, r.case_id))
        first = [record.case_id for record in by_clearance]
    if len(kept) > most:
        first = first[: max(1, most // 3)]
    rest = sorted((r.case_id for r in kept), key=lambda case_id: (case_id not in predicted, _by_hash(case_id)))
    return list(dict.fromkeys([*first, *rest]))[:most]


def choose_for_mosaic(case_ids: Iterable[str], most: int = 12) -> list[str]:
    """Some of the shown cases for one picture of all kinds of parts.

    Args:
        case_ids: Cases that are shown.
        most: How many.
    """
    return sorted(case_ids, key=_by_hash)[:most]


@dataclass(frozen=True)
class GalleryPart:
    """One part as the report shows it.

    Attributes:
        case_id: The case.
        surface: Its surface with fields, as `encode_surface` writes it.
        still: A picture of it as WebP; None where none could be drawn.
        pixels: The picture itself, for those that were asked for.
    """

    case_id: str
    surface: bytes
    still: bytes | None
    pixels: Pixels | None = None


def _columns_of_surface(
    case: Case, surface: MeshSurface, fields: Sequence[ShownField], predicted: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.floating[Any]]]:
    """Columns at the points of the surface; errors of prediction under the name of their column with " error"."""
    numbers = surface.point_numbers
    columns: dict[str, NDArray[np.floating[Any]]] = {f.column: column_of(case, f.column)[numbers] for f in fields}
    for column, values in predicted.items():
        truth = column_of(case, column)[numbers].astype(np.float64)
        columns[f"{column} error"] = values[numbers].astype(np.float64) - truth
    return columns


def make_gallery_parts(
    cases: KeptCases,
    case_ids: Sequence[str],
    fields: Sequence[ShownField],
    renderer: PartRenderer,
    *,
    predictions: PredictionFile | None = None,
    with_pixels: Sequence[str] = (),
) -> Iterator[GalleryPart]:
    """Make the gallery's parts one by one, in the order of their ids; pictures are drawn meanwhile by another process.

    Args:
        cases: The data set.
        case_ids: Which.
        fields: Columns to show.
        renderer: What draws the pictures.
        predictions: What a model says of some of them.
        with_pixels: Ids whose picture is wanted as it is, too.
    """
    started: deque[tuple[str, bytes, Future[Pixels] | None]] = deque()

    def finish() -> GalleryPart:
        case_id, data, future = started.popleft()
        pixels = renderer.finish(future)
        still = None if pixels is None else encode_still(pixels)
        return GalleryPart(case_id, data, still, pixels if case_id in with_pixels else None)

    for case_id in case_ids:
        case = cases.read(case_id, fields_of(field.column for field in fields))
        surface = extract_surface(case.points, case.cells)
        known = predictions is not None and case_id in predictions.case_ids
        predicted = predictions.read(case_id, case.num_points) if predictions is not None and known else {}
        columns = _columns_of_surface(case, surface, fields, predicted)
        points = case.points[surface.point_numbers]
        coloured = next((columns[f.column] for f in fields if f.signed), np.zeros(len(points)))
        drawing = Drawing(points, surface.faces, coloured)
        started.append((case_id, encode_surface(points, surface.faces, columns), renderer.start(drawing)))
        if len(started) > _MAX_IN_FLIGHT:
            yield finish()
    while started:
        yield finish()
