"""accelerate's YAML, in both directions: how many processes, and which sharding they use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats import deepspeed
from ftplan.launcher.formats.audit import audit
from ftplan.launcher.formats.document import Document
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.fsdp import FsdpAsked, fsdp_partial
from ftplan.launcher.formats.launcher_options import as_file_settings
from ftplan.launcher.formats.partial import Partial, Shape
from ftplan.launcher.formats.settings import Setting, Settings, document_settings
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.spec import RunConfig
from ftplan.verdicts import Problem, Severity

NAME: Final = "accelerate"
FSDP: Final = "fsdp_config.fsdp_"
DEEPSPEED: Final = "deepspeed_config."
OF_EVERY_KIND: Final = (f"{DEEPSPEED}gradient_accumulation_steps", f"{DEEPSPEED}gradient_clipping")
"""Keys of DeepSpeed's section whose options stand on command lines of any kind, and do nothing there."""
MODELLED: Final = frozenset(
    {
        *(
            "distributed_type",
            *("num_processes", "num_machines", "gpu_ids"),
            f"{FSDP}version",
            f"{FSDP}backward_prefetch",
            f"{FSDP}forward_prefetch",
        ),
        *(f"{FSDP}sharding_strategy", f"{FSDP}reshard_after_forward", f"{FSDP}offload_params"),
    }
)
"""Keys that are read here; how FSDP1 prefetches is in what its being estimated as FSDP2 may be off by."""


def parse(document: Document, files: Files) -> Partial:
    """What an accelerate configuration says; a DeepSpeed file that it names is read too."""
    return parse_settings(document_settings(document, nested=True), files, document.path)


def launch_settings(options: Settings) -> Settings:
    """``accelerate launch``'s own options under the names that its file has for them."""
    return as_file_settings(options)


def parse_launch(options: Settings, files: Files, base: Path, *, asked_by: str = "") -> Partial:
    """What ``accelerate launch``'s own options say, and the configuration file that they name."""
    named = options.text("config_file")
    document = files.document(files.find(named, base), asked_by=asked_by or "the command") if named else None
    written = document_settings(document, nested=True) if document else Settings()
    both = written.replaced(launch_settings(options))
    return parse_settings(both, files, document.path if document else base) if both else Partial()


def parse_settings(settings: Settings, files: Files, base: Path) -> Partial:
    """As `parse`, from settings by dotted key."""
    kind = settings.text("distributed_type", "").upper() or _kind_by_keys(settings)
    problems = [*audit(settings, load_vocabulary(NAME), MODELLED)]
    nodes = settings.integer("num_machines", 1, least=0) or 1
    total = settings.integer("num_processes", 0, least=0) or None
    visible = settings.words("gpu_ids")
    shape = Shape(
        nodes if "num_machines" in settings or total else None,
        total // nodes if total else None,
        total,
        visible if visible and visible != ("all",) else None,
    )
    fields: dict[str, Any] = {}
    origins: dict[str, Setting] = {}
    precision = settings.text("mixed_precision", "").lower()
    if precision in ("bf16", "fp16"):
        fields["precision"] = precision
        origins["precision"] = settings["mixed_precision"]
    own = Partial(fields, origins, shape, tuple(problems))
    if kind == "DEEPSPEED":
        return own.over(_deepspeed(settings, files, base))
    if kind == "FSDP":
        return own.over(_fsdp(settings))
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return own if "distributed_type" not in settings else _plain(own, kind)
    return own.having(_no_model_of(settings, kind))


def _kind_by_keys(settings: Settings) -> str:
    """The kind that is meant where none is named, as on a command line without --use_deepspeed."""
    if any(key.startswith(DEEPSPEED) and key not in OF_EVERY_KIND for key in settings):
        return "DEEPSPEED"
    return "FSDP" if any(key.startswith("fsdp_config.") for key in settings) else "NO"


def _plain(own: Partial, kind: str) -> Partial:
    """DDP, or a single process: with NO accelerate starts one, however many the file names (commands/launch.py)."""
    if kind == "NO":
        return replace(own, shape=Shape(1, 1, 1, own.shape.visible)).over(Partial({"sharding": "none"}))
    return own.over(Partial({"sharding": "ddp"}))


def _no_model_of(settings: Settings, kind: str) -> Problem:
    return Problem(
        "unmodelled",
        Severity.WARNING,
        f"distributed_type {kind[:40]} is not modelled",
        hint="modelled: NO, MULTI_GPU, FSDP, DEEPSPEED",
        key="distributed_type",
        place=settings.place("distributed_type"),
        may_need_more=True,
        may_need_less=True,
    )


def _deepspeed(settings: Settings, files: Files, base: Path) -> Partial:
    file_key = f"{DEEPSPEED}deepspeed_config_file"
    if settings.value(file_key):
        named = settings.text(file_key)
        document = files.document(files.find(named, base), asked_by=settings.place(file_key).file)
        return deepspeed.parse(document).having(*_twice(settings, file_key))
    stage = settings.integer(f"{DEEPSPEED}zero_stage", 2)
    inside: dict[str, Setting] = {}
    for key, old in (
        ("stage", "zero_stage"),
        ("offload_optimizer.device", "offload_optimizer_device"),
        ("offload_param.device", "offload_param_device"),
    ):
        if f"{DEEPSPEED}{old}" in settings:
            inside[f"{deepspeed.ZERO}.{key}"] = settings[f"{DEEPSPEED}{old}"]
    inside.setdefault(f"{deepspeed.ZERO}.stage", Setting("zero_stage", stage))
    # The plugin names no buckets, so that DeepSpeed's own defaults hold (utils/dataclasses.py, DeepSpeedPlugin).
    found = deepspeed.parse_settings(Settings(inside))
    steps = settings.value(f"{DEEPSPEED}gradient_accumulation_steps")
    if isinstance(steps, int):
        origin = settings[f"{DEEPSPEED}gradient_accumulation_steps"]
        return Partial({"accumulation": steps}, {"accumulation": origin}).over(found)
    return found


OF_THE_FILE: Final = (
    *("mixed_precision", f"{DEEPSPEED}gradient_accumulation_steps", f"{DEEPSPEED}gradient_clipping"),
    *(f"{DEEPSPEED}zero_stage", f"{DEEPSPEED}offload_optimizer_device", f"{DEEPSPEED}offload_param_device"),
    *(f"{DEEPSPEED}offload_optimizer_nvme_path", f"{DEEPSPEED}offload_param_nvme_path"),
    f"{DEEPSPEED}zero3_save_16bit_model",
)
"""What accelerate refuses beside a DeepSpeed file of its own."""


def _twice(settings: Settings, file_key: str) -> Iterator[Problem]:
    """Keys of the same file that only DeepSpeed's may have."""
    for key in OF_THE_FILE:
        if settings.value(key) is not None and settings.place(key).file == settings.place(file_key).file:
            yield Problem(
                "conflict",
                Severity.ERROR,
                f"{key} stands beside deepspeed_config_file, which accelerate refuses",
                hint="leave it out: DeepSpeed's file has it",
                key=key,
                place=settings.place(key),
                source="accelerate 1.15 utils/dataclasses.py, DeepSpeedPlugin._deepspeed_config_checks",
            )


def _fsdp(settings: Settings) -> Partial:
    named = {key.removeprefix(FSDP): setting for key, setting in settings.items() if key.startswith(FSDP)}
    asked = Settings(named)
    version = asked.integer("version", 1, least=1)
    return fsdp_partial(FsdpAsked(version, asked, default_place=settings.place("distributed_type")))


def content(config: RunConfig, *, nodes: int, per_node: int, deepspeed_file: str = "") -> dict[str, Any]:
    """accelerate's settings that start ``config`` on ``nodes`` machines of ``per_node`` processes each."""
    total = nodes * per_node
    base: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": _kind(config, total),
        "mixed_precision": "no" if config.precision == "none" else config.precision,
        "num_machines": nodes,
        "num_processes": total,
        "machine_rank": 0,
        "main_training_function": "main",
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if base["distributed_type"] == "DEEPSPEED":
        del base["mixed_precision"]  # accelerate refuses it beside DeepSpeed's own file, which has it
        base["deepspeed_config"] = {
            "deepspeed_config_file": deepspeed_file,
            "zero3_init_flag": config.sharding == "zero3",
        }
    if base["distributed_type"] == "FSDP":
        base["fsdp_config"] = fsdp_content(config)
    return base


def fsdp_content(config: RunConfig) -> dict[str, Any]:
    """The ``fsdp_config`` of accelerate's file."""
    if config.offload == "optimizer":
        raise CannotExpressError(
            NAME, {"offload": config.offload}, hint="FSDP2 offloads parameters and optimizer together"
        )
    return {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": config.sharding != "fsdp2-grad-op",
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_offload_params": config.offload != "none",
        "fsdp_cpu_ram_efficient_loading": config.quantization == "none",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    }


def _kind(config: RunConfig, total: int) -> str:
    if config.sharding in deepspeed.STAGES:
        return "DEEPSPEED"
    if config.sharding in ("fsdp2", "fsdp2-grad-op"):
        return "FSDP"
    if config.sharding == "hsdp":
        raise CannotExpressError(NAME, {"sharding": "hsdp"}, hint="use fsdp2: its file has no replicated groups")
    if config.offload != "none":
        raise CannotExpressError(NAME, {"offload": config.offload})
    return "MULTI_GPU" if total > 1 else "NO"
