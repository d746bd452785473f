"""The exception tree: what a user can meet, and the exit code each ends with.

::

    FtplanError
    ├── InputError                exit 2: the user's input cannot be used
    │   ├── UnknownNameError      a name that no catalogue holds; carries the nearest valid ones
    │   ├── InventoryError        an inventory that does not parse; carries where
    │   ├── ModelConfigError      a model config that does not map; carries the missing fields
    │   ├── BatchError            a global batch that does not split over the ranks
    │   ├── ConfigFileError       a framework's file that cannot be read or used; carries where
    │   ├── CannotExpressError    a configuration that a framework's files cannot say; carries the fields
    │   └── DataError             a data file that cannot be read or used
    ├── DoesNotFitError           exit 1: no configuration fits
    └── RunFailedError            exit 3: a launched run failed

Our own bugs are ``assert`` statements, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

FailureKind = Literal[
    "out_of_memory", "out_of_host_memory", "disk_full", "non_finite_loss", "killed", "lost_rank", "error"
]
"""What a run died of: a device's memory, the host's, a full disk, a loss or weights that are no numbers, a signal,
the connection to a rank that is gone or hangs, or anything else."""


class FtplanError(Exception):
    """Base of everything ftplan raises on purpose.

    Args:
        message: one sentence that says what is wrong.
        hint: what to do about it, or the valid values; may be empty.
        field: the option or config key at fault, as the user spells it; may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field


class InputError(FtplanError):
    """The user's input cannot be used."""


class UnknownNameError(InputError):
    """A name that no catalogue holds."""

    def __init__(self, what: str, name: str, valid: Iterable[str], *, field: str, hint: str = "") -> None:
        names = sorted(set(valid), key=lambda name: (name.lower(), name))
        super().__init__(f"unknown {what} {name!r}", hint=hint or _nearest(name, names), field=field)
        self.name = name
        self.valid = tuple(names)


class InventoryError(InputError):
    """An inventory that does not parse; ``start`` and ``end`` bound the offending part of ``text``."""

    def __init__(self, message: str, *, text: str, start: int, end: int, hint: str) -> None:
        pointer = f"  {text}\n  {' ' * start}{'^' * max(1, end - start)}"
        super().__init__(f"{message}\n{pointer}", hint=hint, field="gpus")
        self.text, self.start, self.end = text, start, end


class ModelConfigError(InputError):
    """A model config that does not map to a profile; ``missing`` names the fields it lacks."""

    def __init__(self, message: str, *, missing: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint, field="model")
        self.missing = tuple(missing)


class BatchError(InputError):
    """A global batch that does not split exactly over the ranks; ``nearest`` are those that do."""

    def __init__(self, message: str, *, nearest: Sequence[int]) -> None:
        choices = " or ".join(str(batch) for batch in nearest)
        super().__init__(message, hint=f"use a global batch of {choices}", field="global_batch")
        self.nearest = tuple(nearest)


class ConfigFileError(InputError):
    """A framework's file or command line that cannot be read or used; ``line`` counts from 1, 0 if there is none.

    The message stays one line, whatever the file or what stands in it is called.
    """

    def __init__(self, message: str, *, file: str, line: int = 0, hint: str = "", field: str = "") -> None:
        message, hint = message.replace("\n", "?"), hint.replace("\n", "?")
        super().__init__(f"{message} (line {line})" if line else message, hint=hint, field=field)
        self.file, self.line = file, line


class CannotExpressError(InputError):
    """A configuration that a framework's files cannot say; ``fields`` names what."""

    def __init__(self, framework: str, fields: Mapping[str, object], *, hint: str = "") -> None:
        told = ", ".join(f"{name} {value}" for name, value in fields.items())
        hint = hint or f"pin another value, or choose another --format than {framework}"
        super().__init__(f"{framework} cannot express {told}", hint=hint, field=next(iter(fields), ""))
        self.framework, self.fields = framework, tuple(fields)


class DataError(InputError):
    """A data file that cannot be read, parsed or used."""


class DoesNotFitError(FtplanError):
    """No configuration fits."""

    exit_code = 1


class RunFailedError(FtplanError):
    """A launched run failed; ``kind`` is a `FailureKind`, what it died of."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", kind: FailureKind = "error") -> None:
        super().__init__(message, hint=hint)
        self.kind: FailureKind = kind


def _nearest(name: str, valid: Sequence[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=4, cutoff=0.5)
    if close:
        return "did you mean " + ", ".join(by_lower[key] for key in close) + "?"
    return "valid: " + ", ".join(valid[:12]) + (", …" if len(valid) > 12 else "")
