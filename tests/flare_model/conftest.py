"""Charts that no test looks at are not drawn: that takes matplotlib longer than what most runs of the tests train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lpbf_data.durable import write_durably

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@pytest.fixture(scope="package", autouse=True)
def saved_unseen(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Charts are composed as ever, and then one small picture stands for each; how they are saved otherwise.

    The slow tests draw them.
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
def drawn_charts(saved_unseen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are drawn, for tests that look at them, and where numbers are such that drawing might fail."""
    from flare_model import plots

    monkeypatch.setattr(plots, "_save", saved_unseen)
