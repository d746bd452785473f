"""FSDP as accelerate's and transformers' files ask for it: version, strategy, offload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import FALSE, Setting, Settings
from ftplan.verdicts import NOWHERE, Place, Problem, Severity

STRATEGIES: Final[Mapping[str, str]] = {
    "FULL_SHARD": "fsdp2",
    "SHARD_GRAD_OP": "fsdp2-grad-op",
    "HYBRID_SHARD": "hsdp",
    "HYBRID_SHARD_ZERO2": "hsdp",
    "NO_SHARD": "ddp",
}
"""FSDP1's names; torch.distributed.fsdp.ShardingStrategy, whose numbers 1 to 5 are in this order but for the fourth."""
BY_NUMBER: Final = {
    "1": "FULL_SHARD",
    "2": "SHARD_GRAD_OP",
    "3": "NO_SHARD",
    "4": "HYBRID_SHARD",
    "5": "HYBRID_SHARD_ZERO2",
}
FSDP1_WITHIN: Final = 0.15
"""How far FSDP1 may be from FSDP2, as which it is estimated; assumed.

One rank of two, with collectives that answer at once, held as many bytes of tensors under either, 0.3 and 0.8 % more
than told, and reserved up to 9 % more under FSDP1 (benchmarks/data/llamafactory.jsonl). Two real cards were not
measured.
"""


@dataclass(frozen=True)
class FsdpAsked:
    """Keys without any prefix (``offload_params``, ``reshard_after_forward``), and the version of FSDP."""

    version: int
    settings: Settings
    strategy: str = ""
    default_place: Place = NOWHERE


def fsdp_partial(asked: FsdpAsked) -> Partial:
    """The sharding and offload that are asked for."""
    settings = asked.settings
    strategy, key = _strategy(asked)
    if strategy not in STRATEGIES:
        valid = ", ".join(STRATEGIES)
        place = settings.place(key)
        raise ConfigFileError(
            f"{place.file or 'the command line'}: {strategy[:40]!r} is no sharding strategy",
            file=place.file,
            line=place.line,
            hint=f"valid: {valid}",
            field=key,
        )
    offload_key = next((name for name in ("offload_params", "cpu_offload") if name in settings), "offload_params")
    offloads = settings.flag(offload_key)
    fields: dict[str, Any] = {"sharding": STRATEGIES[strategy], "offload": "optimizer+params" if offloads else "none"}
    origins = {"sharding": settings.get(key, Setting(key, None, asked.default_place))}
    if offload_key in settings:
        origins["offload"] = settings[offload_key]
    if settings.flag("activation_checkpointing"):
        fields["gradient_checkpointing"] = True
        origins["gradient_checkpointing"] = settings["activation_checkpointing"]
    problems = (_older(asked),) if asked.version < 2 and strategy != "NO_SHARD" else ()
    return Partial(fields, origins, problems=problems)


def _strategy(asked: FsdpAsked) -> tuple[str, str]:
    """The strategy by its name in FSDP1, and the key that decides it."""
    settings = asked.settings
    if asked.strategy:
        return asked.strategy, "fsdp"
    reshard = settings.value("reshard_after_forward")
    if reshard is not None and str(reshard).upper() not in STRATEGIES:
        keeps = str(reshard).strip().lower() in FALSE
        return ("SHARD_GRAD_OP" if keeps else "FULL_SHARD"), "reshard_after_forward"
    named = str(reshard or settings.value("sharding_strategy", "FULL_SHARD")).upper()
    return BY_NUMBER.get(named, named), "reshard_after_forward" if reshard is not None else "sharding_strategy"


def _older(asked: FsdpAsked) -> Problem:
    return Problem(
        "assumption",
        Severity.NOTE,
        "FSDP version 1 is estimated as version 2, which shards alike and gathers one layer at a time",
        hint="set the version to 2: torch deprecates the first",
        key="fsdp_version",
        place=asked.settings.place("version") if "version" in asked.settings else asked.default_place,
        may_need_more=True,
        may_need_less=True,
        within=FSDP1_WITHIN,
    )
