"""The files of one run: what they are called, which were read, and their texts decoded."""

from __future__ import annotations

import codecs
from typing import Final

from lpbf_data.cached_property import cached_property
from lpbf_data.errors import CaseError, FailureReason
from pipelines.sources.case_files import CaseFiles, digest_of_contents
from pipelines.sources.grouping import fold_name, runs_of

_MAX_TEXT_BYTES: Final = 1 << 26  # a real log has some 25 kB


class RunFiles:
    """The files of one run in a folder or archive; names differ in case and accents between systems.

    Args:
        files: Files of the case.

    Raises:
        CaseError: If they are those of several runs.

    Attributes:
        sizes: Name to bytes.
        prefix: What the names of the run begin with.
    """

    def __init__(self, files: CaseFiles) -> None:
        self._files = files
        self._taken: dict[str, tuple[int, int]] = {}
        self.sizes = files.sizes
        self.prefix = self._only_run()

    def named(self, ending: str, folder: str = "") -> str | None:
        """The file `<p>mechanical…` in a folder of the case; `<p>` is what all files of the run begin with."""
        name = self.resolved(f"{folder}/{self.prefix}{ending}" if folder else f"{self.prefix}{ending}")
        return name if name in self.sizes else None

    def _only_run(self) -> str:
        """What the files of the run begin with."""
        runs = runs_of(self.sizes)
        if len(runs) > 1:
            named = ", ".join(run.removesuffix("_") or "one without a name" for run in runs)
            detail = f"the folder holds {len(runs)} runs ({named}); give each a folder of its own"
            raise CaseError(FailureReason.DUPLICATE_CASE, detail)
        return runs[0] if runs else ""

    @cached_property
    def _by_folded_name(self) -> dict[str, list[str]]:
        """Names of files by what doesn't differ between systems: neither case nor how accents are composed."""
        names: dict[str, list[str]] = {}
        for name in self.sizes:
            names.setdefault(fold_name(name), []).append(name)
        return names

    def resolved(self, name: str) -> str:
        """Actual name of a file, which may differ in case and accents; the given name where there is none."""
        if name in self.sizes:
            return name
        like = self._by_folded_name.get(fold_name(name), [])
        return like[0] if len(like) == 1 else name

    def read(self, name: str) -> bytes:
        """Content of a file, which counts as one that the case was read from."""
        name = self.resolved(name)
        data = self.look(name)
        self._taken[name] = (len(data), self._files.crc32(name, data))
        return data

    def look(self, name: str) -> bytes:
        """Content of a file that is looked at to judge others, and isn't part of what was read."""
        return self._files.read(self.resolved(name))

    def text(self, name: str) -> str:
        """Content of a text, decoded.

        Raises:
            CaseError: If it is longer than any real one.
        """
        if self.sizes.get(name, 0) > _MAX_TEXT_BYTES:
            detail = f"the text has {self.sizes[name]:,} bytes; at most {_MAX_TEXT_BYTES:,} are read"
            raise CaseError(FailureReason.OVERSIZED_MEMBER, detail, path=name)
        data = self.read(name)
        try:
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes what it redirects
                text = data.decode("utf-16")
            else:
                text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", "replace")
        return text if "\n" in text else text.replace("\r", "\n")  # old Macs end lines by a return alone

    @property
    def bytes_read(self) -> int:
        """Size of the files that were read so far."""
        return sum(size for size, _ in self._taken.values())

    @property
    def digest(self) -> str:
        """SHA-256 over name, size and CRC-32 of the files that were read so far."""
        return digest_of_contents(self._taken)
