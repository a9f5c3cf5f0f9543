"""Charts that no test examines are not drawn: matplotlib takes longer for them than most tests train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lpbf_data.durable import write_durably

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@pytest.fixture(scope="package", autouse=True)
def original_save(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Charts are composed, but one small picture is saved for each; yields the function that draws and saves them.

    Where slow tests alone run, charts are drawn.
    """
    import io

    from matplotlib.figure import Figure

    from flare_model import plots

    if request.config.option.markexpr == "slow":
        yield plots._save
        return
    picture = io.BytesIO()
    Figure((0.1, 0.1)).savefig(picture, format="png")
    drawn = plots._save

    def save(figure: Figure, path: Path) -> None:
        write_durably(path, picture.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", save)
        yield drawn


@pytest.fixture
def drawn_charts(original_save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are drawn, for tests that examine them, and where drawing might fail because of the numbers."""
    from flare_model import plots

    monkeypatch.setattr(plots, "_save", original_save)
