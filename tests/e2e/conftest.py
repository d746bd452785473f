"""A browser for tests of pages: offline unless a page is served from here, and strict about what a page says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

CHROMIUMS: Final = ("chromium", "chromium-browser", "google-chrome")
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NO_CHROMIUM: Final = (
    "no Chromium here, which pip cannot install: apt-get install chromium, or name one in FTPLAN_CHROMIUM"
)
PATIENCE_MS: Final = 45_000
"""Of a machine with other work."""
LOCAL: Final = frozenset({"file", "data", "blob"})


def chromium() -> str | None:
    """The program to test with, None if there is none."""
    named = os.environ.get("FTPLAN_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, CHROMIUMS)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that use it are skipped without one, but fail in CI."""
    program = chromium()
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(NO_CHROMIUM)
        pytest.skip(NO_CHROMIUM)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, headless=True, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page with any options of a Playwright context.

    The test fails on anything that the page says on its console, on any error in it, and on any request that leaves
    this machine: for anything but files, data and blobs, or ``hosts``, such as a server on 127.0.0.1. ``said`` are
    warnings of a library that it is known to give.
    """
    contexts, wrong = [], []

    def start(url: str, *, hosts: tuple[str, ...] = (), said: tuple[str, ...] = (), **options: Any) -> Any:
        context = browser.new_context(**{"offline": not hosts, "viewport": {"width": 1100, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", lambda message: _hear(message, said, wrong))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda request: _check(request.url, hosts, wrong))
        page.goto(url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert wrong == []


def _hear(message: Any, expected: tuple[str, ...], wrong: list[str]) -> None:
    if message.type != "warning" or message.text not in expected:
        wrong.append(f"console {message.type}: {message.text}")


def _check(url: str, hosts: tuple[str, ...], wrong: list[str]) -> None:
    parts = urlsplit(url)
    if parts.scheme not in LOCAL and parts.hostname not in hosts:
        wrong.append(f"request: {url}")
