"""How soon the local page follows a slider, in a real browser: ``python -m benchmarks.page``.

From the key that moves a slider to the new answer in the document, for models and cards of several sizes; and until the
exact answer has taken the quick one's place. Beside them, in the same run, what Gradio takes for an answer that costs
nothing (``echo``). Needs Chromium, and the extras ``ui`` and ``dev``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Final

FLAGS: Final = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
MOVES: Final = 12
GOAL_SECONDS: Final = 0.2
CASES: Final = (
    ("Qwen/Qwen2.5-7B", "2x24GB"),
    ("Qwen/Qwen2.5-0.5B", "1x24GB"),
    ("meta-llama/Llama-3.1-70B", "8xH100"),
    ("mistralai/Mixtral-8x7B-v0.1", "2x8xA100-80GB"),
)
SLIDERS: Final = ("Sequence length, tokens", "Kept free, % of a card")
ECHO: Final = """
import gradio as gr, uvicorn, fastapi
with gr.Blocks(analytics_enabled=False) as page:
    slider, answer = gr.Slider(0, 1000, step=1, label="Number"), gr.HTML("<p>-</p>", elem_id="plan-answer")
    slider.input(lambda value: f"<p>{value}</p>", slider, answer, queue=False, show_progress="hidden")
app = fastapi.FastAPI()
gr.mount_gradio_app(app, page, path="/", ssr_mode=False)
uvicorn.run(app, port=PORT, log_level="error")
"""
WATCH: Final = """
() => {
  window.told = [];
  const answer = document.querySelector("#plan-answer");
  const seen = () => window.told.push([performance.now(), !!answer.querySelector(".draft")]);
  new MutationObserver(seen).observe(answer, { childList: true, subtree: true });
  addEventListener("keydown", () => { window.pressed = performance.now(); window.told = []; }, true);
}
"""


def main() -> None:
    """Measure every case and print one JSON line."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("FTPLAN_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        server = subprocess.Popen(
            [sys.executable, "-m", "ftplan", "ui", "--port", "0", "--json"],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            quick, exact = _page(browser, url)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
        echo = _echo(browser)
        browser.close()
    print(
        json.dumps(
            {"benchmark": "page", "moves": len(quick), **_told("quick", quick), **_told("exact", exact)}
            | _told("echo", echo)
            | {
                "quick_over_echo": round(_middle(quick) / _middle(echo), 2),
                "within_goal": sum(one < GOAL_SECONDS for one in quick) / len(quick),
            }
        )
    )


def _page(browser: Any, url: str) -> tuple[list[float], list[float]]:
    page = browser.new_context(viewport={"width": 1300, "height": 900}).new_page()
    page.goto(url)
    page.wait_for_selector("#plan-answer .verdict", timeout=60_000)
    page.get_by_role("button", name="Machine and training").click()
    page.evaluate(WATCH)
    quick, exact = [], []
    for model, gpus in CASES:
        _write(page, "Model", model)
        _write(page, "Devices in words", gpus)
        page.wait_for_function(
            "([m, g]) => { const h = document.querySelector('#plan-answer h1')?.textContent ?? '';"
            " return h.includes(m) && h.includes(g); }",
            arg=[model, gpus],
            timeout=60_000,
        )
        page.wait_for_timeout(3000)
        for label in SLIDERS:
            page.get_by_role("slider", name=label).focus()
            for _ in range(MOVES // len(SLIDERS)):
                page.keyboard.press("ArrowRight")
                page.wait_for_function(
                    "() => window.told.some(([, draft]) => draft) && !window.told.at(-1)[1]", timeout=60_000
                )
                pressed, told = page.evaluate("[window.pressed, window.told]")
                quick.append((next(moment for moment, draft in told if draft) - pressed) / 1000)
                exact.append((told[-1][0] - pressed) / 1000)
    return quick, exact


def _write(page: Any, label: str, text: str) -> None:
    field = page.get_by_label(label, exact=False).first
    field.fill(text)
    field.press("Enter")
    field.press("Tab")


def _echo(browser: Any) -> list[float]:
    """The same of a page whose answer takes no time."""
    port = 7999
    server = subprocess.Popen([sys.executable, "-c", ECHO.replace("PORT", str(port))])
    try:
        page = browser.new_page()
        for _ in range(60):
            try:
                page.goto(f"http://127.0.0.1:{port}/")
                break
            except Exception:
                page.wait_for_timeout(500)
        page.wait_for_selector("#plan-answer p", timeout=60_000)
        page.evaluate(WATCH)
        page.get_by_role("slider").focus()
        found = []
        for _ in range(MOVES):
            page.keyboard.press("ArrowRight")
            page.wait_for_function("() => window.told.length", timeout=60_000)
            pressed, told = page.evaluate("[window.pressed, window.told]")
            found.append((told[0][0] - pressed) / 1000)
            page.wait_for_timeout(200)
        return found
    finally:
        server.terminate()
        server.wait(30)


def _middle(seconds: list[float]) -> float:
    return statistics.median(seconds)


def _told(name: str, seconds: list[float]) -> dict[str, float]:
    return {f"{name}_median_seconds": round(_middle(seconds), 3), f"{name}_worst_seconds": round(max(seconds), 3)}


if __name__ == "__main__":
    main()
