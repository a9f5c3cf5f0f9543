"""`python -m flare_model.predict part.stl`: whether the recoater hits a part, and how far the part warps.

For each part a VTU file for ParaView and pictures are written, and for all of them one page and one JSON file. Where
the truth is known, it is shown beside the prediction with the error.
"""

from __future__ import annotations

import itertools
import json as json_format
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flare_model.data.point_fields import resolve_inputs, resolve_target
from flare_model.decision.prediction import Prediction, predict_part, write_results, write_vtu
from flare_model.decision.result_files import (
    ANSWERS_NAME,
    WrittenFiles,
    describe_others,
    extremes_of,
    write_extremes,
    write_remarks,
)
from flare_model.prediction.file_names import FileNames
from flare_model.prediction.part_files import fault_of, names_of, part_files
from lpbf_data.command_line import run
from lpbf_data.console import PATIENCE, ProgressLines, open_console, print_remarks, say, say_while_waiting
from lpbf_data.durable import check_writable, write_durably
from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.geometry.surface_formats import UNIT_SPELLINGS, Units
from lpbf_data.remarks import Remark, Treatment

if TYPE_CHECKING:
    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.decision.answer import Answer, Auxiliary
    from flare_model.prediction.parts import Meshing, Part, Unreadable
    from lpbf_data.viewer.page import ShownPart

__all__ = ["Prediction", "main", "predict", "predict_part", "write_vtu"]

PAGE_NAME: Final = "answer.html"
_MAX_SHOWN: Final = 50
"""Most parts on the page, since the browser holds them all in memory."""

_MAX_IN_FULL: Final = 10
"""Parts whose answer is printed in full; further ones get one line each. The files hold all answers in full."""

_HIT, _UNSURE = 3, 4


def predict(
    checkpoint: str | None = None,
    src: list[str] = [],  # noqa: B006 (read only; shown as the default in the help)
    *,
    out: str = "predictions",
    split: str = "test",
    case: list[str] = [],  # noqa: B006
    points: int | None = None,
    centre: bool = False,
    units: Units | None = None,
    material: str | None = None,
    orientations: int = 0,
    pictures: bool = True,
    json: bool = False,
    fail_on_risk: bool = False,
    trust: str | None = None,
    accelerator: str = "auto",
) -> int:
    """Predict whether the recoater hits parts, how far they warp, and how certain both are.

    Args:
        checkpoint: Folder of a run or checkpoint, or an id on the Hugging Face hub; the model that comes with the
            package where none is named.
        src: Closed surfaces (STL and others), hexahedral meshes (VTU and others), folders of simulation results,
            folders of any of these; or data sets: folders, URLs, or ids on the Hugging Face hub.
        out: Folder of the results: a VTU file a part and a picture a target, answers.json, and a page, answer.html.
        split: Which split of a data set.
        case: Ids of the cases of a data set to predict on; all of the split by default.
        points: Points that a surface is meshed with; by default the median of the parts that the model was trained on,
            and up to four times as many where that mesh isn't quite the part.
        centre: Move the middle of a surface to x = y = 0; its lowest point is put on the build plate in any case, and
            what lies out of the build volume is moved where it fits then.
        units: Unit of lengths in files of surfaces; by default the one that a file states (3MF), else mm. Meshes are
            in mm.
        material: Material and calibration of your machine: a YAML file as pipelines.calibrate writes it, a material
            (Ti64, Inc625, SS316L, 15-5PH, AlSi10Mg), or a calibration (measured, netfabb). Predictions are multiplied
            by a scale from its strain and thermal expansion over those of the training. That is rough; the error
            is printed: about 10 % for another material, 25 % for half as much strain again, 40 % for netfabb, in the
            median of unseen parts. By default those of the training, not calibrated to your machine.
        orientations: Rank so many orientations of each surface by risk and displacement; predict the best three again
            with all points.
        pictures: Draw every part, and make the page; "--pictures no" (or false) does neither, which takes less time.
        json: Print the answers as JSON instead of sentences.
        fail_on_risk: End with status 3 where the recoater hits a part, else 4 where the verdict is "can't tell".
        trust: Class path of a model outside of this package that may be imported.
        accelerator: auto, cpu or gpu.

    Returns:
        Exit status: 0; 1 when a part could not be predicted on; 3 and 4 as `fail_on_risk` says.
    """
    from flare_model.prediction.part import Meshing, check_points

    check_points(points)
    if orientations < 0:
        raise UsageError(f"--orientations must not be negative, but is {orientations}")
    if not src:
        raise UsageError("nothing to predict on: name a part, such as part.stl")
    check_folder(Path(out))
    checked = [(source, fault_of(source)) for source in src]
    sources, faults = [source for source, fault in checked if not fault], [fault for _, fault in checked if fault]
    for fault in faults:
        say(f"error: {fault}")
    if not sources and not json:
        return 1
    from flare_model.checkpoints.packaged_model import packaged_checkpoint
    from flare_model.checkpoints.surrogate import from_pretrained
    from flare_model.decision.answer import identity_of
    from flare_model.decision.auxiliary import read_auxiliary
    from flare_model.training.devices import device_of

    checkpoint = checkpoint or packaged_checkpoint()
    surrogate = from_pretrained(checkpoint, trust=trust).to(device_of(accelerator))
    auxiliary, doubts = read_auxiliary(checkpoint, surrogate, material)
    work = _PredictionRun(
        surrogate, auxiliary, Path(out), pictures, orientations, json, identity_of(surrogate, checkpoint), errors=faults
    )
    for doubt in doubts:
        work.errors_console.print(f"warning: {doubt}", style=None)
    meshing = Meshing(points or default_points(surrogate), centre, units, refined=points is None)
    needed = {resolve_target(name).field for name in surrogate.usage.targets}
    needed |= {
        feature.field
        for feature in resolve_inputs(surrogate.usage.features, "the checkpoint")
        if not feature.is_shape_feature
    }
    work.predict_all(sources, split, case, needed, meshing)
    status = work.close()
    if json:
        print(json_format.dumps(work.content(), indent=1))
    return work.risk_status() or status if fail_on_risk and not status else status


@dataclass
class _PredictionRun:
    """Prediction on parts one after the other, and the results for all of them.

    Attributes:
        surrogate: The model.
        auxiliary: Intervals, risk model, training shapes and material scale.
        out: Folder of the results.
        pictures: Whether to draw parts and to make the page.
        orientations: Orientations to try for each surface.
        quiet: Whether no answers are printed as text.
        model: Digests that identify the model.
    """

    surrogate: Surrogate
    auxiliary: Auxiliary
    out: Path
    pictures: bool
    orientations: int
    quiet: bool
    model: Mapping[str, Any]
    names: FileNames = field(default_factory=FileNames)
    done: int = 0
    errors: list[str] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    turned: dict[str, Any] = field(default_factory=dict)
    remarks: dict[str, tuple[Remark, ...]] = field(default_factory=dict)
    extremes: dict[str, dict[str, dict[str, float | str]]] = field(default_factory=dict)
    shown: list[ShownPart] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.console, self.errors_console = open_console(), open_console(stderr=True)
        self.written = WrittenFiles(self.out)
        self.part_names: set[str] = set()
        self.files: set[str] = set()
        self.listed: dict[str, list[int]] = {}
        self.sources: list[Path] = []

    def predict_all(
        self, sources: Sequence[str], split: str, cases: Sequence[str], fields: Collection[str], meshing: Meshing
    ) -> None:
        """Predict on the parts of several sources, one after the other, with progress where that takes seconds."""
        files = [part_files(source) for source in sources]
        self.sources = [*itertools.chain(*files)]
        self._spare_sources()
        total = len(self.sources) if all(files) else None
        parts = _parts(sources, split, cases, fields, meshing, names_of(self.sources))
        with ProgressLines(total, 0, "predictions", "part", shown=True, after=PATIENCE) as progress:
            while True:
                with say_while_waiting("reading the next part, and meshing it where it is a surface"):
                    part = next(parts, None)
                if part is None:
                    return
                self.predict_one(part)
                if _ends_its_file(part) and (total is None or progress.done < total):
                    progress.update()

    def _spare_sources(self) -> None:
        """Keep the names of meshes in `--out` that are predicted on from being taken for predictions."""
        for path in self.sources:
            if path.suffix.lower() == ".vtu" and path.resolve().parent == self.out.resolve():
                self.names.name(path.stem)
                self.errors_console.print(f"note: {path} stays: its prediction gets another name", style=None)

    def predict_one(self, part: Part | Unreadable) -> None:
        """Predict on one part, write and print the results, or the error."""
        from flare_model.prediction.parts import Unreadable

        file = self.names.name(part.name)  # parts of one name, from different files, have files of their own
        self.files.add(file)
        if part.name in self.part_names:  # a file that is named twice, or a case of two data sets
            part = replace(part, name=file)
        self.part_names.add(part.name)
        if part.remarks:
            self.remarks[file] = part.remarks
        try:
            if isinstance(part, Unreadable):
                raise part.error
            with say_while_waiting(f"{part.name}: predicting on {len(part.points):,} points"):
                prediction = predict_part(self.surrogate, part, self.auxiliary.intervals, self.auxiliary.material_scale)
            if self.auxiliary.material_scale is not None and part.fields:
                self.remarks[file] = (*self.remarks.get(file, ()), _truth_left_out(part.name))
            answer = self._answer(prediction, file)  # before pictures are drawn, which takes longer
            with say_while_waiting(f"{part.name}: writing and drawing {len(part.points):,} points"):
                write_results(self.out, file, prediction, pictures=self.pictures)
            self._keep(prediction, answer, file)
            if self.orientations and part.origin is not None:
                self._turn(part, file)
        except LpbfError as error:
            self.errors_console.print(f"error: {error}", style=None)
            self.errors.append(str(error))
        else:
            self.done += 1

    def _answer(self, prediction: Prediction, file: str) -> Answer:
        """Make the answer for a part, and print it."""
        from flare_model.decision.answer import answer_of
        from flare_model.decision.answer_text import answer_line, answer_lines
        from flare_model.decision.prediction_text import prediction_line, prediction_warnings

        answer = answer_of(prediction, self.auxiliary, self.surrogate.usage.materials)
        if not self.quiet:
            if prediction.truth or answer.up is None:
                self.console.print(prediction_line(prediction, file))
            else:
                in_full = self.done < _MAX_IN_FULL
                for line in answer_lines(answer) if in_full else (answer_line(answer),):
                    self.console.print(line)
        for warning in prediction_warnings(prediction):
            self.errors_console.print(f"warning: {warning}", style=None)
        return answer

    def _keep(self, prediction: Prediction, answer: Answer, file: str) -> None:
        """Collect a part's answer for the files on all parts."""
        if self.auxiliary.intervals:
            self.extremes |= {file: extremes_of(prediction)}
        self.answers[file] = answer
        if self.pictures and len(self.shown) < _MAX_SHOWN:
            from flare_model.decision.page import shown_part

            self.shown.append(shown_part(prediction, answer))

    def _turn(self, part: Part, file: str) -> None:
        from flare_model.decision.orientation import rank_orientations
        from flare_model.decision.orientation_results import print_orientations, ranking_facts, write_orientations

        ranked = rank_orientations(self.surrogate, self.auxiliary, part, self.orientations)
        self.turned[file] = write_orientations(self.out, file, ranked, pictures=self.pictures)
        if self.shown and self.shown[-1].name == part.name:
            shown = self.shown.pop()
            self.shown.append(replace(shown, facts=(*shown.facts, *ranking_facts(ranked))))
        if not self.quiet:
            print_orientations(ranked, self.console)

    def content(self) -> dict[str, Any]:
        """All answers as JSON takes them."""
        from flare_model.decision.answer import answers_as_dict

        found = answers_as_dict(
            self.model, self.answers, self.remarks, self.turned, self.errors, self.auxiliary.model_doubts
        )
        return found | {"files": self.listed}

    def close(self) -> int:
        """Write the files on all parts, print the closing lines, and return the exit status."""
        from flare_model.decision.answer_text import verdict_counts_line

        if self.done:
            write_extremes(self.out, self.auxiliary, self.extremes)
            write_remarks(self.out, self.remarks)
            self.listed = self.written.listed(self.files)
            data = json_format.dumps(self.content(), indent=1) + "\n"
            write_durably(self.out / ANSWERS_NAME, data.encode())
            self._write_page()
            if not self.quiet:
                if len(self.answers) > 1 and any(answer.hit for answer in self.answers.values()):
                    self.console.print(verdict_counts_line([*self.answers.values()]))
                page = f"; to turn and cut the parts, open {self.out / PAGE_NAME}" if self.shown else ""
                self.console.print(f"predictions in {self.out}{page}")
            for doubt in self.auxiliary.model_doubts:
                self.errors_console.print(f"warning: {doubt}", style=None)
            removed, stuck = self.written.remove_stale(self.files, self.sources)
            for sentence in (*stuck, *describe_others(self.out, removed, self.written.new())):
                self.errors_console.print(f"note: {sentence}", style=None)
        print_remarks((one for found in self.remarks.values() for one in found), self.errors_console)
        failed = len(self.errors)
        if failed and self.done + failed > 1:
            self.errors_console.print(f"{self.done} of {self.done + failed} parts are predicted", style=None)
        return 1 if failed else 0

    def _write_page(self) -> None:
        path = self.out / PAGE_NAME
        page = None
        if self.shown:
            from flare_model.decision.page import render_answers

            sure = bool(self.auxiliary.intervals)
            page = render_answers("Predictions", self.shown, self.surrogate.usage.targets, with_intervals=sure)
        if page is None:
            path.unlink(missing_ok=True)  # that of an earlier run
            return
        write_durably(path, page)
        if len(self.shown) < len(self.answers) and not self.quiet:
            self.console.print(f"{path} shows the first {len(self.shown)} of {len(self.answers)} parts")

    def risk_status(self) -> int:
        """3 where a part is hit, 4 where a verdict is "can't tell", else 0."""
        said = {answer.hit.verdict if answer.hit else "can't tell" for answer in self.answers.values()}
        if "yes" in said:
            return _HIT
        return _UNSURE if "can't tell" in said else 0


def check_folder(out: Path) -> None:
    """Refuse a folder that can't be written to, before anything is computed.

    Args:
        out: The folder; it may not exist yet.

    Raises:
        UsageError: If it is no folder, or can't be made or written to.
    """
    try:
        check_writable(out / ANSWERS_NAME)
    except UsageError as error:
        raise UsageError(f"--out {out} can't be written to: {error}") from error


def _truth_left_out(name: str) -> Remark:
    """Remark that the part's own results are left out where predictions are for another material."""
    sentence = "results that came with a part aren't those of the --material of the predictions, and aren't shown"
    return Remark(Treatment.LEFT_OUT, "truth_of_another_material", sentence, 1, (name,))


def default_points(surrogate: Surrogate) -> int:
    """Median number of points of the training parts."""
    from flare_model.prediction.parts import Meshing

    envelope = surrogate.usage.envelope
    return round((envelope.num_points_median if envelope else None) or Meshing.num_points)


def _parts(
    sources: Sequence[str],
    split: str,
    cases: Sequence[str],
    fields: Collection[str],
    meshing: Meshing,
    names: Mapping[Path, str],
) -> Iterator[Part | Unreadable]:
    """The parts of several sources; a source that can't be opened is yielded as an unreadable part."""
    from flare_model.prediction.parts import Unreadable, find_parts

    for source in sources:
        try:
            yield from find_parts(source, split=split, cases=cases, fields=fields, meshing=meshing, names=names)
        except LpbfError as error:
            yield Unreadable(source, error)


def _ends_its_file(part: Part | Unreadable) -> bool:
    origin = getattr(part, "origin", None)
    return origin is None or origin.body == origin.bodies


def main() -> None:
    """Entry point of `lpbf-predict`."""
    run(predict, "python -m flare_model.predict", positional=("src",), spellings={"units": UNIT_SPELLINGS})


if __name__ == "__main__":
    main()
