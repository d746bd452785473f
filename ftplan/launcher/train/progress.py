"""How far a training is: what went through the model, and when it will end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ftplan.launcher.events import RankMemory


@dataclass(frozen=True, slots=True)
class Seen:
    """What one rank has put through the model in training, padding included.

    ``token_pairs`` sums for each token the length of its row; ``largest`` is the micro-batch with most tokens.
    """

    tokens: int = 0
    token_pairs: int = 0
    largest: int = 0

    def with_rows(self, rows: int, length: int, limit: int) -> Seen:
        """After ``rows`` more of ``length`` tokens, which attend to ``limit`` at most: packed ones are joined."""
        tokens = rows * length
        return Seen(self.tokens + tokens, self.token_pairs + tokens * min(length, limit), max(self.largest, tokens))


@dataclass(frozen=True, slots=True)
class RankReport:
    """What the ranks tell one another at a logged step."""

    seen: Seen
    memory: RankMemory


def totals(reports: Sequence[RankReport]) -> Seen:
    """What all ranks have seen."""
    seen = [report.seen for report in reports]
    return Seen(sum(one.tokens for one in seen), sum(one.token_pairs for one in seen), max(one.largest for one in seen))


class Pace:
    """Time since the training began in this attempt, and until it ends.

    The first reported step is left out of the pace: it waits for kernels, memory and connections.
    """

    def __init__(self, step: int) -> None:
        self._began = self._since = time.monotonic()
        self._from_step = step
        self._warm = False

    def at(self, step: int, total_steps: int) -> tuple[float, float]:
        """Seconds elapsed and left after ``step``."""
        now = time.monotonic()
        left = (now - self._since) / max(1, step - self._from_step) * (total_steps - step)
        if not self._warm:
            self._warm, self._since, self._from_step = True, now, step
        return now - self._began, left


def scalars(memory: Sequence[RankMemory], figures: dict[str, float | None]) -> Iterator[tuple[str, float]]:
    """``figures`` and every rank's memory, by the names that trackers show; what is unknown is left out."""
    yield from ((name, value) for name, value in figures.items() if value is not None)
    for rank in memory:
        for name in ("allocated_bytes", "reserved_bytes", "process_bytes", "host_bytes"):
            if (value := getattr(rank, name)) is not None:
                yield f"memory_{name}/rank_{rank.rank}", float(value)
