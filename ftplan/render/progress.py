"""What displays of something that takes long have in common."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import Progress


class ProgressDisplay:
    """Shows ``progress`` while it is entered."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
