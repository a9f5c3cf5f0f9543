"""Saving, loading and sharing models: `save_pretrained`, `from_pretrained`, `push_to_hub`."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, Final, Self

from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor

from flare_model.checkpoints.files import CONFIG_NAME, WEIGHTS_NAME, Description, read_checkpoint, write_checkpoint
from flare_model.checkpoints.packaged_model import PACKAGED_NAME, is_packaged, packaged_checkpoint
from flare_model.data.intervals import INTERVALS_NAME
from flare_model.data.likeness import LIKENESS_NAME
from lpbf_data.errors import StoreError, UsageError

AUXILIARY_NAMES: Final = (INTERVALS_NAME, LIKENESS_NAME, "risk.json")
"""Auxiliary files that a checkpoint's folder may hold."""

_CARD: Final = """---
{{ card_data }}
---

# {{ title }}

{{ about }}

```python
from flare_model import {{ loader }}

model = {{ loader }}{{ method }}("{{ repo_id | default('path/or/hub-id', true) }}")
```

{{ details }}
"""


def seeds_of(checkpoint: str) -> list[str]:
    """Checkpoints that a name refers to: the name itself, or a folder for each seed where several were trained."""
    folders = sorted(Path(checkpoint).glob(f"seed-*/{CONFIG_NAME}")) if Path(checkpoint).is_dir() else []
    if folders and not (Path(checkpoint) / CONFIG_NAME).exists():
        return [str(path.parent) for path in folders]
    return [checkpoint]


def fetch_checkpoint(name: str, **download: Any) -> Path:
    """The folder that a checkpoint is read from: itself, or a snapshot of one on the Hugging Face hub.

    Args:
        name: A folder, "packaged" for the model that comes with the package, or an id on the hub.
        download: Options of `huggingface_hub.snapshot_download`.

    Raises:
        StoreError: If it is neither.
        UsageError: If it is a folder of several seeds.
    """
    seeds = seeds_of(name)
    if seeds != [name]:
        raise UsageError(f"{name} holds the runs of {len(seeds)} seeds; name one of them, such as {seeds[0]}")
    if is_packaged(name):
        return Path(packaged_checkpoint())
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME, *AUXILIARY_NAMES], **download))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise StoreError(
            f"{name} is neither a folder nor a model on the Hugging Face hub that can be reached "
            f"({str(error).splitlines()[0]}); the model that comes with the package is called {PACKAGED_NAME}"
        ) from None  # whose traceback would show three errors of the connection first


_PRINTED: Final = "laser powder bed fusion"


class Pretrained(
    PyTorchModelHubMixin,
    library_name="lpbf-flare",
    license="mit",
    tags=[_PRINTED, "surrogate"],
    model_card_template=_CARD,
):
    """A module that can be saved, loaded and shared through the Hugging Face hub; `push_to_hub` comes with it.

    The files are those of [checkpoints on disk][flare_model.checkpoints.files], on the hub too.
    """

    @abstractmethod
    def description(self) -> Description:
        """Description that is stored with the weights."""

    @abstractmethod
    def stored_weights(self) -> dict[str, Tensor]:
        """Weights to store, by name."""

    @classmethod
    @abstractmethod
    def restored(cls, weights: dict[str, Tensor], description: Description, *, folder: Path, trust: str | None) -> Self:
        """The module of a checkpoint that has been read."""

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the checkpoint; `save_pretrained` and `push_to_hub` of huggingface_hub call it."""
        write_checkpoint(save_directory, self.stored_weights(), self.description())

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any) -> str:
        """Share it on the Hugging Face hub.

        Args:
            repo_id: Where to, "user/name".
            model_card_kwargs: More words for the card.
            options: Those of `PyTorchModelHubMixin.push_to_hub`, such as `private`, `token` and `branch`.

        Returns:
            Address of the commit.
        """
        words = {"repo_id": repo_id} | (model_card_kwargs or {})  # The card says how to open it from there.
        address: str = super().push_to_hub(repo_id, model_card_kwargs=words, **options)
        return address

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that goes with the checkpoint: what it is, what it predicts, how to open it."""
        description = self.description()
        name = description.model.class_path.rpartition(".")[2]
        words = {"title": name, "about": f"A bare {name}.", "loader": name, "method": ".from_pretrained"}
        if description.usage is not None:
            targets = ", ".join(description.usage.targets)
            about = f"Predicts {targets} at the points of a part made by laser powder bed fusion; points in mm."
            if (point_schema := description.usage.point_schema) is not None:
                names = ", ".join(description.usage.features)
                from_features = f" from the features {names}" if names else ""
                coordinates = ", ".join(point_schema.coordinates)
                about = f"Predicts {targets} at points of {point_schema.name} ({coordinates}){from_features}."
            words |= {"about": about, "loader": "from_pretrained", "method": ""}
        details = json.dumps({"model": dict(description.model.init_args), "origin": dict(description.origin)}, indent=1)
        card = super().generate_model_card(*args, **words, details=f"```json\n{details}\n```", **kwargs)
        if description.usage is not None and description.usage.point_schema is not None:
            card.data["tags"] = [tag for tag in card.data.get("tags", ()) if tag != _PRINTED]
        return card

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, trust: str | None = None, **download: Any
    ) -> Self:
        """Load a module from a folder or from the Hugging Face hub. Nothing in it is executed.

        Args:
            pretrained_model_name_or_path: A folder with a checkpoint, such as that of a run, or an id on the hub.
            trust: Class path of a model outside of this package that may be imported.
            download: Options of `huggingface_hub.snapshot_download`, such as `revision`, `token` and `cache_dir`.

        Returns:
            The module on the CPU, in evaluation mode.

        Raises:
            StoreError: If there is no such checkpoint, or it can't be read.
            SchemaError: If it is of another version or shape.
            UsageError: If it needs trust.
        """
        folder = fetch_checkpoint(str(pretrained_model_name_or_path), **download)
        weights, description = read_checkpoint(folder)
        return cls.restored(weights, description, folder=folder, trust=trust)
