"""What all tests share: Hypothesis's settings, and golden files with one command to refresh them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

GOLDEN = Path(__file__).parent / "golden"
REFRESH_VARIABLE = "FTPLAN_UPDATE_GOLDEN"

_NUMBERS = count()

settings.register_profile("ftplan", max_examples=80, deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ftplan")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-golden", action="store_true", help="write the golden files instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--refresh-golden"):
        os.environ[REFRESH_VARIABLE] = "1"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script's background job ignores Ctrl-C, and so would the runs that tests stop by it.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the user of this machine calibrated must not change a test, nor a test what is kept."""
    monkeypatch.setenv("FTPLAN_DATA", str(tmp_path_factory.getbasetemp() / f"data-{next(_NUMBERS)}"))


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare a text with the golden file of that name; with ``--refresh-golden``, write it."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get(REFRESH_VARIABLE):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: pytest tests/golden --refresh-golden"
        assert text == path.read_text(encoding="utf-8"), "refresh with pytest tests/golden --refresh-golden"

    return compare
