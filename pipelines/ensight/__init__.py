"""EnSight Gold: reader and writer for geometry, variables and case files.

Importing this package makes the format known to meshio; nothing else happens at import.
"""

from pipelines.ensight.case_file import (
    COMPONENTS,
    CaseFile,
    TimeSet,
    Variable,
    VariableKind,
    read_case_file,
    write_case_file,
)
from pipelines.ensight.gold import (
    Geometry,
    Location,
    count_values,
    read_geometry,
    read_points,
    read_variable,
    write_geometry,
    write_variable,
)
from pipelines.ensight.meshio_format import register
from pipelines.ensight.records import Dialect, Encoding

__all__ = [
    "COMPONENTS",
    "CaseFile",
    "Dialect",
    "Encoding",
    "Geometry",
    "Location",
    "TimeSet",
    "Variable",
    "VariableKind",
    "count_values",
    "read_case_file",
    "read_geometry",
    "read_points",
    "read_variable",
    "write_case_file",
    "write_geometry",
    "write_variable",
]

register()
