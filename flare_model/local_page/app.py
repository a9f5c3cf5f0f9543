"""The addresses of the page: `/`, `/answer`, `/compensate` and `/state`.

Files come as the body of a request, as they are. Nothing of them is kept: to compensate a part, it is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, get_args
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from flare_model.data.targets import did_you_mean
from flare_model.decision.compensated_file import CompensatedFile, said_of
from flare_model.decision.page import page_fields
from flare_model.local_page.computing import Computing, notes_of
from flare_model.local_page.guard import Guard
from flare_model.local_page.one_at_a_time import FullError, GoneError, OneAtATime
from flare_model.local_page.uploads import (
    UPLOAD_SUFFIXES,
    StalledError,
    TooLargeError,
    check_length,
    keep_upload,
    plain_name,
)
from flare_model.prediction.part import Meshing
from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.geometry.compensation import MAX_SCALE
from lpbf_data.geometry.surface_formats import SURFACE_SUFFIXES, Units
from lpbf_data.viewer.page import render_page

T = TypeVar("T")

ASSETS: Final = Path(__file__).parent / "assets"
MOST_POINTS: Final = 200_000
"""Points that a surface is meshed with at most, so that nobody waits for hours behind one part."""

_MOST_SAID: Final = 10  # bodies of which a header tells
_DRAINED: Final = 64 * 2**20
_DRAIN_SECONDS: Final = 2.0
_STATUS: Final[Mapping[type[LpbfError], int]] = {TooLargeError: 413, StalledError: 408, FullError: 503}
_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "/answer": ("name", "units", "points"),
    "/compensate": ("name", "units", "points", "scale", "anyway"),
}


@dataclass(frozen=True)
class Asked:
    """What a page asks beside the file that it sends.

    Attributes:
        name: Name of the file.
        meshing: How surfaces become meshes.
        scale: How many times the displacement is added.
        anyway: Whether to displace where the mesh isn't the part, or the part doesn't fit the build volume.
    """

    name: str
    meshing: Meshing
    scale: float
    anyway: bool = False


class _Refusal(JSONResponse):
    """A sentence, sent while the file may still be arriving: what is in flight is read and thrown away for a moment.

    Closing at once would reset the connection, and the sentence would be lost on the way.
    """

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        self.headers["connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                left, more = _DRAINED, True
                while more and left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def make_app(computing: Computing, folder: Path, most: int, names: tuple[str, ...]) -> Starlette:
    """The application.

    Args:
        computing: The model.
        folder: Where files lie while they are worked on.
        most: Bytes of a file at most.
        names: Hosts that the server goes by.
    """
    page = _render(computing, most)
    work = OneAtATime()

    async def show(_: Request) -> Response:
        return HTMLResponse(page)

    async def state(_: Request) -> Response:
        return JSONResponse({"waiting": work.places})

    async def answer(request: Request) -> Response:
        def compute(path: Path, asked: Asked) -> Response:
            return JSONResponse(computing.answer(path, asked.meshing))

        return await _work_on(request, work, folder, most, computing.points, compute)

    async def compensate(request: Request) -> Response:
        def compute(path: Path, asked: Asked) -> Response:
            return _as_stl(computing.compensate(path, asked.meshing, asked.scale, anyway=asked.anyway), asked)

        return await _work_on(request, work, folder, most, computing.points, compute)

    async def missing(_: Request, __: Exception) -> Response:
        return JSONResponse({"error": "there is nothing at this address, or not by this method"}, 404)

    routes = [Route("/", show), Route("/state", state)]
    routes += [Route("/answer", answer, methods=["POST"]), Route("/compensate", compensate, methods=["POST"])]
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {404: missing, 405: missing}
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard, names=names)])


async def _work_on(
    request: Request,
    work: OneAtATime,
    folder: Path,
    most: int,
    usual_points: int,
    compute: Callable[[Path, Asked], Response],
) -> Response:
    """Receive a file, compute, and throw the file away; a sentence where that can't be done."""
    reading = True
    try:
        _check_request(request)
        asked = _asked(request.query_params, usual_points)
        check_length(request.headers.get("content-length"), most)
        with work.place(), tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as own:
            path = Path(own) / asked.name
            await keep_upload(_chunks(request), path, most)
            reading = False
            return await work.run(partial(_told, compute, path, asked), request.is_disconnected)
    except (ClientDisconnect, GoneError):
        return Response(status_code=400)  # nobody reads it
    except LpbfError as error:
        status = _STATUS.get(type(error), 422)
        return _refusal(str(error), status, reading=reading)
    except OSError as error:
        sentence = f"the file can't be kept while it is worked on: {error.strerror or error}"
        return _refusal(sentence, 507, reading=reading)


def _refusal(sentence: str, status: int, *, reading: bool) -> Response:
    return (_Refusal if reading else JSONResponse)({"error": sentence}, status)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


def _told(compute: Callable[[Path, Asked], Response], path: Path, asked: Asked) -> Response:
    """What a computation gives; a sentence, without the folder that the file lay in, where it fails."""
    if not path.exists():
        return JSONResponse({"error": "the page is being ended"}, 503)
    try:
        return compute(path, asked)
    except LpbfError as error:
        return JSONResponse({"error": str(error).replace(f"{path.parent}/", "").replace(str(path), path.name)}, 422)
    except MemoryError:
        sentence = f"{path.name} takes more memory than there is; send it with fewer triangles, or take fewer points"
        return JSONResponse({"error": sentence}, 422)
    except Exception:  # noqa: BLE001 (whatever a file sets off, the page goes on)
        traceback.print_exc(file=sys.stderr)
        sentence = f"{path.name} set off an error of this program; its report is where the page was started"
        return JSONResponse({"error": sentence}, 500)


def _check_request(request: Request) -> None:
    """Refuse what would be passed over in silence, or read as if it were the part.

    Raises:
        UsageError: If a parameter isn't one of this address, or comes twice, or a form is sent instead of a file.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise UsageError("send the file itself (curl --data-binary @part.stl), not a form")
    path = request.url.path
    known = _PARAMETERS[path]
    given = [name for name, _ in request.query_params.multi_items()]
    if unknown := [f"{name}{did_you_mean(name.lower(), known)}" for name in dict.fromkeys(given) if name not in known]:
        few = unknown[:_MOST_SAID]
        raise UsageError(
            f"{path} has no parameter {', '.join(few)}; it takes {', '.join(known[:-1])} and {known[-1]}. Model and "
            "material are chosen when the page is started"
        )
    if twice := [name for name in known if given.count(name) > 1]:
        raise UsageError(f"{', '.join(twice)} must be given once")


def _asked(words: Mapping[str, str], usual_points: int) -> Asked:
    """What stands in the address.

    Raises:
        UsageError: If a value isn't one.
    """
    name = plain_name(words.get("name", ""))
    units: Any = words.get("units") or None
    if units is not None and units not in get_args(Units):
        raise UsageError(f"units must be one of {', '.join(get_args(Units))}")
    points = _number(words.get("points"), int, "points", 8, MOST_POINTS)
    scale = _number(words.get("scale"), float, "scale", -MAX_SCALE, MAX_SCALE)
    anyway = (words.get("anyway") or "false").lower()
    if anyway not in ("true", "false"):
        raise UsageError("anyway must be true or false")
    meshing = Meshing(points or usual_points, units=units)
    return Asked(name, meshing, -1.0 if scale is None else scale, anyway == "true")


def _number(word: str | None, kind: Callable[[str], T], what: str, least: float, most: float) -> T | None:
    if not word:
        return None
    try:
        value: Any = kind(word)
    except ValueError as error:
        raise UsageError(f"{what} must be a number") from error
    if not least <= value <= most:
        raise UsageError(f"{what} must lie between {least:,g} and {most:,g}")
    found: T = value
    return found


def _as_stl(found: CompensatedFile, asked: Asked) -> Response:
    """The STL, and in a header, as JSON in percent signs, what was done."""
    said = [said_of(told) for told in found.bodies[:_MOST_SAID]]
    said += [f"and {len(found.bodies) - _MOST_SAID} more bodies"] if len(found.bodies) > _MOST_SAID else []
    doubts = [doubt for told in found.bodies[:_MOST_SAID] for doubt in told["doubts"]]
    notes = [*doubts, *notes_of(found.remarks)]
    name = f"{Path(asked.name).stem}_{'compensated' if found.scale == -1 else f'moved_{found.scale:g}_times'}.stl"
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "x-lpbf-said": quote(json.dumps({"name": name, "said": said, "notes": notes})),
    }
    return Response(found.stl, headers=headers, media_type="model/stl")


def _render(computing: Computing, most: int) -> bytes:
    fields = page_fields(computing.surrogate.usage.targets, sure=bool(computing.beside.intervals))
    context = {
        "title": "LPBF: from a part to a decision",
        "suffixes": ",".join(UPLOAD_SUFFIXES),
        "units": get_args(Units),
        "points": computing.points,
        "most_points": MOST_POINTS,
        "most_mb": f"{most / 1e6:,.0f}",
        "scale": MAX_SCALE,
    }
    data = {
        "parts": [],
        "most": most,
        "suffixes": UPLOAD_SUFFIXES,
        "surfaces": SURFACE_SUFFIXES,
        "compensates": computing.can_compensate(),
        "shows": bool(fields),
    }
    return render_page(ASSETS, "serve.html", context, data, fields, ())
