"""Starts the probe and collects what it measured: a part that hangs or dies is left out, and the others go on."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ftplan.launcher import diagnosis, monitor
from ftplan.launcher.probe.parts import parts_for
from ftplan.launcher.process import Child

MODULE: Final = "ftplan.launcher.probe"
POLL_SECONDS: Final = 0.05
EXIT_SECONDS: Final = 10.0
NO_TIME: Final = "no time was left for it"


@dataclass(frozen=True, slots=True)
class Part:
    """One part that ended: its figures, or the reason why there are none."""

    name: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What to measure: one device or all of ``ranks``. ``kind`` is cuda or cpu; ``env`` says which devices are seen."""

    kind: str
    ranks: int = 1
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, float]:
        """Its parts with the seconds each may take."""
        return parts_for(self.kind, grouped=self.ranks > 1)

    def argv(self, out: Path, limit_seconds: float, parts: list[str]) -> list[str]:
        """The command that measures ``parts`` and writes them to ``out``."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.ranks)]
        start = [sys.executable, *(torchrun if self.ranks > 1 else []), "-m", MODULE]
        return [*start, "--device", self.kind, "--out", str(out), "--limit", f"{limit_seconds:.0f}", *parts]


@dataclass(slots=True)
class Probed:
    """What came out of a probe: figures by name, reasons by part, and the version of torch."""

    torch: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Take the figures or the failure of ``part``."""
        self.figures |= part.figures
        if part.failed:
            self.failures[part.name] = part.failed


def run_probe(probe: Probe, deadline: float, on_part: Callable[[Part], None]) -> Probed:
    """Measure every part of ``probe`` before ``deadline`` (`time.monotonic`), handing each on as it ends.

    A part that takes too long, or whose process dies, fails; a new process measures those after it.
    """
    found = Probed()
    left = probe.parts

    def take(part: Part) -> None:
        left.pop(part.name, None)
        found.add(part)
        on_part(part)

    while left:
        reason = _attempt(probe, left, deadline, found, take) if time.monotonic() < deadline else NO_TIME
        if left:
            take(Part(next(iter(left)), failed=reason))
    return found


def _attempt(
    probe: Probe, left: Mapping[str, float], deadline: float, found: Probed, take: Callable[[Part], None]
) -> str:
    """Run one process until it ends or a part takes too long; returns why a part that is left then failed."""
    with tempfile.TemporaryDirectory(prefix="ftplan-probe-") as folder:
        out, log = Path(folder, "parts.jsonl"), Path(folder, "log.txt")
        # Its own alarm ends it if this process is killed.
        argv = probe.argv(out, max(1.0, deadline - time.monotonic() + 5), list(left))
        with Child(argv, probe.env, log) as child:
            lines, since = monitor.LineReader(out), time.monotonic()
            while not (reason := _too_long(left, since, deadline)):
                outcome = child.wait(POLL_SECONDS)
                for line in lines.read():
                    since = time.monotonic()
                    _take_line(line, found, take)
                if outcome is not None:
                    return diagnosis.last_line(log) or f"its process ended with {outcome.exit_code or outcome.signal}"
        return reason


def _too_long(left: Mapping[str, float], since: float, deadline: float) -> str:
    """What to say of the part that is measured ``since`` then, if it takes too long; after all of them, of the end."""
    now, limit = time.monotonic(), next(iter(left.values()), EXIT_SECONDS)
    if now > deadline:
        return NO_TIME
    return f"took longer than {limit:.0f} s" if now - since > limit else ""


def _take_line(line: bytes, found: Probed, take: Callable[[Part], None]) -> None:
    told = json.loads(line)
    if "part" in told:
        take(Part(told["part"], told.get("figures", {}), told.get("failed", "")))
    else:
        found.torch = told["torch"]
