"""The tab that compares the plan that was kept with the one in front of the visitor."""

from __future__ import annotations

from typing import Final

import gradio as gr

from ftplan.render.comparisons import comparison
from ftplan.ui.session import Session

HOW: Final = "Keep a plan as A on the first tab, change it there, and come back: it stands beside the new one here."


class CompareTab:
    """A table of figures and settings, and both timelines."""

    def __init__(self) -> None:
        gr.Markdown(HOW)
        self.shown = gr.HTML(elem_id="comparison", elem_classes="ftplan answer")
        self.swap = gr.Button("Take the newest plan as A", size="sm")

    def show(self, session: Session) -> str:
        """The comparison as it is now."""
        left, right = session.kept, session.picture
        if left is None or left.config is None:
            return "<p>Nothing is kept yet.</p>"
        if right is None or right.config is None:
            return "<p>There is no plan on the first tab to compare with.</p>"
        return comparison(left, right)

    def kept_now(self, session: Session) -> str:
        """Keep the plan of now as A."""
        if session.picture is None or session.picture.config is None:
            return "<p>There is no plan on the first tab to keep.</p>" + self.show(session)
        session.kept = session.picture
        return self.show(session)
