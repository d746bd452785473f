"""A merge as text: what will be done, how far it is, and what came of it."""

from __future__ import annotations

import shlex

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from ftplan.launcher.events import Noted
from ftplan.launcher.merge_job import MergeEvent, MergeProgressed, MergeStated
from ftplan.render.console import duration, err, is_live, note, out, size, words
from ftplan.render.progress import ProgressDisplay
from ftplan.workflows.merging import Merged


class MergeDisplay(ProgressDisplay):
    """Progress of a merge on stderr: what it will take, and a bar on a terminal."""

    def __init__(self) -> None:
        console = err()
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
        super().__init__(Progress(*columns, console=console, disable=not is_live()))
        self._task = self._progress.add_task("reading", total=None)

    def show(self, event: MergeEvent) -> None:
        """Show one event."""
        if isinstance(event, Noted):
            note(f"note: {event.message}")
        elif isinstance(event, MergeStated):
            files = "1 file" if event.files == 1 else f"{event.files} files"
            text = f"merging {event.changed_weights} of {event.weights} weights of {event.base}: "
            text += f"{size(event.written_bytes)} in {files}, with at most {size(event.peak_bytes)} of RAM"
            note(text)
            self._progress.update(self._task, total=event.written_bytes, description="merging")
        elif isinstance(event, MergeProgressed):
            self._progress.update(self._task, completed=event.written_bytes)


def print_merged(merged: Merged, *, brief: bool = False) -> None:
    """What was written, and what it took."""
    console = out()
    files = "1 file" if merged.files == 1 else f"{merged.files} files"
    done = f": {size(merged.written_bytes)} in {files}, {duration(merged.seconds)}"
    console.print(words(("merged", "bold green"), done))
    if brief:
        return
    console.print(words(f"peak RAM {size(merged.peak_bytes)}, {size(merged.stated_peak_bytes)} were stated"))
    console.print(words(f"model: {shlex.quote(merged.out)}"), soft_wrap=True)
