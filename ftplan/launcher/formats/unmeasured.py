"""What an estimate rests on where a framework's loop was read, and never run beside it."""

from __future__ import annotations

from typing import Final

from ftplan.verdicts import Problem, Severity

WITHIN: Final = 0.1
"""How far a loop that was only read may be from its estimate; assumed."""


def unmeasured(title: str, source: str) -> Problem:
    """The note that every configuration of ``title`` gets; ``source`` is what was read."""
    return Problem(
        "assumption",
        Severity.NOTE,
        f"what {title} does with memory was read in its source, and not measured",
        source=source,
        may_need_more=True,
        may_need_less=True,
        within=WITHIN,
    )
