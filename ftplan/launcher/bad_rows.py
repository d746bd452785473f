"""Rows that cannot be used: where they are, why, and how many; a data set is refused for them unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ftplan.errors import DataError

SHOWN: Final = 10
"""Bad rows that are shown; all are counted."""

SKIP: Final = "--skip-bad-rows trains on the others"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row starts: the file or data set, and the line (of a hub's data set: the row), counted from 1.

    ``row`` is its number in a JSON array.
    """

    origin: str
    line: int
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.origin}, line {self.line}" + (f", row {self.row}" if self.row is not None else "")


@dataclass(slots=True)
class BadRows:
    """Collects bad rows: counts all, keeps the first `SHOWN`."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, place: Place, why: str) -> None:
        """Take note of one."""
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{place}: {why}")

    def refuse(self, total: int, *, skip: bool, hint: str) -> None:
        """Raise DataError if there are any of ``total`` rows and they may not be skipped, or none other is left."""
        if self.count and (not skip or self.count == total):
            raise DataError(self.told(total), hint=hint if self.count == total else f"{hint}; {SKIP}", field="data")

    def told(self, total: int) -> str:
        """What is wrong, the first of them line by line."""
        if self.count == 1 and total > 1:
            return self.shown[0]
        more = [f"… and {self.count - len(self.shown)} more"] if self.count > len(self.shown) else []
        lines = "".join(f"\n  {line}" for line in (*self.shown, *more))
        return f"{self.count} of {total} rows cannot be used:{lines}"
