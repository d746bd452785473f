"""DeepSpeed's JSON, in both directions: ZeRO stage, offload, buckets, and a batch that may be "auto"."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.errors import CannotExpressError
from ftplan.launcher.artifacts import ZERO_STAGES, zero_optimization
from ftplan.launcher.formats.audit import audit
from ftplan.launcher.formats.deepspeed_batch import WHOLE, resolved
from ftplan.launcher.formats.document import Document
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import Setting, Settings, document_settings
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.spec import RunConfig
from ftplan.verdicts import Place, Problem, Severity

NAME: Final = "deepspeed"
STAGES: Final = ZERO_STAGES
ZERO: Final = "zero_optimization"
AUTO: Final = "auto"

BATCH: Final[Mapping[str, str]] = {
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "accumulation",
}
BUCKETS: Final[Mapping[str, str]] = {
    f"{ZERO}.reduce_bucket_size": "zero_reduce_bucket",
    f"{ZERO}.stage3_prefetch_bucket_size": "zero_prefetch_bucket",
    f"{ZERO}.stage3_param_persistence_threshold": "zero_persistence_threshold",
}
DEFAULT_BUCKETS: Final[Mapping[str, int]] = {
    "zero_reduce_bucket": 500_000_000,
    "zero_prefetch_bucket": 50_000_000,
    "zero_persistence_threshold": 100_000,
}
"""What DeepSpeed takes where a file says nothing (runtime/zero/config.py, 0.19.8)."""
MODELLED: Final = frozenset(
    {
        *BATCH,
        *BUCKETS,
        WHOLE,
        f"{ZERO}.stage",
        f"{ZERO}.overlap_comm",
        f"{ZERO}.offload_param.device",
        f"{ZERO}.offload_optimizer.device",
    }
)


def commented(document: Document) -> tuple[Problem, ...]:
    """What json.load refuses, as transformers and accelerate read the file; DeepSpeed alone takes comments."""
    try:
        json.loads(document.text)
    except ValueError:
        return (
            Problem(
                "conflict",
                Severity.ERROR,
                "comments or a trailing comma: transformers reads plain JSON",
                hint="take them out",
                place=Place(document.name),
                source="transformers 5.23 integrations/deepspeed.py, accelerate 1.15 utils/deepspeed.py: json.load",
            ),
        )
    return ()


def parse(document: Document) -> Partial:
    """The fields that a DeepSpeed file fixes: "auto" leaves one to the training's own arguments."""
    settings = document_settings(document, nested=True)
    return parse_settings(settings)


def parse_settings(settings: Settings) -> Partial:
    """As `parse`, from settings by dotted key."""
    problems = [*audit(_without_sections(settings), load_vocabulary(NAME), MODELLED)]
    stage = settings.integer(f"{ZERO}.stage", 0)
    fields: dict[str, Any] = {"sharding": {number: name for name, number in STAGES.items()}.get(stage, "ddp")}
    origins = {"sharding": _setting(settings, f"{ZERO}.stage")}
    for key, name in BATCH.items():
        if not _is_auto(settings, key):
            fields[name] = settings.integer(key, 1, least=1)
            origins[name] = settings[key]
    offload, at = _offload(settings, stage)
    fields["offload"] = offload
    origins["offload"] = at
    if stage:
        fields |= _buckets(settings, stage)
        origins |= {name: _setting(settings, key) for key, name in BUCKETS.items() if name in fields}
    for name, dtype in (("bf16", "bf16"), ("fp16", "fp16")):
        key = f"{name}.enabled"
        if not _is_auto(settings, key) and settings.flag(key):
            fields["precision"] = dtype
            origins["precision"] = settings[key]
    problems += _conflicts(settings, stage)
    return Partial(fields, origins, problems=tuple(problems), beside=_whole_batch(settings))


def parse_alone(document: Document, ranks: int) -> Partial:
    """As `parse`, for a file without a trainer that fills it in: its batch for so many processes, and its dtype."""
    part = parse(document)
    return resolved(part, ranks).over(plain_dtype(document, part)).over(part)


def plain_dtype(document: Document, part: Partial) -> Partial:
    """fp32, where a file that leaves nothing to a trainer enables no other dtype; ``part`` is what is known so far."""
    fills_in = any(setting.value == AUTO for setting in document_settings(document, nested=True).values())
    if fills_in or "precision" in part.fields:
        return Partial()
    return Partial({"precision": "none", "weights_dtype": "fp32"})


def _whole_batch(settings: Settings) -> dict[str, Any]:
    """The batch of all processes as it is stated: what it decides depends on how many there are."""
    if _is_auto(settings, WHOLE):
        return {}
    settings.integer(WHOLE, 1, least=1)
    return {WHOLE: settings[WHOLE]}


def _setting(settings: Settings, key: str) -> Setting:
    return settings[key] if key in settings else Setting(key, None)


def _is_auto(settings: Settings, key: str) -> bool:
    return bool(settings.value(key, AUTO) == AUTO)


def _without_sections(settings: Settings) -> Settings:
    """Without the parameters of optimizers and schedulers, which have vocabularies of their own."""
    free = ("optimizer.params.", "scheduler.params.", "comms_logger.", "tensorboard.", "wandb.", "csv_monitor.")
    return Settings({key: setting for key, setting in settings.items() if not key.startswith(free)})


def _offload(settings: Settings, stage: int) -> tuple[str, Setting]:
    optimizer_key, params_key = f"{ZERO}.offload_optimizer.device", f"{ZERO}.offload_param.device"
    if f"{ZERO}.cpu_offload" in settings and settings.flag(f"{ZERO}.cpu_offload"):
        return "optimizer", settings[f"{ZERO}.cpu_offload"]  # its name until 0.3
    optimizer = settings.text(optimizer_key, "none").lower()
    params = settings.text(params_key, "none").lower() if stage == 3 else "none"
    if params != "none":
        return "optimizer+params", settings[params_key]
    return ("optimizer" if optimizer != "none" else "none"), _setting(settings, optimizer_key)


def _buckets(settings: Settings, stage: int) -> dict[str, Any]:
    found: dict[str, Any] = {"zero_overlap": settings.flag(f"{ZERO}.overlap_comm", default=stage == 3)}
    for key, name in BUCKETS.items():
        if stage != 3 and name != "zero_reduce_bucket":
            continue
        if settings.value(key) != AUTO:
            found[name] = settings.integer(key, DEFAULT_BUCKETS[name])
    return found


def _conflicts(settings: Settings, stage: int) -> Iterator[Problem]:
    """What DeepSpeed refuses, or does without."""
    on_nvme = [
        key
        for key in (f"{ZERO}.offload_optimizer.device", f"{ZERO}.offload_param.device")
        if settings.text(key).lower() == "nvme"
    ]
    for key in on_nvme:
        yield Problem(
            "unmodelled",
            Severity.WARNING,
            f"{key} nvme is not modelled: states go to disk, not to host RAM",
            key=key,
            place=settings.place(key),
            may_need_more=True,
            may_need_less=True,
        )
    parameters = settings.text(f"{ZERO}.offload_param.device", "none").lower()
    if parameters != "none" and stage != 3:
        yield Problem(
            "conflict",
            Severity.ERROR,
            f"offload_param needs stage 3, and stage is {stage}",
            hint="set stage 3, or offload the optimizer only",
            key=f"{ZERO}.offload_param.device",
            place=settings.place(f"{ZERO}.offload_param.device"),
            source="deepspeed 0.19.8 runtime/zero/config.py",
        )
    optimizer = settings.text(f"{ZERO}.offload_optimizer.device", "none").lower()
    if parameters != "none" and optimizer == "none" and stage == 3:
        yield Problem(
            "unmodelled",
            Severity.WARNING,
            "parameters are offloaded without the optimizer, which is estimated as if both were",
            hint="offload the optimizer, too",
            key=f"{ZERO}.offload_param.device",
            place=settings.place(f"{ZERO}.offload_param.device"),
            may_need_more=True,
        )
    if stage == 0:
        yield Problem(
            "unmodelled",
            Severity.WARNING,
            "DeepSpeed without ZeRO (stage 0) is not modelled: every rank keeps fp32 masters and whole fp32 gradients",
            hint="use stage 1 or 2, or plain DDP",
            key=f"{ZERO}.stage",
            place=settings.place(f"{ZERO}.stage"),
            source="deepspeed 0.19.8 runtime/bf16_optimizer.py",
            may_need_more=True,
        )
    for name in ("bf16", "fp16"):
        other = "fp16" if name == "bf16" else "bf16"
        if settings.value(f"{name}.enabled") is True and settings.value(f"{other}.enabled") is True:
            yield Problem(
                "conflict",
                Severity.ERROR,
                "bf16 and fp16 are both enabled",
                hint="enable one",
                key=f"{name}.enabled",
                place=settings.place(f"{name}.enabled"),
                source="deepspeed 0.19.8 runtime/engine.py",
            )
            break


def content(
    config: RunConfig, *, batch: tuple[int, int, int] | None = None, clipping: float | None = None
) -> dict[str, Any]:
    """DeepSpeed's settings for ``config``; raises CannotExpressError where it is not sharded by ZeRO.

    ``batch`` is micro-batch, accumulation and global batch; without it a trainer fills in its own ("auto").
    """
    if config.sharding not in STAGES:
        raise CannotExpressError(NAME, {"sharding": config.sharding})
    if config.offload == "optimizer+params" and STAGES[config.sharding] != 3:
        raise CannotExpressError(NAME, {"offload": config.offload}, hint="ZeRO-3 offloads parameters")
    micro, accumulation, whole = batch or (AUTO, AUTO, AUTO)
    return {
        "train_batch_size": whole,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": AUTO if clipping is None else clipping,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": AUTO if batch is None else config.precision == "bf16"},
        "fp16": {"enabled": AUTO if batch is None else config.precision == "fp16"},
        ZERO: zero_optimization(config),
    }
