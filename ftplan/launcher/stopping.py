"""What Ctrl-C and SIGTERM mean to a run: first finish the step, save and stop; then end at once; then kill."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

from ftplan.launcher.process import Child

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """Counts the signals this process receives while it is entered, instead of dying of them.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. Outside the main thread, where Python
    allows no handlers, it counts nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self._obeyed = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def obey(self, child: Child, stop_file: Path, *, training: bool) -> None:
        """Act on requests not acted on yet.

        Before the training has begun there is nothing to save: the first request ends the processes.
        """
        if self.count == self._obeyed:
            return
        self._obeyed = self.count
        if self.count == 1 and training:
            stop_file.touch()
        elif self.count <= 2:
            child.terminate()
        else:
            child.kill()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
