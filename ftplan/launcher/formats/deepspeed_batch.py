"""DeepSpeed's three numbers of a batch: two of them decide the third, for so many processes (runtime/config.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.verdicts import Problem, Severity

WHOLE: Final = "train_batch_size"
SOURCE: Final = "deepspeed 0.19.8 runtime/config.py, _set_batch_related_parameters"


def resolved(part: Partial, ranks: int) -> Partial:
    """Micro-batch and accumulation that the stated batch of all ``ranks`` processes decides; nothing without one."""
    origin = part.beside.get(WHOLE)
    if not isinstance(origin, Setting):
        return Partial()
    whole = stated_whole(origin)
    fields = _decided(part.fields, whole, ranks)
    problems = tuple(_inconsistent({**part.fields, **fields}, whole, ranks, origin))
    return Partial(fields, dict.fromkeys(fields, origin), problems=problems)


def stated_whole(origin: Setting) -> int:
    """The stated batch of all processes, which its reader found to be an integer."""
    return Settings({origin.key: origin}).integer(origin.key, 1, least=1)


def _decided(stated: Mapping[str, Any], whole: int, ranks: int) -> dict[str, int]:
    """What is not stated, rounded down as DeepSpeed does, which then refuses what does not come out even."""
    micro, accumulation = stated.get("micro_batch"), stated.get("accumulation")
    if micro is not None and accumulation is not None:
        return {}
    if micro is not None:
        return {"accumulation": max(1, whole // ranks // micro)}
    found = {"micro_batch": max(1, whole // ranks // (accumulation or 1))}
    return found if accumulation is not None else {**found, "accumulation": 1}


def _inconsistent(fields: Mapping[str, Any], whole: int, ranks: int, origin: Setting) -> Iterator[Problem]:
    micro, accumulation = fields["micro_batch"], fields["accumulation"]
    if micro * accumulation * ranks != whole:
        yield Problem(
            "conflict",
            Severity.ERROR,
            f"{WHOLE} is {whole}, not {micro} a device * {accumulation} accumulated * {ranks} processes",
            hint=f"leave {WHOLE} out, or write {micro * accumulation * ranks}",
            key=WHOLE,
            place=origin.place,
            source=SOURCE,
        )
