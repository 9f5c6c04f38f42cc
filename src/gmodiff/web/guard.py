"""Who may ask. A local server is reachable from every web page the user has open: host, origin and token are checked before anything else.

A page of somebody else's may send requests here (cross-site request forgery) or point a name of its own at this machine (DNS
rebinding). The first are told by Origin and Sec-Fetch-Site, the second by Host, which then holds that name.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "gmodiff_token_{port}"
"""Of a name for each port: cookies are shared by all servers of a host."""
LARGE = ("/api/photos", "/api/checks")
"""Addresses that take files; their server counts what comes."""
SMALL_BYTES = 200_000
HEADERS = {
    # Nothing from elsewhere, no inline script, no frame around the page.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware that refuses what does not come from our own page.

    port: that is listened on.   names: host names that are ours.   any_address: a bare IP address is ours too (it cannot be rebound).
    token: what has to be shown; None where only this machine can connect.
    """

    def __init__(self, app: App, *, port: int, names: Iterable[str], any_address: bool = False, token: str | None = None) -> None:
        self.app, self.port, self.names, self.any_address, self.token = app, port, {n.lower() for n in names}, any_address, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer with the refusal."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        refused = self._refusal(scope, headers, given)
        if refused is not None:
            await _answer(send, *refused)
        elif self.token is not None and given and scope["path"] == "/":
            # The printed address signs in; the token does not stay in the address bar.
            cookie = f"{COOKIE.format(port=self.port)}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 303, "", {"location": "/", "set-cookie": cookie})
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str], given: str) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 403, f"this server does not answer to the host {host[:80]!r}: open the address that gmodiff serve printed"
        origin = headers.get("origin")
        if origin is not None and (not origin.startswith("http://") or origin[len("http://") :].lower() != host.lower()):
            return 403, f"requests from {origin[:80]!r} are refused: only this server's own page may ask"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and (
            scope["path"] != "/" or headers.get("sec-fetch-mode") != "navigate"
        ):
            return 403, "requests from other pages are refused: only this server's own page may ask"
        if scope["method"] in ("POST", "PUT", "PATCH", "DELETE") and scope["path"] not in LARGE:
            length = headers.get("content-length", "" if "transfer-encoding" in headers else "0")
            if not (length.isascii() and length.isdigit() and int(length) <= SMALL_BYTES):
                return 413, f"this request is too large, or does not say its length: at most {SMALL_BYTES} bytes"
        if self.token is not None and not self._signed_in(headers, given if scope["path"] == "/" else ""):
            return 401, "this page needs its token: open the whole address that gmodiff serve printed"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").lower(), parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.username is not None or parts.path:
            return False
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address

    def _signed_in(self, headers: dict[str, str], given: str) -> bool:
        assert self.token is not None
        # By hand: the standard library's parser gives up at the first odd cookie, which another program of this host may have set.
        pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        kept = [value for name, _, value in pairs if name == COOKIE.format(port=self.port)]  # one for each path it was set for
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        return any(hmac.compare_digest(shown.encode(), self.token.encode()) for shown in (given, *kept, bearer) if shown)


def _with_headers(send: Send) -> Send:
    """Every answer says that nothing from elsewhere belongs to it."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = {k for k, _ in message.get("headers", [])}
            message["headers"] = [
                *message.get("headers", []),
                *((k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own),
            ]
        await send(message)

    return sending


async def _answer(send: Send, status: int, error: str, more: dict[str, str] | None = None) -> None:
    body = json.dumps({"error": error}).encode() if error else b""
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **HEADERS, **(more or {})}
    await send({"type": "http.response.start", "status": status, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
    await send({"type": "http.response.body", "body": body})
