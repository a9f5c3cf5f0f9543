"""The HTTP server of the page: its socket on the loopback address, its address, and its end by signals."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import webbrowser
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from lpbf_data.errors import UsageError

_END_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP")
_SECONDS_TO_END: Final = 2


def check_host(host: str) -> str:
    """The address of a host that is this machine and nothing else.

    >>> check_host("localhost"), check_host("::1")
    ('127.0.0.1', '::1')

    Args:
        host: localhost, or an address.

    Raises:
        UsageError: If other machines could reach it.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host.lower() == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise UsageError(
            f"--host must be a loopback address, such as 127.0.0.1, not {host}: the page asks nobody for a password; "
            "from another machine reach it through a tunnel: ssh -L 8000:127.0.0.1:8000 this-machine"
        )
    return str(address)


def open_socket(address: str, port: int) -> socket.socket:
    """A listening socket: clients that connect from now on are answered as soon as the server runs.

    Args:
        address: A loopback address.
        port: Its port; 0 for any that is free.

    Raises:
        UsageError: If the port can't be opened.
    """
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            # Windows: no other process on this port.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        opened.listen(64)
    except OSError as error:
        opened.close()
        raise UsageError(
            f"{address} port {port} can't be had ({error.strerror or error}); take another --port, or 0 for a free one"
        ) from error
    return opened


def url_of(opened: socket.socket) -> str:
    """The address of a socket's page."""
    host, port = opened.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def names_of(address: str) -> tuple[str, ...]:
    """Host names under which a server is reached."""
    return (f"[{address}]" if ":" in address else address, "localhost", "127.0.0.1", "[::1]")


def serve_until_ended(app: ASGIApp, opened: socket.socket) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP, and return then, so that the caller can remove temporary files.

    Args:
        app: The application.
        opened: The socket.
    """
    config = uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", lifespan="off", log_level="error", access_log=False,
        server_header=False, limit_concurrency=64, timeout_keep_alive=5, timeout_graceful_shutdown=_SECONDS_TO_END,
    )  # fmt: skip
    # The server raises the signal that ended it a second time, and by default SIGTERM ends the process at once.
    with _end_signals_caught(), contextlib.suppress(_EndSignal):
        uvicorn.Server(config).run(sockets=[opened])


class _EndSignal(BaseException):
    """A signal to end arrived; not an Exception, so that no handler of exceptions catches it."""


@contextlib.contextmanager
def _end_signals_caught() -> Iterator[None]:
    def end(_: int, __: FrameType | None) -> None:
        raise _EndSignal

    previous: dict[signal.Signals, Callable[..., object] | int | None] = {}
    for name in _END_SIGNALS:
        if number := getattr(signal, name, None):
            previous[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def show_in_browser(url: str) -> bool:
    """Open a page in the user's browser, and return whether there is one."""
    with contextlib.suppress(webbrowser.Error, OSError):
        return webbrowser.open(url)
    return False
