"""The addresses of the page: `/`, `/answer`, `/compensate` and `/state`.

A file is the body of a request, without a form. It is removed after the request: to compensate a part, its file is sent
again.
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

from flare_model.data.point_fields import did_you_mean
from flare_model.decision.compensated_file import CompensatedFile, describe_body
from flare_model.decision.page import page_fields
from flare_model.local_page.inference import InferenceService, notes_of
from flare_model.local_page.job_queue import ClientGoneError, JobQueue, QueueFullError
from flare_model.local_page.same_origin import SameOriginMiddleware
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
from lpbf_data.geometry.surface_formats import SURFACE_SUFFIXES, UNIT_SPELLINGS, Units
from lpbf_data.viewer.page import render_page

T = TypeVar("T")

ASSETS: Final = Path(__file__).parent / "assets"
MAX_POINTS: Final = 200_000
"""Points that a surface is meshed with at most, so that one part doesn't block the queue for hours."""

_MAX_LISTED: Final = 10  # bodies that a header lists
_MAX_DRAINED_BYTES: Final = 64 * 2**20
_DRAIN_SECONDS: Final = 2.0
_STATUS: Final[Mapping[type[LpbfError], int]] = {TooLargeError: 413, StalledError: 408, QueueFullError: 503}
_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "/answer": ("name", "units", "points"),
    "/compensate": ("name", "units", "points", "scale", "anyway"),
}


@dataclass(frozen=True)
class RequestOptions:
    """Options of a request, sent with the file.

    Attributes:
        name: Name of the file.
        meshing: How surfaces become meshes.
        scale: Factor of the displacement that is added.
        anyway: Whether to displace also where the mesh misses parts of a body, or it doesn't fit the build volume.
    """

    name: str
    meshing: Meshing
    scale: float
    anyway: bool = False


class _Refusal(JSONResponse):
    """A refusal that is sent while the file may still be arriving; the rest of it is read for a moment and dropped.

    Closing the connection at once would reset it, and the client would not get the message.
    """

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        self.headers["connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                left, more = _MAX_DRAINED_BYTES, True
                while more and left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def make_app(service: InferenceService, folder: Path, max_bytes: int, names: tuple[str, ...]) -> Starlette:
    """The application.

    Args:
        service: The model.
        folder: Folder of uploaded files while they are computed.
        max_bytes: Bytes of a file at most.
        names: Accepted host names.
    """
    page = _render(service, max_bytes)
    jobs = JobQueue()

    async def show(_: Request) -> Response:
        return HTMLResponse(page)

    async def state(_: Request) -> Response:
        return JSONResponse({"waiting": jobs.num_jobs})

    async def answer(request: Request) -> Response:
        def compute(path: Path, options: RequestOptions) -> Response:
            return JSONResponse(service.answer(path, options.meshing))

        return await _work_on(request, jobs, folder, max_bytes, service.points, compute)

    async def compensate(request: Request) -> Response:
        def compute(path: Path, options: RequestOptions) -> Response:
            return _as_stl(service.compensate(path, options.meshing, options.scale, anyway=options.anyway), options)

        return await _work_on(request, jobs, folder, max_bytes, service.points, compute)

    async def missing(_: Request, __: Exception) -> Response:
        return JSONResponse({"error": "there is nothing at this address, or not by this method"}, 404)

    routes = [Route("/", show), Route("/state", state)]
    routes += [Route("/answer", answer, methods=["POST"]), Route("/compensate", compensate, methods=["POST"])]
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {404: missing, 405: missing}
    return Starlette(
        routes=routes, exception_handlers=handlers, middleware=[Middleware(SameOriginMiddleware, names=names)]
    )


async def _work_on(
    request: Request,
    jobs: JobQueue,
    folder: Path,
    max_bytes: int,
    default_points: int,
    compute: Callable[[Path, RequestOptions], Response],
) -> Response:
    """Receive a file, compute the response, and remove the file; a response with an error message where that fails."""
    reading = True
    try:
        _check_request(request)
        options = _request_options(request.query_params, default_points)
        check_length(request.headers.get("content-length"), max_bytes)
        with jobs.slot(), tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as own:
            path = Path(own) / options.name
            await keep_upload(_chunks(request), path, max_bytes)
            reading = False
            return await jobs.run(partial(_run, compute, path, options), request.is_disconnected)
    except (ClientDisconnect, ClientGoneError):
        return Response(status_code=400)  # the client is gone
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


def _run(compute: Callable[[Path, RequestOptions], Response], path: Path, options: RequestOptions) -> Response:
    """The response of a computation; where it fails, an error message, without the path of the temporary folder."""
    if not path.exists():
        return JSONResponse({"error": "the page is being ended"}, 503)
    try:
        return compute(path, options)
    except LpbfError as error:
        return JSONResponse({"error": str(error).replace(f"{path.parent}/", "").replace(str(path), path.name)}, 422)
    except MemoryError:
        sentence = f"{path.name} takes more memory than there is; send it with fewer triangles, or take fewer points"
        return JSONResponse({"error": sentence}, 422)
    except Exception:  # noqa: BLE001 (whatever a file causes, the server continues)
        traceback.print_exc(file=sys.stderr)
        sentence = f"{path.name} caused an error in this program; the terminal that started the page shows its report"
        return JSONResponse({"error": sentence}, 500)


def _check_request(request: Request) -> None:
    """Refuse parameters that would be ignored, and bodies that aren't the file itself.

    Raises:
        UsageError: If a parameter isn't one of this address, or comes twice, or a form is sent instead of a file.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise UsageError("send the file itself (curl --data-binary @part.stl), not a form")
    path = request.url.path
    known = _PARAMETERS[path]
    given = [name for name, _ in request.query_params.multi_items()]
    if unknown := [f"{name}{did_you_mean(name.lower(), known)}" for name in dict.fromkeys(given) if name not in known]:
        few = unknown[:_MAX_LISTED]
        raise UsageError(
            f"{path} has no parameter {', '.join(few)}; it takes {', '.join(known[:-1])} and {known[-1]}. Model and "
            "material are chosen when the page is started"
        )
    if twice := [name for name in known if given.count(name) > 1]:
        raise UsageError(f"{', '.join(twice)} must be given once")


def _request_options(words: Mapping[str, str], default_points: int) -> RequestOptions:
    """Options from the query string.

    Raises:
        UsageError: If a value isn't one.
    """
    name = plain_name(words.get("name", ""))
    units: Any = UNIT_SPELLINGS.get((words.get("units") or "").lower())
    if units is None and words.get("units"):
        raise UsageError(f"units must be one of {', '.join(get_args(Units))}")
    points = _number(words.get("points"), int, "points", 8, MAX_POINTS)
    scale = _number(words.get("scale"), float, "scale", -MAX_SCALE, MAX_SCALE)
    anyway = (words.get("anyway") or "false").lower()
    if anyway not in ("true", "false"):
        raise UsageError("anyway must be true or false")
    meshing = Meshing(points or default_points, units=units, refined=points is None)
    return RequestOptions(name, meshing, -1.0 if scale is None else scale, anyway == "true")


def _number(word: str | None, kind: Callable[[str], T], what: str, minimum: float, maximum: float) -> T | None:
    if not word:
        return None
    try:
        value: Any = kind(word)
    except ValueError as error:
        raise UsageError(f"{what} must be a number") from error
    if not minimum <= value <= maximum:
        raise UsageError(f"{what} must lie between {minimum:,g} and {maximum:,g}")
    found: T = value
    return found


def _as_stl(found: CompensatedFile, options: RequestOptions) -> Response:
    """The STL as a response, with the report on it in a header, as percent-encoded JSON."""
    sentences = [describe_body(body) for body in found.bodies[:_MAX_LISTED]]
    sentences += [f"and {len(found.bodies) - _MAX_LISTED} more bodies"] if len(found.bodies) > _MAX_LISTED else []
    doubts = [doubt for body in found.bodies[:_MAX_LISTED] for doubt in body["doubts"]]
    notes = [*doubts, *notes_of(found.remarks)]
    name = f"{Path(options.name).stem}_{'compensated' if found.scale == -1 else f'moved_{found.scale:g}_times'}.stl"
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "x-lpbf-said": quote(json.dumps({"name": name, "said": sentences, "notes": notes})),
    }
    return Response(found.stl, headers=headers, media_type="model/stl")


def _render(service: InferenceService, max_bytes: int) -> bytes:
    fields = page_fields(service.surrogate.usage.targets, with_intervals=bool(service.auxiliary.intervals))
    context = {
        "title": "LPBF: from a part to a decision",
        "suffixes": ",".join(UPLOAD_SUFFIXES),
        "units": get_args(Units),
        "points": service.points,
        "most_points": MAX_POINTS,
        "most_mb": f"{max_bytes / 1e6:,.0f}",
        "scale": MAX_SCALE,
    }
    data = {
        "parts": [],
        "most": max_bytes,
        "suffixes": UPLOAD_SUFFIXES,
        "surfaces": SURFACE_SUFFIXES,
        "compensates": service.can_compensate(),
        "shows": bool(fields),
    }
    return render_page(ASSETS, "serve.html", context, data, fields, ())
