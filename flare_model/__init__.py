"""FLARE and its training.

    >>> from flare_model import Flare, FlareConfig
    >>> model = Flare(FlareConfig(in_dim=3, out_dim=1, channels=64, num_blocks=8, num_heads=8, num_latents=128))
    >>> sum(parameter.numel() for parameter in model.parameters())
    625473

torch is loaded with the first use of a name, not with the package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from flare_model.checkpoints.spec import ModelSpec
    from flare_model.checkpoints.surrogate import Surrogate, from_pretrained
    from flare_model.models.flare import Flare
    from flare_model.models.flare_plus_plus import FlarePlusPlus
    from flare_model.models.gnot import GNOT
    from flare_model.models.grid_transolver import GridTransolver
    from flare_model.models.lno import LNO
    from flare_model.models.perceiver import PerceiverIO
    from flare_model.models.transformer import Transformer
    from flare_model.models.transolver import Transolver
    from flare_model.sizes import (
        FlareConfig,
        FlarePlusPlusConfig,
        GNOTConfig,
        GridTransolverConfig,
        LNOConfig,
        PerceiverConfig,
        TransformerConfig,
        TransolverConfig,
    )

__all__ = [
    "GNOT",
    "LNO",
    "Flare",
    "FlareConfig",
    "FlarePlusPlus",
    "FlarePlusPlusConfig",
    "GNOTConfig",
    "GridTransolver",
    "GridTransolverConfig",
    "LNOConfig",
    "ModelSpec",
    "PerceiverConfig",
    "PerceiverIO",
    "Surrogate",
    "Transformer",
    "TransformerConfig",
    "Transolver",
    "TransolverConfig",
    "from_pretrained",
]

_HOME: Final = {
    "Flare": "models.flare",
    "FlareConfig": "sizes",
    "FlarePlusPlus": "models.flare_plus_plus",
    "FlarePlusPlusConfig": "sizes",
    "GNOT": "models.gnot",
    "GNOTConfig": "sizes",
    "GridTransolver": "models.grid_transolver",
    "GridTransolverConfig": "sizes",
    "LNO": "models.lno",
    "LNOConfig": "sizes",
    "ModelSpec": "checkpoints.spec",
    "PerceiverConfig": "sizes",
    "PerceiverIO": "models.perceiver",
    "Surrogate": "checkpoints.surrogate",
    "Transformer": "models.transformer",
    "TransformerConfig": "sizes",
    "Transolver": "models.transolver",
    "TransolverConfig": "sizes",
    "from_pretrained": "checkpoints.surrogate",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        try:
            return getattr(importlib.import_module(f"flare_model.{_HOME[name]}"), name)
        except ModuleNotFoundError as error:
            from lpbf_data.extras import MODULES_OF_EXTRAS, how_to_install

            if error.name is None or error.name.partition(".")[0] not in MODULES_OF_EXTRAS["model"]:
                raise
            raise ImportError(
                f"flare_model.{name} needs {error.name}, which isn't installed: {how_to_install('model')}",
                name=error.name,
            ) from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
