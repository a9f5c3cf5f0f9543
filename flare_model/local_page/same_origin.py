"""Middleware that answers only requests of the page itself, and of programs of this machine that name its host.

A server on the loopback address can still be reached by the pages that its user has open. A page of another origin
sends its own `Origin` or a `Sec-Fetch-Site` that says so; one whose name was made to point to this machine (DNS
rebinding) sends that name as `Host`. All of them are refused. No header lets another origin read an answer (CORS).
"""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class SameOriginMiddleware:
    """Passes requests that are for this server and from its own page; refuses others with status 403.

    Args:
        app: The application.
        names: Accepted host names, without the port: through a tunnel it may be another one.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...]) -> None:
        self.app = app
        self._host = re.compile(rf"(?:{'|'.join(map(re.escape, names))})(?::\d{{1,5}})?", re.IGNORECASE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with status 403 and a sentence."""
        if scope["type"] != "http":
            return  # no lifespan, no web sockets

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if sentence := self.refusal(Headers(scope=scope), scope["path"]):
            await JSONResponse({"error": sentence}, 403, {"connection": "close"})(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def refusal(self, headers: Headers, path: str) -> str:
        """Why a request isn't answered; empty where it is.

        Args:
            headers: Headers of the request.
            path: Path of its address.
        """
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._host.fullmatch(hosts[0]):
            return "this page answers under the address that it printed, and under no other name"
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{hosts[0].lower()}":
            return "this page answers itself, and no page of another address"
        # A link from elsewhere may lead to the page; nothing else may be asked from elsewhere.
        if path != "/" and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "this page answers itself, and no page of another address"
        return ""
