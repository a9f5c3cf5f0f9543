"""What the page computes of a file: the answers in the words and numbers of `lpbf-predict`, and the STL to print."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flare_model.decision.answer import Answer, Beside, answer_of, answers_as_dict
from flare_model.decision.page import shown_part
from flare_model.decision.prediction import predict_part
from flare_model.decision.screen import closing_of, facts_of
from flare_model.prediction.file_names import FileNames
from flare_model.prediction.part import Meshing, Part, Unreadable
from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.geometry.surface_formats import SURFACE_SUFFIXES
from lpbf_data.remarks import Remark, merge_remarks

if TYPE_CHECKING:
    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.decision.compensated_file import CompensatedFile

_MOST_SHOWN: Final = 50
"""Bodies of a file that can be turned: a browser holds them all."""


@dataclass
class _Found:
    """What was found of the parts of a file."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    remarks: dict[str, tuple[Remark, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Computing:
    """A model, and what is used with it.

    Attributes:
        surrogate: The model.
        beside: What lies beside its weights, and the scale of another material than that of its training.
        points: Points that a surface is meshed with where nothing else is asked for.
        model: What names the model: `identity_of`.
    """

    surrogate: Surrogate
    beside: Beside
    points: int
    model: Mapping[str, Any]

    def answer(self, path: Path, meshing: Meshing) -> dict[str, Any]:
        """The answers of a file's parts, as the page takes them.

        Args:
            path: The file.
            meshing: How surfaces become meshes.

        Raises:
            LpbfError: If no part of it can be predicted on.
        """
        from flare_model.prediction.parts import read_parts

        found, names = _Found(), FileNames()
        for part in read_parts(path, meshing):
            file = names.name(part.name)
            if part.remarks:
                found.remarks[file] = part.remarks
            try:
                self._take(part, file, found)
            except LpbfError as error:
                found.errors.append(str(error))
        if not found.parts:
            raise UsageError("; ".join(found.errors))
        told = [*found.answers.values()]
        return {
            "parts": found.parts,
            "closing": closing_of(told) if len(told) > 1 and any(answer.hit for answer in told) else "",
            "warnings": found.warnings,
            "errors": found.errors,
            "notes": notes_of([one for remarks in found.remarks.values() for one in remarks]),
            "answers": answers_as_dict(self.model, found.answers, found.remarks, {}, found.errors),
        }

    def _take(self, part: Part | Unreadable, file: str, found: _Found) -> None:
        if isinstance(part, Unreadable):
            raise part.error
        prediction = predict_part(self.surrogate, part, self.beside.intervals, self.beside.scale)
        envelope = self.surrogate.usage.envelope
        answer = answer_of(prediction, self.beside, envelope.materials if envelope else ())
        found.answers[file] = answer
        if prediction.warnings:
            reasons = "; ".join(prediction.warnings)
            found.warnings.append(f"{part.name} is unlike the parts that the model was trained on: {reasons}")
        surface = None
        if len(found.parts) < _MOST_SHOWN:
            surface = base64.b64encode(shown_part(prediction, answer).surface).decode()
        verdict = answer.hit.verdict if answer.hit else ""
        found.parts.append({"name": part.name, "facts": facts_of(answer), "verdict": verdict, "surface": surface})

    def compensate(self, path: Path, meshing: Meshing, scale: float, *, anyway: bool = False) -> CompensatedFile:
        """The displaced surfaces of a file.

        Args:
            path: The file.
            meshing: How surfaces become meshes.
            scale: How many times the displacement is added.
            anyway: Whether to displace where the mesh isn't the part, or the part doesn't fit the build volume.

        Raises:
            LpbfError: If it holds no surfaces, or can't be displaced.
        """
        from flare_model.decision.compensated_file import compensate_file

        if path.suffix.lower() not in SURFACE_SUFFIXES:
            raise UsageError(f"{path.name}: surfaces are displaced, from {', '.join(SURFACE_SUFFIXES)} files")
        beside = self.beside
        return compensate_file(self.surrogate, beside.intervals, path, meshing, scale, beside.scale, anyway=anyway)

    def can_compensate(self) -> bool:
        """Whether the model predicts all three displacements."""
        from flare_model.decision.compensated_file import check_targets

        with contextlib.suppress(UsageError):
            check_targets(self.surrogate)
            return True
        return False


def notes_of(remarks: Sequence[Remark]) -> list[str]:
    """What was left out, changed, guessed or repaired, a sentence a kind, as the screen has it."""
    return [f"{remark.count:,} {remark}" for remark in merge_remarks(remarks)]
