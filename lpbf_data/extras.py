"""What commands need beyond the base installation: the extras of `pip install 'lpbf-flare[…]'`.

The base reads and serves data sets. Simulating, building and training need more packages, which a user who only reads
data needn't install.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final

from lpbf_data.errors import UsageError

_SURFACES: Final = ("PIL", "jinja2", "manifold3d", "matplotlib", "pyvista", "scipy")
_MODEL: Final = (*_SURFACES, "h5py", "meshio", "safetensors", "tensorboard")

MODULES_OF_EXTRAS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "pipelines": (
            *_SURFACES,
            "dask",
            "distributed",
            "llvmlite",
            "meshio",
            "numba",
            "psutil",
            "pyamg",
            "skfem",
            "threadpoolctl",
            "zlib_ng",
        ),
        "model": _MODEL,
        "serve": (*_MODEL, "starlette", "uvicorn"),
    }
)
"""Modules that an extra installs, by the name of the extra; without those that have a substitute (Fabric, Triton)."""

_EXTRA_OF_MODULE: Final[Mapping[str, str | None]] = MappingProxyType(
    {"pipelines": "pipelines", "pipelines.verify": None, "flare_model": "model", "flare_model.serve": "serve"}
)
"""The extra of a package's commands, and of a single command that needs another one, or None."""

_SCRIPTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "flare_model": "compensate evaluate predict release serve spectrum train",
        "pipelines": "build calibrate pack publish report simulate unpack verify",
    }
)
"""Modules of each package that are installed as `lpbf-<module>` too."""


def script_of(command: str) -> str | None:
    """The program that is installed for a command; None where there is none.

    Args:
        command: How the module is called.

    >>> script_of("python -m flare_model.predict"), script_of("python -m flare_model.models")
    ('lpbf-predict', None)
    """
    package, _, name = command.rpartition(" ")[2].partition(".")
    if (package, name) == ("pipelines", "compensate"):
        return "lpbf-compensate-simulated"
    return f"lpbf-{name}" if name in _SCRIPTS.get(package, "").split() else None


def how_to_install(extra: str) -> str:
    """What to type for an extra.

    >>> how_to_install("model")
    "python -m pip install 'lpbf-flare[model]', in a clone -c constraints.txt '.[model]'"
    """
    return f"python -m pip install 'lpbf-flare[{extra}]', in a clone -c constraints.txt '.[{extra}]'"


def check_extra(command: str) -> None:
    """Refuse to run a command without the packages that it needs.

    Args:
        command: How the user calls it, such as "python -m pipelines.build"; the beginning of the message.

    Raises:
        UsageError: If modules of the command's extra aren't installed; it says what to install.
    """
    module = command.rpartition(" ")[2]
    extra = _EXTRA_OF_MODULE.get(module, _EXTRA_OF_MODULE.get(module.partition(".")[0]))
    missing = [name for name in MODULES_OF_EXTRAS.get(extra or "", ()) if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{command} needs packages that aren't installed ({', '.join(missing)}): {how_to_install(str(extra))}"
        )
