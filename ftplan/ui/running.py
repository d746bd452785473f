"""The tab that trains: launch the plan or the demo, watch a run, stop and resume it, look at earlier ones."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any, Final

import gradio as gr

from ftplan.errors import FtplanError, InputError
from ftplan.launcher import records
from ftplan.launcher.records import RunDir
from ftplan.render import pages
from ftplan.render.run_pages import run_piece, runs_piece, starting_piece
from ftplan.ui.session import Session, Settings, uploaded
from ftplan.workflows import background, reporting
from ftplan.workflows.background import LAUNCHES, Launched
from ftplan.workflows.reporting import RunReport, Runs

POLL_SECONDS: Final = 1.0
DEMO: Final = "the demo: a tiny model, offline, on this CPU"
PLAN: Final = "the plan of the first tab"
REHEARSAL: Final = "a rehearsal of that plan: random weights and tokens"
STOPPED: Final = ("interrupted", "failed", "abandoned")
REMEMBERED: Final[dict[str, Launched]] = {}
"""Runs that this process started, by folder: a page that is loaded again goes on watching them."""


_RESUMING: Final = Lock()
"""Two clicks must not resume one run twice."""


class RunTab:
    """What to train on the left, the run that is watched on the right, the list of all below."""

    def __init__(self, settings: Settings, session: gr.State) -> None:
        self.settings = settings
        with gr.Row(elem_classes="ftplan-columns"):
            with gr.Column(scale=2, min_width=280):
                self.what = gr.Radio([DEMO, PLAN, REHEARSAL], value=DEMO, label="Train")
                with gr.Group(visible=False) as self.trained:
                    self.data = gr.Textbox(label="Data", info="a file, a folder or a hub id")
                    self.file = gr.File(
                        label="Or drop a file", file_types=[".jsonl", ".json", ".csv", ".parquet"], height=110
                    )
                    self.epochs = gr.Number(None, label="Epochs")
                    self.max_steps = gr.Number(None, label="Or steps", precision=0)
                    self.rate = gr.Number(None, label="Learning rate", info="empty: usual for the method")
                    self.save_steps = gr.Number(None, label="Steps between checkpoints", precision=0)
                self.launch = gr.Button("Launch", variant="primary")
                self.said = gr.HTML(elem_id="run-said", elem_classes="ftplan")
            with gr.Column(scale=5, min_width=320):
                with gr.Row(equal_height=True):
                    self.run = gr.Dropdown([], label="Run", elem_id="run-choice", scale=3, min_width=240)
                    self.gpus = gr.Textbox(
                        "", label="Resume on other devices", placeholder="the same", scale=2, min_width=160
                    )
                with gr.Row():
                    self.stop = gr.Button("Save and stop", interactive=False, min_width=120)
                    self.resume = gr.Button("Resume", interactive=False, min_width=120)
                self.shown = gr.HTML(elem_id="run-shown", elem_classes="ftplan answer")
        gr.Markdown("### All runs")
        self.listed = gr.HTML(elem_id="run-list", elem_classes="ftplan")
        self.timer = gr.Timer(POLL_SECONDS, active=False)
        self._wire(session)

    def _wire(self, session: gr.State) -> None:
        private = {"api_visibility": "private"}
        options = [self.data, self.file, self.epochs, self.max_steps, self.rate, self.save_steps]
        self.what.change(lambda what: gr.Group(visible=what == PLAN), self.what, self.trained, **private)
        watched = [self.run, self.shown, self.stop, self.resume, self.listed]
        self.launch.click(
            self.launched, [session, self.what, *options], [self.said, self.run], show_progress="hidden", **private
        ).then(self.watched, [session, self.run], watched, show_progress="hidden", **private)
        self.stop.click(self.stopped, self.run, self.said, **private)
        self.resume.click(self.resumed, [self.run, self.gpus], self.said, **private)
        quiet = {"show_progress": "hidden", **private}
        self.run.input(self.chosen, [session, self.run], watched, **quiet)
        self.timer.tick(self.watched, [session, self.run], watched, **quiet)

    def opened(self, session: Session, run: str | None) -> tuple[Any, ...]:
        """The tab comes to the front: it begins to watch."""
        session.shown = None
        return (gr.Timer(active=True), *self.watched(session, run))

    def chosen(self, session: Session, run: str | None) -> tuple[Any, ...]:
        """Another run is looked at."""
        session.shown = None
        return self.watched(session, run)

    def launched(
        self,
        session: Session,
        what: str,
        data: str | None,
        file: str | None,
        epochs: float | None,
        max_steps: int | None,
        rate: float | None,
        save_steps: int | None,
    ) -> tuple[str, Any]:
        """Start what was asked for, and watch it."""
        try:
            if what == DEMO:
                one = background.start_demo(self.settings.runs)
            else:
                if session.plan is None:
                    raise InputError("there is no plan on the first tab", hint="plan first", field="plan")
                where = self._data(data, file) if what == PLAN else ""
                options = {"epochs": epochs, "max_steps": max_steps, "learning_rate": rate, "save_steps": save_steps}
                given = options if what == PLAN else {}
                one = background.start(self.settings.runs, session.plan, where, given, rehearse=what == REHEARSAL)
        except FtplanError as error:
            return pages.problem(error, "not launched"), gr.skip()
        REMEMBERED[str(one.folder)] = one
        session.shown = None
        return "", gr.Dropdown(choices=self._choices(), value=one.folder.name)

    def _data(self, data: str | None, file: str | None) -> str:
        return str(background.kept_data(self.settings.runs, uploaded(file))) if file else (data or "").strip()

    def stopped(self, run: str | None) -> str:
        """Ask the run to save and stop."""
        try:
            background.stop(self._folder(run))
        except FtplanError as error:
            return pages.problem(error, "not stopped")
        return "<p>It finishes its step, saves and stops.</p>"

    def resumed(self, run: str | None, gpus: str | None) -> str:
        """Go on with the run, on other devices where they are named."""
        try:
            with _RESUMING:
                folder = self._folder(run)
                if _is_alive(REMEMBERED.get(str(folder))):
                    raise InputError("it is starting already", hint="wait until it runs", field="run")
                one = background.resume(folder, (gpus or "").strip())
                REMEMBERED[str(folder)] = one
        except FtplanError as error:
            return pages.problem(error, "not resumed")
        return "<p>It goes on from its newest checkpoint.</p>"

    def _folder(self, run: str | None) -> Path:
        """The folder of a run of ours; raises InputError for anything else."""
        if not run or run not in self._choices():
            raise InputError("no run is chosen", hint="choose one of the list", field="run")
        return self.settings.runs / run

    def _choices(self) -> list[str]:
        """Runs by name, which begins with the time of their start, the last first; some have no folder yet."""
        here = [folder.name for folder in reporting.run_folders(self.settings.runs)]
        starting = [Path(folder).name for folder in REMEMBERED if Path(folder).parent == self.settings.runs]
        return sorted({*here, *starting}, reverse=True)

    def watched(self, session: Session, run: str | None) -> tuple[Any, ...]:
        """What is to be seen now; nothing is sent where nothing has changed.

        The choice of a run is the visitor's: it is sent only where what they chose is not there.
        """
        choices = self._choices()
        chosen = run if run in choices else next(iter(choices), None)
        state = (tuple(choices), chosen, *(self._changed(one) for one in choices))
        if session.shown == state:
            return (gr.skip(),) * 5
        session.shown = state
        listed = runs_piece(self._runs())
        picked = gr.Dropdown(choices=choices) if run == chosen else gr.Dropdown(choices=choices, value=chosen)
        if chosen is None:
            return picked, "<p>Nothing runs yet.</p>", *_buttons(), listed
        return picked, *self._seen(chosen), listed

    def _changed(self, run: str) -> tuple[Any, ...]:
        """What changes when the run has more to tell, or is killed without a word."""
        folder = self.settings.runs / run
        files = [*(folder / name for name in ("metrics.jsonl", "state.json", "log.txt", "record.json", "stop"))]
        files.append(self.settings.runs / LAUNCHES / f"{run}.txt")
        state = records.read_state(RunDir(folder))
        abandoned = state is not None and records.is_abandoned(RunDir(folder), state)
        one = REMEMBERED.get(str(folder))
        return (one.exit_code if one else None, abandoned, *(_stamp(file) for file in files))

    def _seen(self, run: str) -> tuple[Any, ...]:
        folder = self.settings.runs / run
        output = background.said(self.settings.runs / LAUNCHES / f"{run}.txt")
        one = REMEMBERED.get(str(folder))
        if not (folder / "job.json").exists():
            return starting_piece(run, output, one.exit_code if one else None), *_buttons()
        try:
            report = reporting.report(folder)
        except FtplanError as error:
            return pages.problem(error, "this run cannot be read"), *_buttons()
        assert isinstance(report, RunReport)
        log = output + "\n" + background.said(RunDir(folder).log)
        can_go_on = report.state in STOPPED and bool(report.way_on) and not _is_alive(one)
        can_stop = report.state == "running" and not background.is_stopping(folder)
        return run_piece(report, log), *_buttons(stop=can_stop, resume=can_go_on)

    def _runs(self) -> tuple[reporting.RunLine, ...]:
        try:
            found = reporting.report(self.settings.runs)
        except FtplanError:
            return ()  # there is none yet
        return found.runs if isinstance(found, Runs) else ()


def _is_alive(one: Launched | None) -> bool:
    return one is not None and one.exit_code is None


def _buttons(*, stop: bool = False, resume: bool = False) -> tuple[Any, Any]:
    return gr.Button(interactive=stop), gr.Button(interactive=resume)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
