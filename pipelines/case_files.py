"""The import path of [pipelines.sources.case_files][pipelines.sources.case_files] that scripts of before use."""

from __future__ import annotations

from pipelines.sources.case_files import CaseFiles, CaseLocation, open_case

__all__ = ["CaseFiles", "CaseLocation", "open_case"]
