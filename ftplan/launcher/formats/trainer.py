"""transformers' TrainingArguments, which most frameworks pass on: batch, precision, optimizer, DeepSpeed, FSDP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats import deepspeed
from ftplan.launcher.formats.audit import audit
from ftplan.launcher.formats.deepspeed_batch import WHOLE, stated_whole
from ftplan.launcher.formats.dialect import optimizer_of
from ftplan.launcher.formats.fsdp import FsdpAsked, fsdp_partial
from ftplan.launcher.formats.given import DEEPSPEED_FILE, Given, Target
from ftplan.launcher.formats.included import from_json, whole
from ftplan.launcher.formats.partial import Partial, Taken
from ftplan.launcher.formats.script_code import own_code, stated
from ftplan.launcher.formats.settings import FALSE, Setting, Settings, document_settings, flattened
from ftplan.launcher.formats.trainer_conflicts import conflicts, differing, mismatches, only_in_fsdp1
from ftplan.launcher.formats.versions import is_before
from ftplan.profiles.frameworks import Vocabulary, load_vocabulary
from ftplan.spec import RunConfig
from ftplan.verdicts import Problem

NAME: Final = "transformers"
BATCH: Final[Mapping[str, str]] = {
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "accumulation",
}
FSDP_KEYS: Final = (
    *("fsdp", "fsdp_transformer_layer_cls_to_wrap", "fsdp_min_num_params", "fsdp_config.version"),
    *("fsdp_config.reshard_after_forward", "fsdp_config.cpu_offload", "fsdp_config.activation_checkpointing"),
    *("fsdp_config.forward_prefetch", "fsdp_config.backward_prefetch"),
)
"""How FSDP1 prefetches is in what its being estimated as FSDP2 may be off by."""
MODELLED: Final = frozenset(
    {
        *(*BATCH, *FSDP_KEYS, "deepspeed", "bf16", "fp16", "gradient_checkpointing", "activation_checkpointing"),
        *("accelerator_config.gradient_accumulation_kwargs.sync_each_batch", "use_liger_kernel"),
        *("eval_strategy", "per_device_eval_batch_size"),
    }
)
"""Keys that are read here, whatever they hold."""


def canonical(settings: Settings) -> Settings:
    """``settings`` with present names in the place of older ones; transformers' defaults are not filled in."""
    vocabulary = load_vocabulary(NAME)
    renamed = {
        vocabulary.canonical(key): Setting(vocabulary.canonical(key), each.value, each.place, each.unresolved)
        for key, each in settings.items()
        if key in vocabulary.renamed and vocabulary.canonical(key) not in settings
    }
    return settings.replaced(renamed)


def parse_arguments(given: Given) -> Partial:
    """Batch, optimizer, precision, checkpointing, kernels and sharding of TrainingArguments."""
    settings = canonical(whole(given, load_vocabulary(NAME)))
    fields: dict[str, Any] = {}
    defaults = load_vocabulary(NAME).defaults
    take = Taken(settings, fields)
    for key, field in BATCH.items():
        take(key, field, settings.integer(key, defaults[key], least=1))
    take("optim", "optimizer", optimizer_of(settings.text("optim", str(defaults["optim"]))))
    for key in ("bf16", "fp16"):
        if settings.flag(key):
            take(key, "precision", key)
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in settings else "gradient_checkpointing"
    take(checkpointing, "gradient_checkpointing", settings.flag(checkpointing))
    liger = settings.flag("use_liger_kernel")
    take("use_liger_kernel", "kernels", "liger" if liger else "none")
    take("eval_strategy", "evaluates", settings.text("eval_strategy", "no") not in ("no", "False"))
    take("accelerator_config", "sync_each_batch", _syncs(settings))
    beside: dict[str, float] = {
        "eval_micro_batch": settings.integer("per_device_eval_batch_size", defaults["per_device_eval_batch_size"])
    }
    if settings.value("learning_rate") is not None:
        beside["learning_rate"] = settings.number("learning_rate", 0.0)
    asked = sharding(settings, given)
    kind = str(asked.fields.get("sharding", given.around.fields.get("sharding", "")))
    problems = [*conflicts(settings, kind), *_otherwise_around(given, fields)]
    if WHOLE in asked.beside:
        problems += _other_whole(asked.beside[WHOLE], fields, given.ranks)
    return Partial(fields, take.origins, problems=tuple(problems), beside=beside).over(asked)


def _otherwise_around(given: Given, fields: Mapping[str, Any]) -> Iterator[Problem]:
    """A batch that accelerate gives DeepSpeed, which the Trainer compares with its own arguments, too."""
    around = given.around
    if around.fields.get("sharding") not in deepspeed.STAGES:
        return
    for key, field in BATCH.items():
        if around.fields.get(field, fields[field]) != fields[field]:
            yield differing(around.origins[field], key, fields[field])
    if WHOLE in around.beside:
        yield from _other_whole(around.beside[WHOLE], fields, given.ranks)


def _other_whole(origin: Setting, fields: Mapping[str, Any], ranks: int) -> Iterator[Problem]:
    """A batch of all processes in DeepSpeed's settings that is not what the arguments come to."""
    mine = fields["micro_batch"] * fields["accumulation"] * ranks
    if stated_whole(origin) != mine:
        yield differing(origin, "the batch of all processes", mine)


def sharding(settings: Settings, given: Given) -> Partial:
    """DeepSpeed or FSDP as the training's own arguments ask for it; nothing if they do not."""
    named = settings.value("deepspeed")
    if named:
        return _deepspeed(settings, given)
    asked = settings.value("fsdp")
    if asked is None or asked is False or (isinstance(asked, str) and asked.strip().lower() in FALSE):
        return Partial()
    return _fsdp(settings)


def _deepspeed(settings: Settings, given: Given) -> Partial:
    """DeepSpeed's part; the batch is the arguments' own, and transformers refuses another in its file."""
    named, place = settings.value("deepspeed"), settings.place("deepspeed")
    if isinstance(named, str) and named.lstrip().startswith("{"):
        named = from_json(named, place)
    refused: tuple[Problem, ...] = ()
    if isinstance(named, Mapping):
        inside = Settings(flattened(named, place))
    else:
        path = given.files.find(str(named), given.base)
        document = given.files.document(path, asked_by=place.file or "the command line")
        inside = document_settings(document, nested=True)
        refused = deepspeed.commented(document)
    found = deepspeed.parse_settings(inside)
    fields = {name: value for name, value in found.fields.items() if name not in BATCH.values()}
    return replace(found, fields=fields).having(*refused, *mismatches(inside, settings))


def _fsdp(settings: Settings) -> Partial:
    place = settings.place("fsdp")
    asked = _fsdp_config(settings)
    words = [] if isinstance(settings.value("fsdp"), bool) else str(settings.value("fsdp")).replace(",", " ").split()
    words = [word.strip("[]'\"").lower() for word in words]
    strategy = next((word.upper() for word in words if word in _OLD_WORDS), "")
    if "offload" in words and "cpu_offload" not in asked:
        asked = asked.replaced({"cpu_offload": Setting("fsdp", True, place)})
    version = asked.integer("version", 2, least=1)
    refused = only_in_fsdp1(words, settings["fsdp"]) if version == 2 else ()
    strategy = {"HYBRID_SHARD_ZERO2": "HYBRID_SHARD"}.get(strategy, strategy)
    if asked.value("reshard_after_forward") is not None:
        strategy = ""  # fsdp_config has the last word over the words of `fsdp`
    return fsdp_partial(FsdpAsked(version, asked, strategy, place)).having(*refused)


def _fsdp_config(settings: Settings) -> Settings:
    """What ``fsdp_config`` holds, under names without a prefix, each where it stands."""
    place = settings.place("fsdp_config")
    inside = settings.value("fsdp_config", {})
    if not isinstance(inside, Mapping):
        raise ConfigFileError(f"{place.file}: fsdp_config is no mapping", file=place.file, line=place.line)
    found: dict[str, Setting] = {}
    for key, each in flattened(inside, place).items():
        stands = settings.get(f"fsdp_config.{key}")
        found[key.removeprefix("fsdp_")] = replace(each, place=stands.place if stands else place)
    return Settings(found)


_OLD_WORDS: Final = frozenset({"full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2"})


def _syncs(settings: Settings) -> bool:
    config = settings.value("accelerator_config", {})
    inside = config.get("gradient_accumulation_kwargs") if isinstance(config, Mapping) else None
    if not isinstance(inside, Mapping):
        return False
    return Settings(flattened(inside, settings.place("accelerator_config"))).flag("sync_each_batch")


def arguments(config: RunConfig, target: Target, *, version: str = "") -> dict[str, Any]:
    """TrainingArguments that say what `parse_arguments` reads back."""
    found: dict[str, Any] = {
        "output_dir": target.output_dir,
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "learning_rate": rate_of(config, target),
        "num_train_epochs": target.epochs,
        "lr_scheduler_type": "cosine",
        "optim": config.optimizer,
    }
    if config.precision != "none":
        found[config.precision] = True
    if config.gradient_checkpointing:
        found["gradient_checkpointing"] = True
    if config.kernels == "liger":
        found["use_liger_kernel"] = True
    if config.evaluates:
        found |= {eval_key(version): "steps", "per_device_eval_batch_size": config.micro_batch}
    if config.sync_each_batch:
        found["accelerator_config"] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    if config.sharding in deepspeed.STAGES:
        found["deepspeed"] = DEEPSPEED_FILE
    return found


def eval_key(version: str) -> str:
    """``eval_strategy``, which transformers before 4.41 called ``evaluation_strategy``."""
    return "evaluation_strategy" if is_before(version, "4.41") else "eval_strategy"


def rate_of(config: RunConfig, target: Target) -> float:
    """The learning rate asked for, or the usual one: 1e-4 for adapters, 1e-5 for all weights, as in examples."""
    if target.learning_rate is not None:
        return target.learning_rate
    return 1e-4 if config.trains_adapters else 1e-5


def fsdp_arguments(config: RunConfig, version: str = "") -> dict[str, Any]:
    """``fsdp`` and ``fsdp_config`` of TrainingArguments, in words before 5.12 (training_args.py of 5.8 and 5.12)."""
    keeps = config.sharding == "fsdp2-grad-op"
    inside: dict[str, Any] = {
        "version": 2,
        "reshard_after_forward": not keeps,
        "cpu_ram_efficient_loading": config.quantization == "none",
    }
    if is_before(version, "5.12"):
        words = ["shard_grad_op" if keeps else "full_shard", "auto_wrap", *["offload"] * (config.offload != "none")]
        return {"fsdp": " ".join(words), "fsdp_config": inside}
    inside |= {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_offload": config.offload != "none",
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    return {"fsdp": True, "fsdp_config": inside}


def audited(given: Given, vocabulary: str, modelled: frozenset[str]) -> tuple[Problem, ...]:
    """Problems with the keys of ``given``, those inside of mappings among them."""
    known = load_vocabulary(vocabulary)
    settings = leaves(whole(given, known), known)
    return (*own_code(settings), *audit(stated(settings), known, MODELLED | modelled))


def leaves(settings: Settings, known: Vocabulary) -> Settings:
    """``settings`` with what mappings hold by dotted key, where the vocabulary knows such keys."""
    found: dict[str, Setting] = {}
    for key, each in settings.items():
        opened = isinstance(each.value, Mapping) and any(name.startswith(f"{key}.") for name in known.defaults)
        found |= flattened(each.value, each.place, f"{key}.") if opened else {key: each}
    return Settings(found)
