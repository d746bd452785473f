"""Who may use the page: ASGI middleware that knows no framework.

- A page on loopback answers to loopback's names alone, so that no website can reach it by a name of its own (DNS
  rebinding), and what changes anything must come from the page itself (cross-site request forgery).
- With a token, nothing is answered without it: given once in the address (``?token=…``) or in the form, then kept in a
  cookie that scripts cannot read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from html import escape
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE: Final = "ftplan_token"
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
    """``app`` for those who may: ``names`` are the hosts it answers to (None: any), ``token`` what it asks for."""

    def __init__(self, app: App, *, names: Iterable[str] | None = None, token: str = "", framed: bool = False) -> None:
        self._app = app
        self._names = None if names is None else frozenset(name.lower() for name in names)
        self._token = token
        self._framed = framed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or hand on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _answer(scope, send, *refused)
            return
        await self._app(scope, receive, self._with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """Status, text and headers of a refusal, or of the way in; None for who may enter."""
        host = headers.get(b"host", "")
        if self._names is not None and _name(host) not in self._names:
            return 421, "this page does not answer to that name", []
        origin = headers.get(b"origin", "")
        changes = scope["type"] == "websocket" or scope.get("method", "GET") not in ("GET", "HEAD", "OPTIONS")
        if changes and origin and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "this came from another site", []
        if not self._token or self._is_known(headers.get(b"cookie", "")):
            return None
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if given and hmac.compare_digest(given.encode(), self._token.encode()):
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            cookie = f"{COOKIE}={self._proof}; HttpOnly; SameSite=Strict; Path=/{secure}"
            place = scope.get("root_path", "") + scope.get("path", "/")
            return 303, "", [(b"set-cookie", cookie.encode()), (b"location", _local(place).encode())]
        return 401, FORM.format(escape("That was not the token." if given else TOLD)), []

    @property
    def _proof(self) -> str:
        """What the cookie holds: shows that the token was known, and is not the token."""
        return hashlib.sha256(b"ftplan page " + self._token.encode()).hexdigest()

    def _is_known(self, cookies: str) -> bool:
        found = re.search(rf"(?:^|;\s*){COOKIE}=([0-9a-f]{{64}})(?:;|$)", cookies)
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


def _local(path: str) -> str:
    """``path`` as a place on this host: two slashes would name another."""
    return "/" + path.lstrip("/\\")


async def _answer(scope: Scope, send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]]) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    kind = b"text/html; charset=utf-8" if text.startswith("<!doctype") else b"text/plain; charset=utf-8"
    own = [(b"content-type", kind), (b"cache-control", b"no-store"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": text.encode()})
