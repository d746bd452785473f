"""The page on an address: on loopback for this user, behind a token for anyone else's machine, or hosted for all."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import uvicorn

from ftplan.errors import InputError
from ftplan.ui.app import application
from ftplan.ui.guard import Guard
from ftplan.ui.session import Settings

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
TOKEN_VARIABLE: Final = "FTPLAN_UI_TOKEN"  # noqa: S105 - the name of a variable
"""Holds the token that a page is to ask for, wherever it is."""


@dataclass(frozen=True)
class Address:
    """Where the page is, and the token that it asks for, empty for none."""

    host: str
    port: int
    token: str

    @property
    def url(self) -> str:
        """To be opened by who may."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        name = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(name, name)  # noqa: S104 - what is bound, as one calls it
        return f"http://{name}:{self.port}/" + (f"?token={self.token}" if self.token else "")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_for(host: str, *, hosted: bool, asked: bool) -> str:
    """The token that a page on ``host`` asks for: the environment's, else one that is made up.

    None is made up on loopback or hosted, unless it is ``asked`` for.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given or (not asked and (hosted or is_loopback(host))):
        return given
    return secrets.token_urlsafe(24)


def serve(settings: Settings, host: str, port: int, token: str, tell: Callable[[Address], None]) -> None:
    """Serve the page until it is interrupted; ``tell`` is called once it can be opened.

    ``port`` 0 takes any that is free. Raises InputError where the address cannot be had.
    """
    bound = _bound(host, port)
    address = Address(host, bound.getsockname()[1], token)
    names = None if settings.hosted or not is_loopback(host) else (*LOOPBACK, host)
    config = uvicorn.Config(
        _guarded(settings, names, token),
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    _Telling(config, lambda: tell(address)).run(sockets=[bound])


def hosted() -> Guard:
    """The page for strangers, for any ASGI server: ``uvicorn --factory ftplan.ui.serving:hosted``."""
    return _guarded(Settings(hosted=True), None, os.environ.get(TOKEN_VARIABLE, ""))


def _guarded(settings: Settings, names: tuple[str, ...] | None, token: str) -> Guard:
    """The page behind its guard; hosted without a token there is nothing that another site could misuse."""
    own_origin = bool(token) or not settings.hosted
    return Guard(application(settings), names=names, token=token, own_origin=own_origin, framed=settings.hosted)


class _Telling(uvicorn.Server):
    """A server that says when it has started."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; that pages which are still open lose their streams is no error."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as undone:
            made = undone.enter_context(socket.socket(family, kind, protocol))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
            made.listen()
            undone.pop_all()
    except OSError as error:
        hint = "another --port, or --port 0 for any that is free"
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint, field="port") from error
    except UnicodeError as error:  # a label that is empty or has over 63 characters
        hint = "an address of this machine, such as --host 127.0.0.1, or 0.0.0.0 for all it has"
        raise InputError(f"cannot listen on {host}:{port}: this is no host's name", hint=hint, field="host") from error
    return made
