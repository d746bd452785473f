"""Time and cost of a whole training as text."""

from __future__ import annotations

from ftplan.render.console import duration, out, words
from ftplan.render.tables import print_parts
from ftplan.results import TrainingTime
from ftplan.units import HOUR_SECONDS


def print_training(training: TrainingTime | None) -> None:
    """The whole training and what its figures assume; nothing where none was asked for."""
    if training is None:
        return
    console = out()
    print_parts(words(training_line(training)))
    for note in training.notes:
        console.print(words(f"note: {note}"))


def training_line(training: TrainingTime) -> str:
    """One line: steps, hours, device-hours and dollars."""
    cost = "cost unknown: give --price" if training.dollars is None else f"${training.dollars:,.2f}"
    return (
        f"training {training.steps:,} steps of {duration(training.step_seconds)} · {duration(training.seconds)} · "
        f"{training.device_seconds / HOUR_SECONDS:,.2f} GPU-hours · {cost}"
    )
