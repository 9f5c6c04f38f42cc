"""`gmodiff serve`: bind first, so that a port in use is one clear line, then say where the page is."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import signal
import socket
import sys
import webbrowser
from typing import Any

import click

from gmodiff.errors import InputError, MissingDependencyError

LOOPBACK = "127.0.0.1"


@click.command(short_help="Open the page: drop photos, look at the HDR, take the file.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any that is free.")
@click.option("--host", default=LOOPBACK, show_default=True, metavar="ADDRESS",
              help="Address to listen on. Beyond this machine a token is needed; the printed address holds it.")  # fmt: skip
@click.option("--name", "names", multiple=True, metavar="HOST", help="A further host name that this machine is reached by.")
@click.option("--model", default="compact", show_default=True, metavar="NAME", help="As of gmodiff merge: compact, none, or a card.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@click.option("--at-once", type=click.IntRange(1, 16), default=1, show_default=True, help="Merges that run at the same time.")
@click.option("--max-upload", type=click.IntRange(min=1), default=1000, show_default=True, metavar="MB", help="Largest file taken.")
@click.option("--max-total", type=click.IntRange(min=1), default=40, show_default=True, metavar="GB",
              help="Most that the private temporary folder may hold.")  # fmt: skip
@click.option("--max-pixels", type=click.IntRange(min=1), default=250_000_000, show_default=True, help="Refuse larger photos.")
def serve(
    port: int,
    host: str,
    names: tuple[str, ...],
    model: str,
    no_open: bool,
    at_once: int,
    max_upload: int,
    max_total: int,
    max_pixels: int,
) -> None:
    """Serve the page on this machine until Ctrl-C.

    Photos are kept in a private temporary folder that is removed at the end. Nothing is sent anywhere; the page works without a network.
    """
    _need_web()
    import uvicorn

    from gmodiff.web.guard import Guard
    from gmodiff.web.merging import Models
    from gmodiff.web.page import Page
    from gmodiff.web.server import create_app
    from gmodiff.web.workspace import Limits, Workspace

    models = Models(model)  # a model that is not there is refused before anything is opened
    listening, local = _bound(host, port)
    port = listening.getsockname()[1]
    token = None if local else secrets.token_urlsafe(24)
    limits = Limits(max_upload * 1_000_000, max_total * 1_000_000_000, max_pixels)
    try:
        workspace = Workspace(limits)
    except OSError as error:
        listening.close()
        raise InputError(f"the temporary folder cannot be used ({error.strerror or error}): set TMPDIR to another") from error
    page = Page(workspace, models, at_once=at_once)
    own = {"localhost", LOOPBACK, "::1", host, *names} | (set() if local else {socket.gethostname()})
    app = Guard(create_app(page), port=port, names=own, any_address=not local, token=token)
    shown = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):
        shown = _own_address()
    address = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
    click.echo(f"GMODiff is at {address}  (Ctrl-C ends it)")
    sys.stdout.flush()
    if not no_open and local:
        with contextlib.suppress(Exception):
            webbrowser.open(address)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, server_header=False, ws="none")

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            page.closing.set()  # pages that are open wait for events for ever
            super().handle_exit(sig, frame)

    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # a terminal that is closed; not nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        page.close()
        listening.close()


def _bound(host: str, port: int) -> tuple[socket.socket, bool]:
    """A socket that listens there, and whether only this machine can reach it. Raises InputError, one line, where that cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: no address of this machine ({error}); expected 127.0.0.1, or one of its own") from None
    family, kind, protocol, _, place = found[0]
    listening = socket.socket(family, kind, protocol)
    if sys.platform != "win32":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(place)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if isinstance(error, PermissionError):
            raise InputError(f"--port {port}: not allowed for this user; give one above 1023, or 0 for any that is free") from None
        reason = error.strerror or str(error)
        raise InputError(f"--port {port} on {host} cannot be used ({reason.lower()}): give another, or 0 for any that is free") from None
    return listening, ipaddress.ip_address(str(place[0]).split("%")[0]).is_loopback


def _own_address() -> str:
    """The address that other machines of the network reach this one by, or its name."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # an address for documentation; nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def _need_web() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f'the page needs {error.name}: pip install "gmodiff[web]"') from None
