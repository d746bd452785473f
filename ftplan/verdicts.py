"""Frozen outputs of a check: what is wrong with somebody's configuration, and what would mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from ftplan.results import Advice, Estimate
from ftplan.spec import RunConfig


class Verdict(StrEnum):
    """Whether a configuration runs on the devices: within the margin, only just, not, or not to be told."""

    FITS = "fits"
    TIGHT = "tight"
    OOM = "oom"
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """How much a problem matters: it ends the run or its result, it costs something, it is worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Place:
    """Where a setting stands: a file and a line from 1 (0: no line, such as a command line's word)."""

    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


NOWHERE: Final = Place()


@dataclass(frozen=True)
class Problem:
    """Something that a check found.

    Attributes:
        kind: ``memory``, ``host-memory``, ``unmodelled``, ``unknown-key``, ``renamed-key``, ``removed-key``,
            ``unresolved``, ``conflict``, ``devices``, ``inefficiency`` or ``assumption``.
        message: one sentence.
        hint: what to do about it; may be empty.
        key: the setting at fault in the file's own vocabulary.
        source: where it is documented, or seen, that this is so.
        may_need_more: what is not modelled may raise memory, so that "fits" cannot be told.
        may_need_less: what is not modelled may lower it, so that "oom" cannot be told.
        within: by at most which part of the memory it may do so; None if nothing bounds it.
        needed_bytes, available_bytes: of a problem with memory.

    """

    kind: str
    severity: Severity
    message: str
    hint: str = ""
    key: str = ""
    place: Place = NOWHERE
    source: str = ""
    may_need_more: bool = False
    may_need_less: bool = False
    within: float | None = None
    needed_bytes: int | None = None
    available_bytes: int | None = None


@dataclass(frozen=True)
class Change:
    """One edit in a file's own vocabulary: ``old`` or ``new`` is None where the key is absent before or after."""

    file: str
    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Fix:
    """A change that makes the configuration fit, verified by the estimator.

    Attributes:
        what: in words.
        fields: the fields of the configuration that change, with their new values.
        changes: the edits that make them.
        new_files: files that the changed ones refer to, by name.
        speed_ratio: tokens per second over those of the configuration as it is.
        keeps_result: training gives the same model: nothing about method, rank, length or global batch changes.

    """

    what: str
    fields: Mapping[str, Any]
    changes: tuple[Change, ...]
    config: RunConfig
    estimate: Estimate
    speed_ratio: float
    keeps_result: bool
    new_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PhaseVerdict:
    """The worst rank's device memory in one phase, all of its process."""

    phase: str
    bytes: int
    available_bytes: int
    fits: bool


@dataclass(frozen=True)
class Check:
    """The answer to ``ftplan check``.

    ``config`` and ``estimate`` are None where a named problem keeps them from being told; then ``verdict`` is unknown.
    """

    framework: str
    version: str
    files: tuple[str, ...]
    inventory: str
    ranks: int
    global_batch: int | None
    config: RunConfig | None
    estimate: Estimate | None
    verdict: Verdict
    phases: tuple[PhaseVerdict, ...]
    problems: tuple[Problem, ...]
    fixes: tuple[Fix, ...]
    advice: tuple[Advice, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether it fits, if only just, and nothing would refuse it."""
        refused = any(problem.severity is Severity.ERROR for problem in self.problems)
        return self.verdict in (Verdict.FITS, Verdict.TIGHT) and not refused
