"""Pictures of the local page: ``ftplan ui`` as a process, walked through in Chromium."""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.gallery_parts import browser
from scripts.gallery_parts.catalogue import INPUTS, PAGE_VIEWS, TABS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

COMMAND: Final = ("ftplan", "ui", "--port", "0", "--json")
START_SECONDS: Final = 60
RUN_MS: Final = 150_000
SETTLED_MS: Final = 400
"""After what a picture waits for is there: for what Gradio fades in and out."""
MIDWAY: Final = re.compile(r"(?<!\d)[2-5]\d of 60 steps")


@contextmanager
def served(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The address of the page while it is served from ``folder``."""
    with (folder / "ui.txt").open("wb") as said:
        process = subprocess.Popen(COMMAND, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=said)
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        if not select.select([process.stdout], [], [], START_SECONDS)[0]:
            raise RuntimeError(f"ftplan ui says nothing after {START_SECONDS} s")
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"ftplan ui ended with {process.wait()}: {(folder / 'ui.txt').read_text('utf-8')}")
        yield json.loads(line)["url"]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        finally:
            process.kill()
            process.stdout.close()


class Walk:
    """One visitor of the page, who takes pictures of those tabs that are wanted."""

    def __init__(self, page: Page, view: str, url: str, wanted: frozenset[str], folder: Path, out: Path) -> None:
        self.page, self._view, self._folder, self._out = page, view, folder, out
        self._wanted = {tab.name for tab in TABS if tab.name in wanted and view in tab.views}
        page.goto(url)
        self._answered("#plan-answer")

    def take(self, name: str) -> None:
        """A picture of what is there now, if it is one of the gallery."""
        if name in self._wanted:
            self.page.evaluate("window.scrollTo(0, 0)")
            self.page.wait_for_timeout(SETTLED_MS)
            file = self._out / f"{name}-{self._view}.png"
            browser.photograph(self.page, PAGE_VIEWS[self._view], file, self._folder)

    def plan_and_compare(self) -> None:
        """The plan, and another one beside it."""
        self.take("page-plan")
        if "page-compare" not in self._wanted:
            return
        self.page.get_by_role("button", name="Keep as A").click()
        self.page.locator("#kept").get_by_text("Kept as A").wait_for()
        self.page.get_by_role("radio", name="qlora", exact=True).check()
        self.page.locator("#plan-answer .choice").filter(has_text="qlora").wait_for()
        self._answered("#plan-answer")
        self._open("Compare")
        self.page.locator("#comparison table").first.wait_for()
        self.take("page-compare")

    def check(self) -> None:
        """Files of LLaMA-Factory and DeepSpeed, dropped."""
        if "page-check" not in self._wanted:
            return
        self._open("Check")
        self.page.get_by_role("textbox", name="Devices", exact=False).locator("visible=true").first.fill("4x24GB")
        files = [str(self._folder / name) for name in INPUTS]
        self.page.set_input_files("#check-files input[type=file]", files)
        self._answered("#check-answer")
        self.take("page-check")

    def launch(self) -> None:
        """Start the demo."""
        self.watch()
        self.page.get_by_role("button", name="Launch").click()

    def watch(self) -> None:
        """Open the tab of runs."""
        self._open("Run")
        self.page.get_by_role("button", name="Launch").wait_for()

    def midway(self) -> None:
        """The demo when some of its steps are done."""
        self._shows(MIDWAY)
        self.take("page-run")

    def finished(self) -> None:
        """The demo when all of them are."""
        self._shows(re.compile("finished"), " .verdict")
        self.take("page-finished")

    def _shows(self, pattern: re.Pattern[str], part: str = "") -> None:
        self.page.locator(f"#run-shown{part}").filter(has_text=pattern).first.wait_for(timeout=RUN_MS)

    def _open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def _answered(self, selector: str) -> None:
        """The answer is there, and exact."""
        self.page.locator(f"{selector} .verdict").first.wait_for()
        self.page.wait_for_function(
            "selector => !document.querySelector(selector).querySelector('.draft')", arg=selector
        )


def make(wanted: frozenset[str], folder: Path, environment: Mapping[str, str], out: Path, chromium: Browser) -> None:
    """Serve the page and take its pictures, a visitor for each view."""
    runs = bool(wanted & {"page-run", "page-finished"})
    with served(folder, environment) as url, ExitStack() as stack:
        walks = []
        for name, view in PAGE_VIEWS.items():
            page = stack.enter_context(browser.window(chromium, view))
            walks.append(Walk(page, name, url, wanted, folder, out))
            walks[-1].plan_and_compare()
            walks[-1].check()
        watching = [walk for walk in walks if walk is not walks[1]] if runs else []
        if not runs:
            return
        watching[0].launch()
        for walk in watching[1:]:
            walk.watch()
        for walk in watching:
            walk.midway()
        for walk in watching:
            walk.finished()
