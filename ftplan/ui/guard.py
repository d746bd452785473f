"""Who may use the page: ASGI middleware that knows no framework.

- A page on loopback answers to loopback's names alone, so that no website can reach it by a name of its own (DNS
  rebinding), and what changes anything must come from the page itself (cross-site request forgery).
- With a token, nothing is answered without it: given once in the address (``?token=…``) or in the form, then kept in a
  cookie that scripts cannot read.
- A page that protects nothing need not ask where a change comes from: proxies rewrite the Host that this goes by.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from html import escape
from typing import Any, Final
from urllib.parse import parse_qs, quote

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Refusal = tuple[int, str, Headers]
"""Status, text and headers of an answer that the page itself is not asked for."""

COOKIE: Final = "ftplan_token"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
PLACE: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:@/?#\[\]]+)(?::([0-9]{1,5}))?")
"""A name or address with or without a port, as in Host and Origin."""
HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
FORM: Final = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>ftplan</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>body{{font:16px system-ui;margin:10vh auto;max-width:26rem;padding:0 1rem;color-scheme:light dark}}
input,button{{font:inherit;padding:.4rem .6rem}}</style></head><body><h1>ftplan</h1><p>{}</p>
<form method="get" action=""><label>Token <input name="token" type="password" autocomplete="off" autofocus></label>
<button>Open</button></form></body></html>"""
TOLD: Final = "This page needs the token that ftplan ui printed where it was started."


class Guard:
    """``app`` for those who may: ``names`` are the hosts it answers to (None: any), ``token`` what it asks for.

    ``own_origin``: changes must come from the page itself. ``framed``: other sites may show the page in a frame.
    """

    def __init__(
        self,
        app: App,
        *,
        names: Iterable[str] | None = None,
        token: str = "",
        own_origin: bool = True,
        framed: bool = False,
    ) -> None:
        self._app = app
        self._names = None if names is None else frozenset(name.lower() for name in names)
        self._token = token
        self._own_origin = own_origin
        self._framed = framed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or hand on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        send = self._with_headers(send)
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _answer(scope, send, *refused)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> Refusal | None:
        """A refusal, or the way in; None for who may enter."""
        host = headers.get(b"host", "")
        if self._names is not None and _name(host) not in self._names:
            return 421, "this page does not answer to that name", []
        origin = headers.get(b"origin", "")
        if self._own_origin and origin and _changes(scope) and not _is_own(origin, host):
            return 403, "this came from another site", []
        if not self._token or self._is_known(_cookie_name(scope), headers.get(b"cookie", "")):
            return None
        return self._way_in(scope)

    def _way_in(self, scope: Scope) -> Refusal:
        """The cookie for who gives the token, the form for anyone else."""
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if not given or not hmac.compare_digest(given.encode(), self._token.encode()):
            return 401, FORM.format(escape("That was not the token." if given else TOLD)), []
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f"{_cookie_name(scope)}={self._proof}; HttpOnly; SameSite=Strict; Path=/{secure}"
        return 303, "", [(b"set-cookie", cookie.encode()), (b"location", _location(scope).encode())]

    @property
    def _proof(self) -> str:
        """What the cookie holds: shows that the token was known, and is not the token."""
        return hashlib.sha256(b"ftplan page " + self._token.encode()).hexdigest()

    def _is_known(self, name: str, cookies: str) -> bool:
        found = re.search(rf"(?:^|;\s*){name}=([0-9a-f]{{64}})(?:;|$)", cookies)
        return found is not None and hmac.compare_digest(found[1], self._proof)

    def _with_headers(self, send: Send) -> Send:
        own = [*HEADERS, *([] if self._framed else [(b"x-frame-options", b"DENY")])]

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        return sent


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host[: host.index("]") + 1].lower() if host.startswith("[") and "]" in host else host.split(":")[0].lower()


def _changes(scope: Scope) -> bool:
    """Whether a request may change anything."""
    return scope["type"] == "websocket" or scope.get("method", "GET") not in ("GET", "HEAD", "OPTIONS")


def _is_own(origin: str, host: str) -> bool:
    """Whether ``origin`` is the page at ``host``; a port that either leaves out is the default one of the origin."""
    scheme, _, place = origin.lower().partition("://")
    default = DEFAULT_PORTS.get(scheme)
    if default is None:
        return False
    there = _place(place, default)
    return there is not None and there == _place(host.lower(), default)


def _place(text: str, default_port: int) -> tuple[str, int] | None:
    """Name and port that ``text`` tells; None where it tells none."""
    found = PLACE.fullmatch(text)
    return None if found is None else (found[1], int(found[2] or default_port))


def _cookie_name(scope: Scope) -> str:
    """One for each port: browsers send the cookies of a host to all its ports, where other pages may be."""
    _, port = scope.get("server") or ("", None)
    return COOKIE if port is None else f"{COOKIE}_{port}"


def _location(scope: Scope) -> str:
    """The path that was asked for, as a place on this host: two slashes would name another.

    Servers differ in whether ``path`` holds ``root_path`` (ASGI and uvicorn: it does).
    """
    path, root = scope.get("path", "/"), scope.get("root_path", "").rstrip("/")
    whole = path if path == root or path.startswith(f"{root}/") else root + path
    return quote("/" + whole.lstrip("/\\"))


async def _answer(scope: Scope, send: Send, status: int, text: str, headers: Headers) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    kind = b"text/html; charset=utf-8" if text.startswith("<!doctype") else b"text/plain; charset=utf-8"
    own = [(b"content-type", kind), (b"cache-control", b"no-store"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": text.encode()})
