"""The local page as users start it, and figures read off it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

END_SECONDS = 20
HOSTS = ("127.0.0.1",)
FIGURES = """
(root) => [...document.querySelectorAll(`${root} [data-path]`)].map(
  (each) => [each.dataset.path, each.dataset.kind, each.dataset.value, each.textContent])
"""


@contextmanager
def served(folder: Path, *options: str, is_attacked: bool = False, **environment: str) -> Iterator[dict[str, Any]]:
    """What ``ftplan ui`` says of itself, served from ``folder`` until the block ends.

    Its end is a clean one, without tracebacks; those of Gradio are expected where it ``is_attacked``.
    """
    command = [sys.executable, "-m", "ftplan", "ui", "--port", "0", "--json", *options]
    errors = (folder / "ui-errors.txt").open("w+")
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "ui-errors.txt").read_text()
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
            errors.close()
    errors_told = (folder / "ui-errors.txt").read_text()
    assert is_attacked or "Traceback" not in errors_told, errors_told


def figures(page: Any, root: str) -> dict[str, tuple[str, Any, str]]:
    """Kind, exact value and shown text of every figure below ``root``, by its path in the JSON document."""
    return {path: (kind, json.loads(value), text) for path, kind, value, text in page.evaluate(FIGURES, root)}


def value_at(document: Any, path: str) -> Any:
    """What the document holds at ``path``."""
    for part in path.split("."):
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document
