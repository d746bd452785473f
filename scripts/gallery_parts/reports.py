"""Pictures of the pages that ``--report`` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.gallery_parts import browser
from scripts.gallery_parts.catalogue import REPORT_VIEWS, Report

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def make(report: Report, run: Callable[[str, int], object], folder: Path, out: Path, chromium: Browser) -> None:
    """Write the report in ``folder`` with its command, and photograph it in every view."""
    run(report.command, report.code)
    page_file = folder / report.command.split()[-1]
    for view in REPORT_VIEWS:
        with browser.window(chromium, view) as page:
            page.goto(page_file.as_uri())
            page.locator(".verdict").first.wait_for()
            browser.photograph(page, view, out / f"{report.name}-{view.name}.png", folder)
