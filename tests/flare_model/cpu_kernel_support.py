"""What tests of the kernels for CPUs share: which of them are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flare_model.kernels.cpu import mixing, pointwise


def record_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the kernels are asked to compute from now on."""
    seen: list[str] = []
    for module, names in ((mixing, ("mix", "encode", "decode")), (pointwise, ("network", "residual_linear"))):
        for name in names:
            original = getattr(module, name)

            def counted(*arguments: Any, original: Callable[..., Any] = original, name: str = name, **more: Any) -> Any:
                seen.append(name)
                return original(*arguments, **more)

            monkeypatch.setattr(module, name, counted)
    return seen
