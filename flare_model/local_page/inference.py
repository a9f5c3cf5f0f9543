"""Computations of the page: the same answers as `lpbf-predict`, and the compensated STL."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flare_model.decision.answer import Answer, Auxiliary, answer_of, answers_as_dict
from flare_model.decision.answer_text import answer_facts, verdict_counts_line
from flare_model.decision.page import shown_part
from flare_model.decision.prediction import predict_part
from flare_model.prediction.file_names import FileNames
from flare_model.prediction.part import Meshing, Part, Unreadable
from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.geometry.surface_formats import SURFACE_SUFFIXES
from lpbf_data.remarks import Remark, merge_remarks

if TYPE_CHECKING:
    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.decision.compensated_file import CompensatedFile

_MAX_SHOWN: Final = 50
"""Most bodies of a file that the page shows in 3D, since the browser holds them all in memory."""


@dataclass
class _Results:
    """Results for the parts of a file."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    remarks: dict[str, tuple[Remark, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class InferenceService:
    """A model, with its auxiliary data, that answers for files.

    Attributes:
        surrogate: The model.
        auxiliary: Intervals, risk model, training shapes and material scale.
        points: Points that a surface is meshed with by default.
        model: Digests that identify the model: `identity_of`.
    """

    surrogate: Surrogate
    auxiliary: Auxiliary
    points: int
    model: Mapping[str, Any]

    def answer(self, path: Path, meshing: Meshing) -> dict[str, Any]:
        """The answers for a file's parts, as JSON for the page.

        Args:
            path: The file.
            meshing: How surfaces become meshes.

        Raises:
            LpbfError: If no part of it can be predicted on.
        """
        from flare_model.prediction.parts import read_parts

        results, names = _Results(), FileNames()
        for part in read_parts(path, meshing):
            file = names.name(part.name)
            if part.remarks:
                results.remarks[file] = part.remarks
            try:
                self._predict(part, file, results)
            except LpbfError as error:
                results.errors.append(str(error))
        if not results.parts:
            raise UsageError("; ".join(results.errors))
        answers = [*results.answers.values()]
        return {
            "parts": results.parts,
            "closing": verdict_counts_line(answers)
            if len(answers) > 1 and any(answer.hit for answer in answers)
            else "",
            "warnings": [*results.warnings, *self.auxiliary.model_doubts],
            "errors": results.errors,
            "notes": notes_of([one for remarks in results.remarks.values() for one in remarks]),
            "answers": answers_as_dict(
                self.model, results.answers, results.remarks, {}, results.errors, self.auxiliary.model_doubts
            ),
        }

    def _predict(self, part: Part | Unreadable, file: str, results: _Results) -> None:
        if isinstance(part, Unreadable):
            raise part.error
        prediction = predict_part(self.surrogate, part, self.auxiliary.intervals, self.auxiliary.material_scale)
        answer = answer_of(prediction, self.auxiliary, self.surrogate.usage.materials)
        results.answers[file] = answer
        if warning := prediction.envelope_warning():
            results.warnings.append(warning)
        surface = None
        if len(results.parts) < _MAX_SHOWN:
            surface = base64.b64encode(shown_part(prediction, answer).surface).decode()
        verdict = answer.hit.verdict if answer.hit else ""
        results.parts.append({"name": part.name, "facts": answer_facts(answer), "verdict": verdict, "surface": surface})

    def compensate(self, path: Path, meshing: Meshing, scale: float, *, anyway: bool = False) -> CompensatedFile:
        """The displaced surfaces of a file.

        Args:
            path: The file.
            meshing: How surfaces become meshes.
            scale: Factor of the displacement that is added.
            anyway: Whether to displace also where the mesh misses parts of a body, or it doesn't fit the build volume.

        Raises:
            LpbfError: If it holds no surfaces, or can't be displaced.
        """
        from flare_model.decision.compensated_file import compensate_file

        if path.suffix.lower() not in SURFACE_SUFFIXES:
            raise UsageError(f"{path.name}: surfaces are displaced, from {', '.join(SURFACE_SUFFIXES)} files")
        return compensate_file(self.surrogate, self.auxiliary, path, meshing, scale, anyway=anyway)

    def can_compensate(self) -> bool:
        """Whether the model predicts all three displacements."""
        from flare_model.decision.compensated_file import check_targets

        with contextlib.suppress(UsageError):
            check_targets(self.surrogate)
            return True
        return False


def notes_of(remarks: Sequence[Remark]) -> list[str]:
    """Remarks on what was left out, changed, guessed or repaired, one line for each kind, as on the screen."""
    return [remark.with_count for remark in merge_remarks(remarks)]
