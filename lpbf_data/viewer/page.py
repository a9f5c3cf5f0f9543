"""A page with the 3D view, from a template: text escaped, data packed, scripts named in its security policy.

The page may run the scripts that it carries and nothing else: the policy allows them by their SHA-256 and forbids every
request. What comes from data is either escaped by the template or packed, and the scripts put it in place as text.

A page that shows more brings a folder of its own: a template that extends `base.html`, a style sheet, scripts
in `page/`, one of which defines `main`, and where it needs libraries `vendor.min.js` with `vendor.LICENSES.txt`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lpbf_data.geometry.outer_surface import extract_surface
from lpbf_data.viewer.palettes import PLAIN_PALETTE, SIGNED_PALETTE, palette
from lpbf_data.viewer.shown_fields import ShownField
from lpbf_data.viewer.surface_codec import encode_surface

ASSETS: Final = Path(__file__).parent / "assets"
"""Templates, style sheet, scripts and libraries of the viewer."""

_ALONE: Final = ASSETS / "page-alone"


@dataclass(frozen=True)
class ShownPart:
    """One part on a page.

    Attributes:
        name: Name for people; the address `#part=<name>` opens it.
        surface: Its surface with columns, as `encode_surface` writes it.
        facts: Names and texts that are shown beside it.
    """

    name: str
    surface: bytes
    facts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_mesh(
        cls,
        name: str,
        points: NDArray[np.floating[Any]],
        cells: NDArray[np.integer[Any]],
        columns: Mapping[str, NDArray[np.floating[Any]]],
        facts: Iterable[tuple[str, str]] = (),
    ) -> Self:
        """The part of a mesh and its fields.

        Args:
            name: Name for people.
            points: Coordinates in mm, [N, 3].
            cells: Zero-based hexahedra, [E, 8].
            columns: Column name to values at the points, [N].
            facts: Names and texts that are shown beside it.
        """
        surface = extract_surface(points, cells)
        numbers = surface.point_numbers
        at_surface = {column: values[numbers] for column, values in columns.items()}
        return cls(name, encode_surface(points[numbers], surface.faces, at_surface), tuple(facts))


def render_parts(title: str, parts: Sequence[ShownPart], fields: Sequence[ShownField]) -> bytes:
    """The page that shows some parts and nothing else; the same parts give the same bytes.

    Args:
        title: Title of the page.
        parts: The parts.
        fields: Columns that can be shown; each part must have at least one of them.
    """
    listed = [{"name": part.name, "facts": part.facts} for part in parts]
    surfaces = (part.surface for part in parts)
    return _render(
        "parts.html", {"title": title, "parts": listed}, {"parts": listed}, fields, surfaces, (ASSETS,), _ALONE
    )


def render_page(
    folder: Path,
    template: str,
    context: Mapping[str, Any],
    data: Mapping[str, Any],
    fields: Sequence[ShownField],
    surfaces: Iterable[bytes],
) -> bytes:
    """A page from another template that holds the 3D view; the same content gives the same bytes.

    Args:
        folder: The page's own files, laid out as the viewer's `assets` are.
        template: Its template, which extends `base.html`.
        context: What the template shows.
        data: What the page's scripts get beside `fields` and `palettes`.
        fields: Columns that the 3D view can show.
        surfaces: Surfaces as `encode_surface` writes them, in the order of the script's `data.parts`.
    """
    return _render(template, context, data, fields, surfaces, (ASSETS, folder), folder / "page")


def _render(
    template: str,
    context: Mapping[str, Any],
    data: Mapping[str, Any],
    fields: Sequence[ShownField],
    surfaces: Iterable[bytes],
    folders: Sequence[Path],
    main: Path,
) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, undefined=jinja2.StrictUndefined
    )
    scripts = [*_texts(folders, "vendor.min.js"), _page_script([ASSETS / "page", main])]
    hashes = [base64_text(hashlib.sha256(script.encode()).digest()) for script in scripts]
    palettes = {"signed": SIGNED_PALETTE, "plain": PLAIN_PALETTE}
    view = {
        "fields": [asdict(field) for field in fields],
        "palettes": {name: base64_text(palette(colours).tobytes()) for name, colours in palettes.items()},
    }
    frame = {
        "style": Markup("\n".join(_texts(folders, "*.css"))),  # noqa: S704 (files of this project)
        "scripts": [Markup(script) for script in scripts],  # noqa: S704
        "script_hashes": [f"'sha256-{digest}'" for digest in hashes],
        "licences": f"\n\n{'-' * 80}\n\n".join(_texts(folders, "vendor.LICENSES.txt")),
        "page_data": _pack(view | dict(data)),
        "surfaces": map(base64_text, surfaces),
    }
    return environment.get_template(template).render(**context, **frame).encode("utf-8", "replace")


def _texts(folders: Iterable[Path], pattern: str) -> list[str]:
    return [path.read_text(encoding="utf-8").strip() for folder in folders for path in sorted(folder.glob(pattern))]


def _page_script(folders: Iterable[Path]) -> str:
    """The page's own scripts in one function, so that their names can't collide with those of libraries."""
    return '"use strict";\n(() => {\n' + "\n".join(_texts(folders, "*.js")) + "\nmain();\n})();"


def base64_text(data: bytes) -> str:
    """Bytes as they stand in a page."""
    return base64.b64encode(data).decode()


def _pack(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64_text(zlib.compress(text.encode(), 9))
