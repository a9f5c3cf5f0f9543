"""Import path of [pipelines.sources.case_files][pipelines.sources.case_files] in scripts for earlier versions."""

from __future__ import annotations

from pipelines.sources.case_files import CaseFiles, CaseLocation, open_case

__all__ = ["CaseFiles", "CaseLocation", "open_case"]
