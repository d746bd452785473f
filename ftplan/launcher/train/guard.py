"""Keeps a worker from outliving those it works for, and turns SIGTERM into a request to save and stop.

Light, because it must be in place before the heavy imports. Everything happens in a thread of its own: the main thread
may hang in a collective, because another rank is dead, exactly when a signal arrives.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Final

from ftplan.launcher.process import LAUNCHER_PID
from ftplan.launcher.records import is_alive

POLL_SECONDS: Final = 0.5
EXIT_ORPHANED: Final = 75


class Guard:
    """Watches the processes this one depends on; ``stop_requested`` is set once SIGTERM has come.

    torchrun sends SIGTERM in two cases: somebody asked it to end, or another worker died. In the second case the step
    can never be finished, so the worker ends at once when one of its ``peers`` is gone.
    """

    def __init__(self) -> None:
        self.stop_requested = threading.Event()
        self._agent = os.getppid()
        launcher = os.environ.get(LAUNCHER_PID)
        self._launcher = int(launcher) if launcher else None
        self._peers: tuple[int, ...] = ()
        self._training = False

    def start(self) -> None:
        """Take SIGTERM over. Call it before any other thread exists, because threads inherit the signal mask."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=self._watch, name="ftplan-guard", daemon=True).start()

    def training_begins(self, peers: tuple[int, ...]) -> None:
        """From now on a SIGTERM lets the step finish; ``peers`` are the workers on this machine."""
        self._peers = peers
        self._training = True

    def training_ends(self) -> None:
        """From now on peers may end, each in its own time."""
        self._peers = ()

    def _watch(self) -> None:
        while True:
            time.sleep(POLL_SECONDS)
            if _sigterm_came():
                if not self._training:
                    os._exit(128 + signal.SIGTERM)
                self.stop_requested.set()
            if self._orphaned():
                self._end_agent()
                os._exit(EXIT_ORPHANED)
            if self.stop_requested.is_set() and not all(map(is_alive, self._peers)):
                os._exit(EXIT_ORPHANED)

    def _end_agent(self) -> None:
        """End torchrun, too, if it is still there: it would start this worker again, up to its number of restarts."""
        if self._agent != self._launcher and os.getppid() == self._agent:
            os.kill(self._agent, signal.SIGTERM)

    def _orphaned(self) -> bool:
        return os.getppid() != self._agent or (self._launcher is not None and not is_alive(self._launcher))


def _sigterm_came() -> bool:
    """Whether SIGTERM, which every thread blocks, has come since the last look.

    ``sigtimedwait`` would wait for it, but in CPython 3.11 it returns unfilled memory in the place of None when another
    signal interrupts it as the time is up (signal_sigtimedwait_impl): under ZeRO-3 that stopped trainings.
    """
    if signal.SIGTERM not in signal.sigpending():
        return False
    signal.sigwait({signal.SIGTERM})
    return True
