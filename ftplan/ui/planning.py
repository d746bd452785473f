"""The tab that plans: controls on the left, the answer on the right, its files below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import gradio as gr

from ftplan.errors import FtplanError
from ftplan.render import pages
from ftplan.ui import asking
from ftplan.ui.controls import controls
from ftplan.ui.session import Session, Settings, zipped
from ftplan.workflows import picturing, planning
from ftplan.workflows.emitting import NATIVE, valid_names

MOST_SAMPLES: Final = 512
"""Of a step, on up to eight cards."""
SHARED: Final = {"concurrency_id": "plans"}
"""What plans and checks are worked on together, no more at once than `ftplan.ui.app.VISITORS`."""


class PlanTab:
    """Its components and what they do. The answer comes twice: in some 50 ms by the fit, then exactly."""

    def __init__(self, settings: Settings, session: gr.State) -> None:
        self.settings = settings
        self._controls = controls(hosted=settings.hosted)
        with gr.Row(elem_classes="ftplan-columns"):
            with gr.Column(scale=2, min_width=280, elem_classes="ftplan-controls"):
                inputs = self._made()
            with gr.Column(scale=5, min_width=320):
                self.answer = gr.HTML(elem_id="plan-answer", elem_classes="ftplan answer")
                with gr.Row():
                    self.keep = gr.Button("Keep as A to compare with", size="sm")
                self.kept = gr.Markdown("", elem_id="kept", container=False)
                gr.Markdown("### Files to run it with")
                with gr.Row():
                    names = [name for name in valid_names() if name not in ("slurm", "skypilot", "kubeflow")]
                    self.format = gr.Dropdown(names, value=NATIVE, label="Whose files")
                    self.write = gr.Button("Write files")
                    self.download = gr.DownloadButton("Save as ZIP", visible=False)
                self.files = gr.HTML(elem_id="plan-files", elem_classes="ftplan")
        self.inputs = inputs
        self._wire(session)

    def _made(self) -> list[gr.components.Component]:
        """The components of the controls, each group in a fold."""
        made = {each.name: each.make() for each in self._controls if not each.group}
        for group in dict.fromkeys(each.group for each in self._controls if each.group):
            with gr.Accordion(group, open=False):
                made |= {each.name: each.make() for each in self._controls if each.group == group}
        return [made[each.name] for each in self._controls]

    def _wire(self, session: gr.State) -> None:
        # A hosted page queues all of it, so that many visitors share the machine in turns.
        quick = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private", **SHARED}
        asked = [session, *self.inputs]
        events = [component.input for component in self.inputs]
        answer = [self.answer, self.files, self.download]
        drafted = gr.on(events, self.draft, asked, answer, queue=self.settings.hosted, **quick)
        devices = [self._made_as("count"), self._made_as("machines")]
        gr.on(
            [one.change for one in devices],
            _splits,
            devices,
            self._made_as("global_batch"),
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        drafted.then(self.exact, asked, self.answer, **quick)
        self.keep.click(self.kept_now, session, self.kept, api_visibility="private")
        self.write.click(
            self.written, [session, self.format], [self.files, self.download], api_visibility="private", **SHARED
        )

    def _made_as(self, name: str) -> gr.components.Component:
        """The component of the control ``name``."""
        return next(made for each, made in zip(self._controls, self.inputs, strict=True) if each.name == name)

    def _values(self, given: Sequence[Any]) -> dict[str, Any]:
        return dict(zip((each.name for each in self._controls), given, strict=True))

    def draft(self, session: Session, *given: Any) -> tuple[str, str, Any]:
        """The answer by the fit, at once; what was made of the plan before goes."""
        session.asked, session.picture = given, None
        return self._drafted(given), "", gr.DownloadButton(visible=False)

    def _drafted(self, given: Sequence[Any]) -> str:
        values = self._values(given)
        try:
            drawn = picturing.draft(asking.request_of(values, hosted=self.settings.hosted))
        except FtplanError as error:
            return pages.problem(error)
        return pages.piece(drawn, asking.command(values))

    def exact(self, session: Session, *given: Any) -> Any:
        """The answer with every allocation of the choice played; what the visitor has moved on from is dropped."""
        if session.asked != given:
            return gr.skip()
        values = self._values(given)
        picture = None
        try:
            request = asking.request_of(values, hosted=self.settings.hosted)
            picture = picturing.of_plan(planning.plan(request), shows_files=False)
            shown = pages.piece(picture, asking.command(values))
        except FtplanError as error:
            shown = pages.problem(error)
        if session.asked != given:
            return gr.skip()
        # The marks of all that was estimated are most of it, and drawn.
        session.picture = replace(picture, landscape=()) if picture is not None else None
        return shown

    def kept_now(self, session: Session) -> str:
        """Keep the plan to be compared with."""
        if session.picture is None or session.picture.config is None:
            return "There is no plan to keep."
        session.kept = session.picture
        return "Kept as A: change the plan, and open **Compare**."

    def written(self, session: Session, name: str) -> tuple[str, Any]:
        """The files of one tool, shown and as an archive."""
        hidden = gr.DownloadButton(visible=False)
        if session.plan is None or session.plan.config is None:
            return pages.rendered("problem.html.j2", {}, title="no files", message="there is no plan", hint=""), hidden
        try:
            files = picturing.file_set(session.plan, name)
        except FtplanError as error:
            return pages.problem(error), hidden
        if files.problem:
            return pages.files_piece(session.plan, files), hidden
        archive = zipped(files.files, f"ftplan-{name}")
        return pages.files_piece(session.plan, files), gr.DownloadButton(value=archive, visible=True)


def _splits(count: float | None, machines: float | None) -> Any:
    """The slider of batches in steps that split evenly over so many cards; its box takes any other number, too."""
    ranks = int(count or 1) * int(machines or 1)
    return gr.Slider(minimum=0, maximum=MOST_SAMPLES * max(1, ranks // 8), step=ranks)
