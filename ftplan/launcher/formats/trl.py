"""TRL's supervised fine-tuning: ``trl sft`` with its YAML, its script under any launcher, Python with SFTTrainer.

What it does by itself is in ``profiles/data/stacks.json``: the loss in chunks, adapters of a quantized model in bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import CannotExpressError, ConfigFileError, InputError
from ftplan.launcher.formats import accelerate, deepspeed, trainer
from ftplan.launcher.formats.given import ACCELERATE_FILE, Emitted, Format, Given, Target
from ftplan.launcher.formats.launcher_options import ACCELERATE_FLAGS
from ftplan.launcher.formats.model_arguments import KEYS, model_settings, parse_model
from ftplan.launcher.formats.partial import NOTHING, Partial, Shape
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.launcher.formats.trl_rules import PACKING_LOSES_SAMPLES, is_unlimited, packs, rules
from ftplan.launcher.formats.versions import is_before, written
from ftplan.launcher.formats.words import Word
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.profiles.packaged import packaged_json
from ftplan.spec import RunConfig

NAME: Final = "trl"
MAIN: Final = "train.yaml"
DEMO_DATASET: Final = "trl-lib/Capybara"
OLDEST: Final = "0.12"
"""The first release that the vocabulary's history tells of."""
CHUNKED_SINCE: Final = "1.4"
CHUNKED_BY_DEFAULT_SINCE: Final = "1.6"
FUSED_HEAD_SINCE: Final = "1.15"
"""Releases whose sft_config.py first has ``chunked_nll``, takes it by default, and computes every loss in chunks."""
ZERO3_ADAPTERS_SINCE: Final = "1.8"
"""At the latest: adapters under ZeRO-3 keep the dtype of the weights (sft_trainer.py; 1.6 has it not)."""
MODELLED: Final = KEYS | {
    *("max_length", "packing", "packing_strategy", "padding_free", "loss_type", "use_liger_kernel"),
    *("dataset_name", "datasets", "eval_strategy"),
}
MODEL_DTYPE: Final = "float32"
"""What SFTTrainer loads in where nothing is said (ModelConfig; create_model_from_path)."""


def parse(given: Given) -> Partial:
    """The fields that TRL's settings say."""
    given = _prepared(given)
    settings = given.settings
    base = trainer.parse_arguments(given)
    stated = Partial({"precision": given.around.fields.get("precision", "none")})
    model = parse_model(settings, dtype=MODEL_DTYPE)
    sharding = str(base.fields.get("sharding", given.around.fields.get("sharding", "")))
    fields: dict[str, Any] = {
        "stack": "trl",
        "adapter_dtype": _adapter_dtype(model, settings, sharding, given.version),
        **_rows(settings, base.fields["micro_batch"]),
        **_loss(settings, given.version),
        "expandable_segments": given.launch.expands_segments,
    }
    origins = {
        name: settings.get(key, Setting(key, None))
        for name, key in (("packing", "packing"), ("seq_len", "max_length"), ("loss_path", "loss_type"))
    }
    problems = (*_audited(given, model, sharding), *rules(given, base, fused_head=_has_fused_head(given.version)))
    return Partial(fields, origins, problems=problems).over(model).over(base).over(stated)


def _prepared(given: Given) -> Given:
    """``given`` with present names, leaves beside mappings, TRL's defaults, and the environment that its file sets."""
    known = load_vocabulary(NAME)
    settings = given.settings.replaced(trainer.leaves(given.settings, known))
    filled = {
        new: replace(settings[old], key=new)
        for old, new in (("max_seq_length", "max_length"), ("use_liger", "use_liger_kernel"))
        if old in settings and new not in settings
    }
    if settings.value("bf16") is None:
        filled["bf16"] = Setting("bf16", not settings.flag("fp16"))
    if settings.value("gradient_checkpointing") is None and settings.value("activation_checkpointing") is None:
        filled["gradient_checkpointing"] = Setting("gradient_checkpointing", True)
    environment = dict(given.launch.environment)
    if "env" in settings:
        stated = settings.value("env", {})
        if not isinstance(stated, Mapping):
            place = settings.place("env")
            raise ConfigFileError(f"{place.file}: env is no mapping", file=place.file, line=place.line, field="env")
        environment |= {str(name): Word(str(value)) for name, value in stated.items()}
    launch = replace(given.launch, environment=environment)
    return replace(given, settings=settings.replaced(filled), launch=launch)


def _rows(settings: Settings, micro_batch: int) -> dict[str, Any]:
    """Length and shape of a batch: packed rows have borders by positions, wrapped ones have none, others are padded."""
    fields: dict[str, Any] = {"packing": packs(settings)}
    fields["padding"] = not (fields["packing"] or settings.flag("packing")) and micro_batch > 1
    if not is_unlimited(settings):
        fields["seq_len"] = settings.integer("max_length", 1024, least=1)
    return fields


def _has_fused_head(version: str) -> bool:
    return not is_before(version, FUSED_HEAD_SINCE)


def _loss(settings: Settings, version: str) -> dict[str, Any]:
    """How the release computes the loss; Liger's own took its place until TRL had a fused head."""
    if _has_fused_head(version):
        return {"kernels": "none", "loss_path": "chunked"}
    if settings.flag("use_liger_kernel"):
        return {"kernels": "liger", "loss_path": "liger"}
    default = "nll" if is_before(version, CHUNKED_BY_DEFAULT_SINCE) else "chunked_nll"
    chunked = settings.text("loss_type", default) == "chunked_nll"
    return {"kernels": "none", "loss_path": "chunked" if chunked else "full"}


def _adapter_dtype(model: Partial, settings: Settings, sharding: str, version: str) -> str:
    """bf16 on a quantized model; the weights' own under ZeRO-3, whose buffers have one dtype; else peft's fp32."""
    if model.fields["method"] == "qlora" or settings.flag("load_in_8bit"):
        return "bf16"
    if sharding == "zero3" and not is_before(version, ZERO3_ADAPTERS_SINCE):
        return str(model.fields["weights_dtype"])
    return "fp32"


def _audited(given: Given, model: Partial, sharding: str) -> tuple[Any, ...]:
    modelled = MODELLED
    if sharding == "zero3" and model.fields["method"] != "full":
        # TRL makes it reentrant there whatever is asked, and the stack's profile says so.
        modelled |= {f"{name}_checkpointing_kwargs.use_reentrant" for name in ("gradient", "activation")}
    told = {
        key: each
        for key, each in given.settings.items()
        if key not in ("env", "prepare_kbit") and not _is_launchers(key) and (each.place.file or each.value is not None)
    }
    return trainer.audited(replace(given, settings=Settings(told)), NAME, modelled)


def around(given: Given) -> Partial:
    """What ``trl sft`` passes on to accelerate: options among its own, and the configuration they name."""
    settings = given.settings
    options = Settings({key: each for key, each in settings.items() if _is_launchers(key)})
    stated = settings.value("env", {})
    visible = str(stated.get("CUDA_VISIBLE_DEVICES", "")) if isinstance(stated, Mapping) else ""
    devices = len([each for each in visible.split(",") if each.strip()])
    own = Partial(shape=Shape(per_node=devices)) if devices and given.launch.launcher != "python" else NOTHING
    named = options.text("accelerate_config")
    configs = packaged_json("trl_accelerate.json")
    if named in configs["configs"]:
        place = options.place("accelerate_config")
        inside = {**configs["common"], **configs["configs"][named]}
        written_there = Settings({key: Setting(key, value, place) for key, value in inside.items()})
        both = written_there.replaced(accelerate.launch_settings(options))
        return accelerate.parse_settings(both, given.files, given.base).over(own)
    if named:
        options = options.replaced({"config_file": replace(options["accelerate_config"], key="config_file")})
    found = accelerate.parse_launch(options, given.files, given.base, asked_by=options.place("accelerate_config").file)
    return found.over(own)


def _is_launchers(key: str) -> bool:
    """Whether TRL leaves ``key`` to accelerate: an option of its launcher, and no argument of the training."""
    if key in load_vocabulary(NAME).defaults:
        return False
    return key in ACCELERATE_FLAGS or key in ("accelerate_config", "config_file") or key in _launcher_options()


def _launcher_options() -> frozenset[str]:
    return frozenset(key.rsplit(".", 1)[-1] for key in load_vocabulary(accelerate.NAME).defaults)


def pins(method: str) -> Mapping[str, Any]:
    """Fields that TRL decides by itself; ``method`` is the one asked for."""
    fixed = {"stack": "trl", "kernels": "none", "loss_path": "chunked", "prepare_kbit": False}
    return {**fixed, "adapter_dtype": "bf16"} if method == "qlora" else fixed


def emit(config: RunConfig, target: Target) -> Emitted:
    """``config`` as settings of ``trl sft``."""
    if is_before(target.version, OLDEST):
        raise InputError(
            f"trl {target.version} is older than what is known of it", hint=f"from {OLDEST} on", field="version"
        )
    main: dict[str, Any] = {
        **model_settings(config),
        "dataset_name": target.dataset or DEMO_DATASET,
        "max_length": config.seq_len,
        **_written_rows(config),
        **_written_loss(config, target.version),
        **trainer.arguments(config, target),
        # TRL turns both on where they are left out.
        "bf16": config.precision == "bf16",
        "gradient_checkpointing": config.gradient_checkpointing,
    }
    main = written(main, load_vocabulary(NAME), target.version)
    return _launched(config, target, main)


def _written_rows(config: RunConfig) -> dict[str, Any]:
    if config.packing:
        return {"packing": True, "packing_strategy": "bfd"}
    # Batches of one are never padded.
    return {} if config.padding or config.micro_batch == 1 else {**_WRAPPED}


_WRAPPED: Final[Mapping[str, Any]] = {"packing": True, "packing_strategy": PACKING_LOSES_SAMPLES}


def _written_loss(config: RunConfig, version: str) -> dict[str, Any]:
    """``loss_type`` where the release's default may be another one."""
    if _has_fused_head(version) or config.loss_path == "liger":
        return {}
    if config.loss_path == "full":
        return {} if is_before(version, CHUNKED_SINCE) else {"loss_type": "nll"}
    if is_before(version, CHUNKED_SINCE):
        raise InputError(
            f"trl {version} has no loss_type chunked_nll, which came with {CHUNKED_SINCE}",
            hint=f"choose trl {CHUNKED_SINCE} or newer, or --loss-path full",
            field="loss_type",
        )
    return {"loss_type": "chunked_nll"}


def _launched(config: RunConfig, target: Target, main: dict[str, Any]) -> Emitted:
    """The command: trl's own, which starts accelerate; torchrun where DeepSpeed has a single process."""
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if config.expandable_segments else {}
    if config.sharding == "hsdp":
        raise CannotExpressError("TRL", {"sharding": "hsdp"}, hint="use fsdp2")
    if config.sharding in ("fsdp2", "fsdp2-grad-op"):
        settings = accelerate.content(config, nodes=target.nodes, per_node=target.per_node)
        command: tuple[str, ...] = ("trl", "sft", "--config", MAIN, "--accelerate_config", ACCELERATE_FILE)
        return Emitted(main, MAIN, command, environment, accelerate=settings)
    content = deepspeed.content(config) if config.sharding in deepspeed.STAGES else None
    if content is not None and target.ranks == 1:
        command = ("torchrun", "--standalone", "--nproc_per_node", "1", "-m", "trl.scripts.sft", "--config", MAIN)
    else:
        several = ("--multi_gpu",) if target.ranks > 1 else ()
        nodes = ("--num_machines", str(target.nodes)) if target.nodes > 1 else ()
        command = ("trl", "sft", "--config", MAIN, "--num_processes", str(target.ranks), *nodes, *several)
    return Emitted(main, MAIN, command, environment, deepspeed=content)


FORMAT: Final = Format(NAME, "TRL", NAME, parse, emit, pins, cannot_say={"sharding": ("hsdp",)}, around=around)
