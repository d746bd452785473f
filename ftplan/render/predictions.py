"""Predictions as text: progress, and the scores before and after side by side."""

from __future__ import annotations

import shlex

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ftplan.launcher.events import Noted
from ftplan.launcher.predict_job import PredictEvent, PredictProgressed, Scores
from ftplan.render.console import duration, err, is_live, note, out, words
from ftplan.render.progress import ProgressDisplay
from ftplan.render.tables import Column, print_table
from ftplan.workflows.predicting import Prediction

_FIGURES = (
    ("loss", "loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:,.2f}"),
    ("exact match", "exact_match", "{:.1%}"),
    ("ROUGE-1", "rouge1", "{:.3f}"),
    ("ROUGE-2", "rouge2", "{:.3f}"),
    ("ROUGE-L", "rouge_l", "{:.3f}"),
)
_DONE = {"loss": "losses", "predictions": "predictions"}


class PredictDisplay(ProgressDisplay):
    """Progress of predictions on stderr: a bar on a terminal, a line for each part elsewhere."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(Progress(*columns, console=err(), disable=not is_live()))
        self._task = self._progress.add_task("loading", total=None)

    def show(self, event: PredictEvent) -> None:
        """Show one event."""
        if isinstance(event, Noted):
            note(f"note: {event.message}")
        elif isinstance(event, PredictProgressed):
            text = f"{_DONE[event.what]} {event.side}"
            self._progress.update(self._task, description=text, completed=event.done, total=event.total)
            if self._progress.disable and event.done == event.total:
                note(f"{text}: {event.done} of {event.total}")


def print_prediction(prediction: Prediction, *, brief: bool = False) -> None:
    """The scores, side by side where there are two; or all in one line."""
    console = out()
    if brief:
        scores = _scores(prediction.before, prediction.after)
        console.print(words(", ".join(f"{name} {' -> '.join(told[:2])}" for name, *told in scores)), soft_wrap=True)
        return
    of = f" of {prediction.available:,}" if prediction.available > prediction.rows else ""
    tokens = f", {prediction.after.tokens:,} tokens of completions" if prediction.after.loss is not None else ""
    rows = f"{prediction.rows:,}{of} rows{tokens}"
    console.print(words((rows, "bold"), f" · {prediction.device}, {prediction.dtype}, {duration(prediction.seconds)}"))
    _print_scores(prediction.before, prediction.after)
    console.print(words(f"predictions: {shlex.quote(prediction.predictions)}"), soft_wrap=True)


def _print_scores(before: Scores | None, after: Scores) -> None:
    heads = ("before", "after", "change") if before is not None else ("score",)
    print_table((Column("", "name"), *(Column(head) for head in heads)), _scores(before, after))


def _scores(before: Scores | None, after: Scores) -> list[tuple[str, ...]]:
    """The name of each figure that is known, and its values."""
    return [
        _score(name, form, getattr(after, field), before, field)
        for name, field, form in _FIGURES
        if getattr(after, field) is not None
    ]


def _score(name: str, form: str, after: float, before: Scores | None, field: str) -> tuple[str, ...]:
    if before is None:
        return (name, form.format(after))
    earlier = getattr(before, field)
    if earlier is None:
        return (name, "-", form.format(after), "")
    return (name, form.format(earlier), form.format(after), form.replace("{:", "{:+").format(after - earlier))
