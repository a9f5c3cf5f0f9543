"""The risk model of a checkpoint: the chance of a hit from a part's hit score, and the verdict from that chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from flare_model.data.auxiliary_file import AuxiliaryFile
from flare_model.judging.interference import RISK_TARGETS, HitScore
from flare_model.judging.risk_curves import LogisticCurve, arrays_of
from lpbf_data.case.schema import DEFAULT_TOLERANCE

RISK_NAME: Final = "risk.json"
RISK_VERSION: Final = 1
_FILE: Final = AuxiliaryFile(
    RISK_NAME,
    "risk_version",
    RISK_VERSION,
    ("doesn't hold the risk of a checkpoint", "remove it, or judge the checkpoint again"),
)

VERDICT_CHANCE: Final = 0.9
"""The verdict is "yes" where a hit is at least this likely, "no" where no hit is, and "can't tell" in between."""

Verdict = Literal["yes", "no", "can't tell"]


@dataclass(frozen=True)
class RiskModel:
    """Chance of a hit from the score of a part, as stored in `risk.json`.

    Attributes:
        target: What the score is taken from, one of RISK_TARGETS.
        curve: The logistic curve.
        parts: Parts that it was fitted to.
        hits: How many of them were hit.
        tolerance: Clearance below which those were hits, percent of a layer.
        weights_sha256: SHA-256 of the file of weights that their scores were computed with.
    """

    target: str
    curve: LogisticCurve
    parts: int
    hits: int
    tolerance: float = DEFAULT_TOLERANCE
    weights_sha256: str = ""

    @classmethod
    def of(cls, target: str, hit_scores: Sequence[HitScore]) -> RiskModel | None:
        """Fit to parts of which the truth may be used; None without both hits and clear parts."""
        hits = sum(each.hit for each in hit_scores)
        if hits in (0, len(hit_scores)):
            return None
        return cls(target, LogisticCurve.of(hit_scores), len(hit_scores), hits)

    def chance(self, score: float, spread: float = 0.0) -> float:
        """Chance of a hit.

        Args:
            score: Score of the part.
            spread: Standard deviation of an additional error of the score, which the parts of the fit didn't have. The
                chance is then the mean of the curve over a normal distribution, by MacKay's approximation (1992).
        """
        if spread:
            steepness = self.curve.slope / self.curve.spread * spread
            flat = 1.0 / math.sqrt(1.0 + math.pi * steepness**2 / 8.0)
            curve = replace(self.curve, intercept=flat * self.curve.intercept, slope=flat * self.curve.slope)
            return float(curve.chances(np.array([score]))[0])
        return float(self.curve.chances(np.array([score]))[0])


def verdict_of(chance: float) -> Verdict:
    """The verdict for a chance of a hit.

    >>> verdict_of(0.95), verdict_of(0.5), verdict_of(0.1)
    ('yes', "can't tell", 'no')
    """
    if chance >= VERDICT_CHANCE:
        return "yes"
    return "no" if chance <= 1 - VERDICT_CHANCE + 1e-12 else "can't tell"


def describe_verdicts(risk_model: RiskModel, hit_scores: Sequence[HitScore]) -> dict[str, dict[str, int]]:
    """Number of parts and of hits for each verdict.

    Args:
        risk_model: The risk model.
        hit_scores: Parts that it wasn't fitted to.
    """
    scores, hits = arrays_of(hit_scores)
    verdicts_of_parts = np.array([verdict_of(float(chance)) for chance in risk_model.curve.chances(scores)])
    verdicts: tuple[Verdict, ...] = ("yes", "no", "can't tell")
    return {
        verdict: {
            "parts": int((verdicts_of_parts == verdict).sum()),
            "hits": int(hits[verdicts_of_parts == verdict].sum()),
        }
        for verdict in verdicts
    }


def write_risk(folder: Path, risk_model: RiskModel) -> None:
    """Write the risk model into the folder of its checkpoint."""
    _FILE.write(folder, asdict(risk_model))


def risk_from(content: Mapping[str, Any]) -> RiskModel:
    """The risk model from JSON.

    Raises:
        KeyError: If something is missing.
        TypeError: If something is of another type.
        ValueError: If a number isn't finite, or the target unknown.
    """
    curve = LogisticCurve(
        **{name: float(content["curve"][name]) for name in ("centre", "spread", "intercept", "slope")}
    )
    target, tolerance = str(content["target"]), float(content["tolerance"])
    if target not in RISK_TARGETS or not all(map(math.isfinite, (*asdict(curve).values(), tolerance))):
        raise ValueError("a number that isn't finite, or an unknown target")
    if curve.spread <= 0:
        raise ValueError("a spread that isn't positive")
    counts = int(content["parts"]), int(content["hits"])
    return RiskModel(target, curve, *counts, tolerance, str(content["weights_sha256"]))


def read_risk(folder: Path) -> RiskModel | None:
    """The risk model of a checkpoint; None where it has none.

    Raises:
        SchemaError: If it can't be read.
    """
    return _FILE.read(folder, risk_from)
