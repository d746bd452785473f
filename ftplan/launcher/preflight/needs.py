"""What one run needs of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from ftplan.estimators.checkpoint_size import CheckpointSize
from ftplan.spec import RunConfig


@dataclass(frozen=True, slots=True)
class Needs:
    """A configuration with its figures: bytes that each local rank needs of its card, in rank order, and of the host.

    Empty ``card_bytes`` are those of a run on CPUs. ``packages`` are those it needs beside `TRAINING`. ``size`` is what
    it writes, None where that is not known, ``keep`` how many checkpoints it keeps, ``saves`` whether it writes
    anything. ``nodes`` are the machines that take part. A ``foreign`` run trains by the libraries of another
    environment.
    """

    config: RunConfig
    card_bytes: tuple[int, ...]
    host_bytes: int
    packages: tuple[str, ...]
    size: CheckpointSize | None
    keep: int
    nodes: int = 1
    saves: bool = True
    foreign: bool = False

    @property
    def on_gpus(self) -> bool:
        """Whether it trains on cards."""
        return bool(self.card_bytes)

    @property
    def ranks(self) -> int:
        """Cards it takes on this machine; 0 on a CPU."""
        return len(self.card_bytes)
