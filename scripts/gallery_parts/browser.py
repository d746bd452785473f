"""Chromium without a network, and small pictures of what it shows."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scripts.gallery_parts.catalogue import View
from scripts.gallery_parts.document import PICTURE_BYTES
from scripts.gallery_parts.drawing import refuse_local

if TYPE_CHECKING:
    from PIL.Image import Image
    from playwright.sync_api import Browser, Page

FLAGS: Final = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
VARIABLE: Final = "FTPLAN_CHROMIUM"
TALLEST: Final = 1400
"""Of a picture, in pixels of the page: what comes below is not shown."""
COLOURS: Final = (256, 128, 64, 48, 32)
OURS: Final = ("file:", "data:", "blob:", "about:", "http://127.0.0.1:")
WAIT_MS: Final = 30_000

NEUTRAL_SCRIPT: Final = """folder => {
    const clean = text => text.replaceAll(folder + "/", "").replaceAll(folder, ".");
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode())
        if (walk.currentNode.data.includes(folder)) walk.currentNode.data = clean(walk.currentNode.data);
    for (const field of document.querySelectorAll("input, textarea"))
        if (field.value.includes(folder)) field.value = clean(field.value);
}"""
SEEN_SCRIPT: Final = """() => document.body.innerText + "\\n" +
    [...document.querySelectorAll("input:not([type=file]), textarea")].map(field => field.value).join("\\n")"""


def chromium() -> str:
    """The program; raises FileNotFoundError where there is none."""
    found = os.environ.get(VARIABLE) or next((path for name in NAMES if (path := shutil.which(name))), "")
    if not found:
        raise FileNotFoundError(f"no Chromium: none of {', '.join(NAMES)} is on PATH, and {VARIABLE} is not set")
    return found


@contextmanager
def opened() -> Iterator[Browser]:
    """A browser, closed in the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def window(browser: Browser, view: View) -> Iterator[Page]:
    """A page in a window of its own. Ends with RuntimeError where a script failed, or asked for another machine."""
    context = browser.new_context(
        viewport={"width": view.width, "height": view.height},
        color_scheme=view.scheme,
        device_scale_factor=view.scale,
        is_mobile=view.is_phone,
        has_touch=view.is_phone,
        reduced_motion="reduce",
    )
    context.set_default_timeout(WAIT_MS)
    wrong: list[str] = []

    def answer(route: Any) -> None:
        if route.request.url.startswith(OURS):
            route.continue_()
        else:
            wrong.append(f"asked for {route.request.url}")
            route.abort()

    context.route("**/*", answer)
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(f"a script failed: {error}"))
    try:
        yield page
    finally:
        context.close()
    if wrong:
        raise RuntimeError(f"{view.words}: {'; '.join(wrong)}")


def photograph(page: Page, view: View, file: Path, folder: Path) -> None:
    """Take what the page shows, to the height of `TALLEST`; raises ValueError where it tells of this machine."""
    page.evaluate(NEUTRAL_SCRIPT, str(folder))
    refuse_local(page.evaluate(SEEN_SCRIPT), file.name)
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > view.width:
        raise RuntimeError(f"{file.name}: the page is {wide} px wide in a window of {view.width}")
    tall = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
    # A window as tall as the picture: what sticks to its lower edge is at the picture's.
    page.set_viewport_size({"width": view.width, "height": tall})
    taken = page.screenshot(animations="disabled", caret="hide")
    page.set_viewport_size({"width": view.width, "height": view.height})
    file.write_bytes(small(taken))


def small(png: bytes) -> bytes:
    """The picture with as many colours as its size allows; raises ValueError where even few are too many."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in COLOURS:
        buffer = io.BytesIO()
        _with_palette(image, colours).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= PICTURE_BYTES:
            return buffer.getvalue()
    raise ValueError(f"a picture of {image.width} x {image.height} has {buffer.tell():,} bytes")


def _with_palette(image: Image, colours: int) -> Image:
    """The picture with its commonest colours, exactly: a page is flat areas, which Pillow would tint."""
    import numpy as np
    from PIL import Image as Images

    all_pixels = np.asarray(image, dtype=np.int32).reshape(-1, 3)
    packed = all_pixels @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    _, first, inverse, counts = np.unique(packed, return_index=True, return_inverse=True, return_counts=True)
    known = all_pixels[first]
    kept = known[np.argsort(-counts, kind="stable")[:colours]]
    nearest = np.array([((kept - one) ** 2).sum(axis=1).argmin() for one in known], dtype=np.uint8)
    made = Images.frombytes("P", image.size, nearest[inverse].tobytes())
    made.putpalette(kept.astype(np.uint8).tobytes())
    return made
