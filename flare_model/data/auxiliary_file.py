"""Auxiliary files of a checkpoint: small JSON files in its folder, each with a version of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lpbf_data.durable import write_json
from lpbf_data.errors import SchemaError

Content = TypeVar("Content")


@dataclass(frozen=True)
class AuxiliaryFile:
    """One kind of auxiliary file, such as `intervals.json`.

    Attributes:
        name: File name.
        version_key: Key of the version in its content.
        version: The version that is written and read.
        problem_and_advice: Words before and after the reason in the error message about a file that can't be read.
    """

    name: str
    version_key: str
    version: int
    problem_and_advice: tuple[str, str]

    def write(self, folder: Path, content: Mapping[str, Any]) -> None:
        """Write it into the folder of a checkpoint."""
        write_json(folder / self.name, {self.version_key: self.version, **content})

    def read(self, folder: Path, parse: Callable[[Mapping[str, Any]], Content]) -> Content | None:
        """Read the file of a checkpoint; None where there is none.

        Args:
            folder: Folder of the checkpoint.
            parse: Makes the result from the content; raises ValueError, KeyError, TypeError or AttributeError where
                the content is wrong.

        Raises:
            SchemaError: If it can't be read.
        """
        path = folder / self.name
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content[self.version_key] != self.version:
                raise ValueError(f"version {content[self.version_key]}")
            return parse(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem, advice = self.problem_and_advice
            raise SchemaError(f"{path} {problem} ({error!r}); {advice}") from error
