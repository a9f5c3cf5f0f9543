"""Checks that every model's configuration shares."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from lpbf_data.errors import UsageError

_LARGEST: Final = 1 << 20
_DEEPEST: Final = 1 << 10
"""No size of a model is larger, no model deeper; a checkpoint that says so is damaged or hostile."""

_WIDEST: Final = 10.0


def check_sizes(config: Any, names: Collection[str] = ()) -> None:
    """Refuse sizes that no model can have.

    Args:
        config: A dataclass of whole numbers with `channels` and `num_heads` among them; names that end in "_layers"
            may be 0. Names that end in "_deviation" are numbers above 0.
        names: Fields that are no sizes.

    Raises:
        UsageError: If one is out of range, or the heads don't divide the channels.
    """
    for name, value in vars(config).items():
        if name in names:
            continue
        if name.endswith("_deviation"):
            if not (isinstance(value, float) and 0 < value < _WIDEST):
                raise UsageError(f"the model's {name} must be a number above 0 and below {_WIDEST:g}, not {value!r}")
            continue
        least = 0 if name.endswith("_layers") else 1
        most = _DEEPEST if name.endswith(("_layers", "_blocks")) else _LARGEST
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"the model's {name} must be a whole number from {least} to {most}, not {value!r}")
    if config.channels % config.num_heads:
        raise UsageError(
            f"the model's channels ({config.channels}) must be a multiple of its heads ({config.num_heads})"
        )
