"""What a build was asked for, checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpbf_data.case.schema import FieldSpec, resolve_fields
from lpbf_data.errors import UsageError
from pipelines.building.formats import FORMATS
from pipelines.building.targets import default_workspace
from pipelines.selection.designs import DesignNamer, design_namer
from pipelines.selection.filters import Filters, active_limits
from pipelines.selection.split_options import SplitRequest, parse_splits
from pipelines.sources.locations import is_url


@dataclass(frozen=True)
class BuildRequest:
    """What a build was asked for, checked.

    Attributes:
        sources: Folders and archives: paths, or URLs that fsspec reads.
        out: The data set: a folder, or a URL of an object store.
        workspace: The folder that the build works in.
        limits: Filter limits in force.
        splits: The option `--splits` as it was written.
        split_request: The same, parsed.
        seed: Seed of the splits.
        design_id: The option `--design_id` as it was written.
        namer: The same, as the function that names the design of a case.
        specs: Fields to store.
        formats: Formats to store.
        time_limit: Seconds that a case may take.
        replace: Whether cases of an earlier build that the sources don't hold may be dropped.
        digest: Whether changed files are recognised by their content rather than by size and time.
        report: Whether report and pictures are added.
    """

    sources: tuple[str, ...]
    out: str
    workspace: Path
    limits: Mapping[str, float]
    splits: str
    split_request: SplitRequest
    seed: int
    design_id: str
    namer: DesignNamer
    specs: tuple[FieldSpec, ...]
    formats: tuple[str, ...]
    time_limit: float
    replace: bool = False
    digest: bool = False
    report: bool = False

    @property
    def configuration(self) -> dict[str, Any]:
        """What decides the content of the data set, for `build.json`."""
        return {
            "filters": dict(self.limits),
            "splits": self.splits,
            "seed": self.seed,
            "design_id": Path(self.design_id).name if self.design_id.endswith(".csv") else self.design_id,
            "fields": [spec.name for spec in self.specs],
            "formats": list(self.formats),
        }


def check_request(
    src: Sequence[str],
    out: str,
    filters: Filters,
    splits: str,
    seed: int,
    design_id: str,
    fields: Sequence[str],
    formats: Sequence[str],
    *,
    time_limit: float,
    replace: bool = False,
    digest: bool = False,
    report: bool = False,
    workspace: str | None = None,
) -> BuildRequest:
    """Refuse what is out of range before any work starts."""
    if not src:
        raise UsageError("--src names no source")
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise UsageError(f"unknown format {unknown[0]!r}; known are: {', '.join(FORMATS)}")
    if not formats:
        raise UsageError(f"--formats names no format; known are: {', '.join(FORMATS)}")
    if not time_limit > 0:
        raise UsageError(f"--time_limit must be positive, not {time_limit}")
    return BuildRequest(
        sources=tuple(src),
        out=out.rstrip("/") if is_url(out) else out,
        workspace=(Path(workspace) if workspace else default_workspace(out)).absolute(),
        limits=active_limits(filters),
        splits=splits,
        split_request=parse_splits(splits),
        seed=seed,
        design_id=design_id,
        namer=design_namer(design_id),
        specs=resolve_fields(fields),
        formats=tuple(name for name in FORMATS if name in formats),
        time_limit=time_limit,
        replace=replace,
        digest=digest,
        report=report,
    )


@dataclass(frozen=True, slots=True)
class BuildShare:
    """One share of a build: number `index`, from 1, of `count`."""

    index: int
    count: int

    @property
    def name(self) -> str:
        """Name of the share in the workspace."""
        return f"{self.index:05d}-of-{self.count:05d}"

    def share(self, total: int) -> range:
        """Indices of the items, out of `total`, that belong to it; they are consecutive."""
        return range((self.index - 1) * total // self.count, self.index * total // self.count)


def parse_share(text: str) -> BuildShare:
    """Read the option `--part`.

    Raises:
        UsageError: If it isn't i/N with i from 1 to N.

    >>> parse_share("3/10")
    BuildShare(index=3, count=10)
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--part must be i/N with i from 1 to N, such as 3/10, not {text!r}")
    return BuildShare(int(index), int(count))
