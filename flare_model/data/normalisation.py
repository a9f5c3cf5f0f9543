"""Normalisation between physical units and the numbers of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Normalisation:
    """Scales and shifts between physical units and the numbers of a model.

    Attributes:
        point_scale: Points are divided by it, [d]; mm for printed parts.
        target_mean: Mean of each target over the training points.
        target_std: Standard deviation of the same.
        feature_mean: Mean of each feature over the training points.
        feature_std: Standard deviation of the same.
        point_shift: Subtracted from points before they are divided, [d]; empty for no shift, as with printed parts.
    """

    point_scale: tuple[float, ...] = (30.0, 30.0, 60.0)
    target_mean: tuple[float, ...] = (0.0,)
    target_std: tuple[float, ...] = (1.0,)
    feature_mean: tuple[float, ...] = ()
    feature_std: tuple[float, ...] = ()
    point_shift: tuple[float, ...] = ()
