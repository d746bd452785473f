"""LLaMA-Factory's ``trainer_log.jsonl`` as events.

Its LogCallback (train/callbacks.py) writes a line each time transformers logs: ``current_steps``, ``total_steps``,
``loss`` or ``eval_loss``, ``lr``, ``epoch``, ``elapsed_time``; where tokens are counted ``throughput`` (tokens a second
since the start) and ``total_tokens``; with RECORD_VRAM ``vram_allocated`` and ``vram_reserved`` (GiB, two decimals).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.launcher.diagnosis import root_cause
from ftplan.launcher.events import Evaluated, Event, Failed, RankMemory, Stepped
from ftplan.launcher.failures import HINTS, kind_of_told
from ftplan.units import GIB

LOG_FILE: Final = "trainer_log.jsonl"
_PARAMETERS: Final = re.compile(r"trainable params: ([\d,]+) \|\| all params: ([\d,]+)")
_EXCEPTION: Final = re.compile(
    r"^(?:\[rank\d+\]:\s*)?((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception)): ?(.*)$", re.MULTILINE
)
_CLOCK: Final = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")


class LogReader:
    """Turns lines into events; keeps what one line tells against the last.

    ``first_step`` is the step that the attempt goes on from: LLaMA-Factory then counts steps and tokens on, and the
    time anew.
    """

    def __init__(self, first_step: int = 0) -> None:
        self.step = first_step
        self.memory: tuple[RankMemory, ...] = ()
        self._seconds = 0.0
        self._tokens: float | None = None

    def events(self, line: bytes) -> Iterator[Event]:
        """The events of one line; none for a line that is no step, or that is no JSON."""
        try:
            told = json.loads(line)
        except ValueError:
            return
        if not isinstance(told, Mapping):
            return
        if "loss" in told:
            yield self._stepped(told)
        elif "eval_loss" in told:
            yield Evaluated(step=int(told["current_steps"]), loss=float(told["eval_loss"]))

    def _stepped(self, told: Mapping[str, Any]) -> Stepped:
        step, tokens, seconds = int(told["current_steps"]), float(told.get("total_tokens", 0)), _elapsed(told)
        steps = max(1, step - self.step)
        passed = max(seconds - self._seconds, 0.0)
        # What the steps of an earlier attempt took in is not told apart: the mean stands for it.
        taken_in = tokens * steps / step if self._tokens is None else tokens - self._tokens
        self.step, self._seconds, self._tokens = step, seconds, tokens
        self.memory = (_memory(told),)
        return Stepped(
            step=step,
            total_steps=int(told["total_steps"]),
            epoch=float(told.get("epoch", 0.0)),
            loss=float(told["loss"]),
            learning_rate=float(told.get("lr", 0.0)),
            grad_norm=None,
            step_seconds=passed / steps,
            tokens_per_second=taken_in / passed if passed else 0.0,
            memory=self.memory,
        )


def parameters(text: str) -> tuple[int, int] | None:
    """All and trainable parameters, as LLaMA-Factory's output tells them."""
    found = _PARAMETERS.search(text)
    return (int(found[2].replace(",", "")), int(found[1].replace(",", ""))) if found else None


def failure(text: str) -> Failed | None:
    """The exception in the output's end that tells most: the first of those whose cause is known, or of all.

    Those after it follow from it, or are torchrun's.
    """
    return root_cause([_failed(found[1], found[2]) for found in _EXCEPTION.finditer(text)])


def _failed(name: str, text: str) -> Failed:
    kind = kind_of_told([name.rpartition(".")[2]], text)
    return Failed(rank=0, kind=kind, message=f"{name}: {text}".strip(": "), hint=HINTS.get(kind, ""))


def _elapsed(told: Mapping[str, Any]) -> float:
    """Seconds since the start: from the tokens where they are counted, because the clock is told in whole seconds."""
    tokens, rate = float(told.get("total_tokens", 0)), float(told.get("throughput", 0.0))
    if tokens and rate:
        return tokens / rate
    found = _CLOCK.fullmatch(str(told.get("elapsed_time", "")))
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    return float(days * 86_400 + hours * 3600 + minutes * 60 + seconds)


def _memory(told: Mapping[str, Any]) -> RankMemory:
    allocated, reserved = (_gib(told.get(name)) for name in ("vram_allocated", "vram_reserved"))
    return RankMemory(rank=0, allocated_bytes=allocated, reserved_bytes=reserved, process_bytes=None, host_bytes=None)


def _gib(told: object) -> int | None:
    """0 is what LLaMA-Factory tells without a GPU."""
    return int(told * GIB) if isinstance(told, int | float) and told > 0 else None
