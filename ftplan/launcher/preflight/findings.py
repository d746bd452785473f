"""What a check found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """How a check ended; `unknown` where what it looks at could not be observed."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    ERROR = "error"


_GRAVITY: Final = {status: place for place, status in enumerate(Status)}

GPU_MEMORY: Final = "GPU memory"
HOST_RAM: Final = "host RAM"
DISK: Final = "disk"
DATA: Final = "data"
WEIGHTS: Final = "weights"

FITTING: Final = frozenset({GPU_MEMORY, HOST_RAM, DISK})
"""Checks whose error says that the run does not fit; that of any other says that something is missing or broken."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: how it ended, in a sentence, with its figures by name (bytes, counts) and a fix where there is one."""

    check: str
    status: Status
    message: str
    fix: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def worst(findings: Iterable[Finding]) -> Status:
    """The gravest status among ``findings``; ok without any."""
    return max((finding.status for finding in findings), key=_GRAVITY.__getitem__, default=Status.OK)


def errors(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Those that should stop a run."""
    return tuple(finding for finding in findings if finding.status is Status.ERROR)
