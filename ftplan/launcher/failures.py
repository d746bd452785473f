"""An exception as what a run reports: what it died of, in one line, and what to do about it.

Classes are told by name and libraries by their words, because their modules are heavy, and because few raise a class of
their own.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from ftplan.errors import FailureKind, FtplanError
from ftplan.launcher.events import Failed

MESSAGE_LINES: Final = 3
MESSAGE_CHARACTERS: Final = 600
"""What of an exception goes into a report; the log has all of it."""

_BY_CLASS: Final[Mapping[str, FailureKind]] = {
    "OutOfMemoryError": "out_of_memory",
    "MemoryError": "out_of_host_memory",
    "NonFiniteLossError": "non_finite_loss",
    "DistBackendError": "lost_rank",
    "DistNetworkError": "lost_rank",
}
_BY_WORDS: Final[Mapping[FailureKind, tuple[str, ...]]] = {
    # Drivers, cuBLAS; torch's allocator of the host.
    "out_of_memory": ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
    "out_of_host_memory": ("can't allocate memory", "not enough memory"),
    # The kernel; torch's archive writer, which keeps the reason to itself (caffe2/serialize/inline_container.cc).
    "disk_full": ("No space left on device", "PytorchStreamWriter failed", "Disk quota exceeded"),
    # gloo's transport and its monitored calls, NCCL's watchdog, torch's store.
    "lost_rank": (
        "Connection closed by peer",
        "Connection reset by peer",
        "Connection refused",
        "Broken pipe",
        "Timed out waiting",
        "timed out",
        "NCCL communicator was aborted",
        "failed to recv",
    ),
}
HINTS: Final[Mapping[str, str]] = {
    "out_of_memory": "plan with a larger margin, a smaller micro-batch, or more sharding",
    "out_of_host_memory": "plan with a smaller micro-batch or without offload, or give the processes more RAM",
    "disk_full": "free space, keep fewer checkpoints (--keep), or choose another --run-dir",
    "non_finite_loss": "lower the learning rate, or use bf16 or fp32 instead of fp16",
}


OUT_OF_MEMORY: Final[frozenset[str]] = frozenset({"out_of_memory", "out_of_host_memory"})
"""On a CPU, whose memory is both."""


def failed(rank: int, error: BaseException) -> Failed:
    """``error`` of ``rank`` as an event."""
    kind = kind_of(error)
    hint = error.hint if isinstance(error, FtplanError) else HINTS.get(kind, "")
    return Failed(rank=rank, kind=kind, message=message_of(error), hint=hint)


def kind_of(error: BaseException) -> FailureKind | Literal["input"]:
    """What ``error`` shows that the run died of."""
    if isinstance(error, FtplanError):
        return "input"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    return kind_of_told([each.__name__ for each in type(error).__mro__], str(error))


def kind_of_told(names: Iterable[str], text: str) -> FailureKind:
    """What an exception shows that the run died of: the ``names`` of its class and bases, and its message."""
    for name in names:
        if name in _BY_CLASS:
            return _BY_CLASS[name]
    return next((kind for kind, words in _BY_WORDS.items() if any(word in text for word in words)), "error")


def message_of(error: BaseException) -> str:
    """The first lines of ``error``, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return " ".join(lines[:MESSAGE_LINES])[:MESSAGE_CHARACTERS]
