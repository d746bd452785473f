"""The tab that checks somebody's own configuration: pasted, or dropped as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import gradio as gr

from ftplan.errors import FtplanError
from ftplan.launcher.formats.registry import FORMATS
from ftplan.planner.inventory import parse_inventory
from ftplan.profiles.models import list_models
from ftplan.render import pages
from ftplan.ui import asking
from ftplan.ui.session import Session, Settings, zipped
from ftplan.workflows import dropped, picturing

TELL: Final = "as the files tell"
SUFFIXES: Final = [".yaml", ".yml", ".json", ".jsonc", ".sh", ".bash", ".slurm", ".sbatch", ".py"]
FIXES_SHOWN: Final = 9


class CheckTab:
    """Files and devices on the left, the verdict on the right, the fixes to save below it."""

    def __init__(self, settings: Settings, session: gr.State) -> None:
        self.settings = settings
        with gr.Row(elem_classes="ftplan-columns"):
            with gr.Column(scale=2, min_width=280):
                self.files = gr.File(
                    label="Files of LLaMA-Factory, axolotl, DeepSpeed, accelerate, TRL, …",
                    file_count="multiple",
                    file_types=SUFFIXES,
                    height=150,
                    elem_id="check-files",
                )
                self.text = gr.Textbox(
                    label="Or paste one",
                    lines=8,
                    max_lines=20,
                    placeholder="model_name_or_path: …",
                    elem_id="check-text",
                )
                self.gpus = gr.Textbox("2x24GB", label="Devices", info="8xRTX4090, 2x8xH100, 1xA100-80GB+1xRTX3090")
                self.framework = gr.Dropdown([TELL, *FORMATS], value=TELL, label="Whose files")
                self.model = gr.Dropdown(
                    [TELL, *(model.id for model in list_models())],
                    value=TELL,
                    label="Model",
                    info="where the files name none",
                    allow_custom_value=not settings.hosted,
                )
                self.check = gr.Button("Check", variant="primary")
            with gr.Column(scale=5, min_width=320):
                self.answer = gr.HTML(
                    "<p>Nothing is executed, and nothing but these files is read.</p>",
                    elem_id="check-answer",
                    elem_classes="ftplan answer",
                )
                with gr.Row():
                    self.fix = gr.Dropdown([], label="Fix", visible=False)
                    self.download = gr.DownloadButton("Save the mended files", visible=False)
        given = [session, self.files, self.text, self.gpus, self.framework, self.model]
        shown = [self.answer, self.fix, self.download]
        gr.on(
            [self.check.click, self.files.upload, self.gpus.submit],
            self.checked,
            given,
            shown,
            api_visibility="private",
        )
        self.fix.change(self.mended, [session, self.fix], self.download, api_visibility="private")

    def checked(
        self, session: Session, files: list[str] | None, text: str, gpus: str, framework: str, model: str
    ) -> tuple[str, Any, Any]:
        """The verdict on what was dropped, else on what was pasted."""
        hidden = gr.DownloadButton(visible=False)
        try:
            texts = dropped.texts_of((Path(file).name, Path(file).read_bytes()) for file in files or ())
            if self.settings.hosted:
                asking.refuse_local_devices(gpus)
                asking.refuse_large(parse_inventory(gpus))
            session.checked = dropped.check(
                texts or dropped.pasted(text),
                gpus,
                framework="" if framework == TELL else framework,
                model="" if model in (TELL, None) else model,
                hosted=self.settings.hosted,
            )
        except FtplanError as error:
            session.checked = None
            return pages.problem(error, "cannot be checked"), gr.Dropdown(visible=False), hidden
        fixes = session.checked.check.fixes[:FIXES_SHOWN]
        choices = [(f"{number}: {fix.what}", number) for number, fix in enumerate(fixes, start=1)]
        piece = pages.piece(picturing.of_check(session.checked))
        chosen = gr.Dropdown(choices=choices, value=1 if choices else None, visible=bool(choices))
        return piece, chosen, self.mended(session, 1) if choices else hidden

    def mended(self, session: Session, number: int | None) -> Any:
        """The files with one of the fixes, to save; nothing where a fix is no edit of files."""
        hidden = gr.DownloadButton(visible=False)
        if session.checked is None or not number or number > len(session.checked.check.fixes):
            return hidden
        try:
            files = dropped.fixed(session.checked, session.checked.check.fixes[number - 1])
        except FtplanError:
            return hidden  # the page says of each fix whether it is an edit of these files
        return gr.DownloadButton(
            f"Save the files with fix {number}", value=zipped(files, f"fix-{number}"), visible=True
        )
