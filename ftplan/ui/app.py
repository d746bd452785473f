"""The page as an application: the tabs, their styles, and what guards them."""

from __future__ import annotations

import os
from typing import Any, Final

import gradio as gr
from fastapi import FastAPI

from ftplan import __version__
from ftplan.render.pages import asset
from ftplan.ui.checking import CheckTab
from ftplan.ui.comparing import CompareTab
from ftplan.ui.planning import SHARED, PlanTab
from ftplan.ui.running import RunTab
from ftplan.ui.session import Session, Settings, page_folder

LARGEST_UPLOAD: Final = {True: "1mb", False: "2gb"}
"""By whether the page is hosted; data sets are dropped into one's own."""
KEPT_SECONDS: Final = {True: 3600, False: 14 * 24 * 3600}
"""Of what was dropped, by whether the page is hosted: one's own may lie there for days before a run is launched."""
VISITORS: Final = 4
"""Plans and checks that are worked on at once."""
WAITING: Final = 64
"""Requests that wait for that; more are told to come again."""
SESSIONS: Final = {True: 200, False: 10_000}
"""Visitors that are remembered, by whether the page is hosted; each has a plan or two of some hundred kilobytes."""


def blocks(settings: Settings) -> gr.Blocks:
    """The page, not yet served."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Gradio keeps what is dropped into the page in a folder of all users otherwise.
    os.environ["GRADIO_TEMP_DIR"] = str(page_folder())
    with gr.Blocks(
        analytics_enabled=False, title="ftplan", fill_width=True, delete_cache=(3600, KEPT_SECONDS[settings.hosted])
    ) as made:
        session = gr.State(Session())
        gr.HTML(f'<h1 class="ftplan-title">ftplan <small>{__version__}</small></h1>')
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Plan", id="plan"):
                plan = PlanTab(settings, session)
            with gr.Tab("Compare", id="compare") as comparing:
                compare = CompareTab()
            with gr.Tab("Check", id="check"):
                CheckTab(settings, session)
            if not settings.hosted:
                with gr.Tab("Run", id="run") as running:
                    run = RunTab(settings, session)
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        comparing.select(compare.show, session, compare.shown, **private)
        compare.swap.click(compare.kept_now, session, compare.shown, **private)
        asked = [session, *plan.inputs]
        first = [plan.answer, plan.files, plan.download]
        made.load(plan.draft, asked, first, **private, **SHARED).then(
            plan.exact, asked, plan.answer, **private, **SHARED
        )
        if not settings.hosted:
            shown = [run.timer, run.run, run.shown, run.stop, run.resume, run.listed]
            running.select(run.opened, [session, run.run], shown, **private)
    made.queue(default_concurrency_limit=VISITORS, max_size=WAITING if settings.hosted else None)
    made.state_session_capacity = SESSIONS[settings.hosted]
    # Only then does Gradio refuse paths that it did not get from the visitor; `launch`, which is not called, sets it.
    made.has_launched = True
    return made


def application(settings: Settings) -> FastAPI:
    """The page as an ASGI application; nothing guards it yet (`ftplan.ui.serving`)."""
    app = FastAPI(title="ftplan", docs_url=None, redoc_url=None, openapi_url=None)
    theme = gr.themes.Base(
        primary_hue="blue",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
    gr.mount_gradio_app(
        app,
        blocks(settings),
        path="/",
        theme=theme,
        css=asset("page.css") + asset("ui.css"),
        head=f"<script>{asset('page.js')}{asset('ui.js')}</script>",
        footer_links=[],
        ssr_mode=False,
        max_file_size=LARGEST_UPLOAD[settings.hosted],
        show_error=not settings.hosted,
    )
    return app
