"""What llama-cookbook refuses before it trains, how it starts, and what of it is estimated otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.dialect import OWN_LOOP_WITHIN, unmeasured, unmodelled
from ftplan.launcher.formats.fsdp import BY_NUMBER, STRATEGIES
from ftplan.launcher.formats.given import Given
from ftplan.launcher.formats.partial import ANY_SHAPE, Shape
from ftplan.launcher.formats.settings import FALSE, TRUE, Settings
from ftplan.profiles.models import list_models
from ftplan.verdicts import Problem, Severity

SOURCE: Final = "llama-cookbook 0.0.5.post1 (0e003351) src/llama_cookbook/finetuning.py"
_LOADING: Final = ("FSDP_CPU_RAM_EFFICIENT_LOADING", "ACCELERATE_USE_FSDP")


def quantization_of(settings: Settings) -> str:
    """``4bit``, ``8bit``, empty for none, or whatever else was written; true is 8bit."""
    word = settings.text("quantization").strip().lower()
    if word in FALSE:
        return ""
    return "8bit" if word in TRUE else word


def nearest_strategy(settings: Settings) -> str:
    """The sharding strategy by its name in FSDP1; torch's own spelling counts, too."""
    written = settings.text("sharding_strategy", "FULL_SHARD").rsplit(".", 1)[-1].upper()
    name = BY_NUMBER.get(written, written).removeprefix("_")
    if name not in STRATEGIES:
        place = settings.place("sharding_strategy")
        raise ConfigFileError(
            f"{place.file or 'the command line'}: {written[:40]!r} is no sharding strategy",
            file=place.file,
            line=place.line,
            hint=f"valid: {', '.join(STRATEGIES)}",
            field="sharding_strategy",
        )
    return name


def starts(given: Given) -> Shape:
    """One process, unless a launcher starts more."""
    return Shape(1, 1) if given.launch.launcher in ("", "python") else ANY_SHAPE


_Applies = Callable[[Settings, Given], bool]
_Rule = tuple[str, _Applies, str, str, str]


def _method(settings: Settings) -> str:
    return settings.text("peft_method", "lora").lower()


def _fsdp(settings: Settings) -> bool:
    return settings.flag("enable_fsdp")


def _max_steps(settings: Settings) -> int:
    return settings.integer("max_train_step", 0)


CONFLICTS: Final[tuple[_Rule, ...]] = (
    (
        "peft_method",
        lambda settings, _: settings.flag("use_peft") and _method(settings) not in ("lora", "llama_adapter", "prefix"),
        "there is no such peft_method",
        "set peft_method lora",
        "utils/config_utils.py, generate_peft_config",
    ),
    (
        "peft_method",
        lambda settings, _: settings.flag("use_peft") and _method(settings) == "prefix",
        "prefix tuning is not supported",
        "set peft_method lora",
        "utils/config_utils.py, generate_peft_config",
    ),
    (
        "peft_method",
        lambda settings, _: settings.flag("use_peft") and _method(settings) == "llama_adapter" and _fsdp(settings),
        "llama_adapter is not supported with FSDP",
        "set peft_method lora",
        "utils/config_utils.py, generate_peft_config",
    ),
    (
        "quantization",
        lambda settings, _: quantization_of(settings) == "8bit" and _fsdp(settings),
        "8-bit quantization is not supported with FSDP",
        "use --quantization 4bit",
        "finetuning.py, main",
    ),
    (
        "quantization",
        lambda settings, _: quantization_of(settings) not in ("", "4bit", "8bit"),
        "quantization is either 4bit or 8bit",
        "use --quantization 4bit",
        "configs/quantization.py, create_bnb_config",
    ),
    (
        "use_profiler",
        lambda settings, _: settings.flag("use_profiler") and settings.flag("flop_counter"),
        "the profiler and the FLOP counter cannot be used both",
        "leave one of them out",
        "utils/train_utils.py, profile",
    ),
    (
        "max_train_step",
        lambda settings, _: settings.flag("use_profiler") and 0 < _max_steps(settings) < 7,
        "the profiler needs at least 7 training steps",
        "raise max_train_step",
        "utils/train_utils.py, profile",
    ),
    (
        "max_train_step",
        lambda settings, _: (
            settings.flag("flop_counter") and 0 < _max_steps(settings) <= settings.integer("flop_counter_start", 3)
        ),
        "the FLOP counter needs more training steps than flop_counter_start",
        "raise max_train_step",
        "utils/train_utils.py, profile",
    ),
    (
        "batching_strategy",
        lambda settings, _: settings.text("batching_strategy", "packing") not in ("packing", "padding"),
        "batching_strategy is either packing or padding",
        "use --batching_strategy packing",
        "utils/config_utils.py, get_dataloader_kwargs",
    ),
    (
        "checkpoint_type",
        lambda settings, _: (
            _fsdp(settings)
            and settings.text("checkpoint_type", "StateDictType.SHARDED_STATE_DICT")
            not in ("StateDictType.SHARDED_STATE_DICT", "StateDictType.FULL_STATE_DICT")
        ),
        "a checkpoint_type on the command line counts in full spelling only",
        "write StateDictType.SHARDED_STATE_DICT or StateDictType.FULL_STATE_DICT",
        "utils/config_utils.py, check_fsdp_config",
    ),
    (
        "sharding_strategy",
        lambda settings, given: _fsdp(settings) and "sharding_strategy" in settings and given.ranks > 1,
        "FSDP takes no sharding strategy as the word that a command line gives",
        "set it in configs/fsdp.py, as ShardingStrategy.NAME",
        "finetuning.py, main; torch.distributed.fsdp, SHARDING_STRATEGY_MAP",
    ),
    (
        "sharding_group_size",
        lambda settings, _: (
            settings.flag("hsdp")
            and nearest_strategy(settings) == "HYBRID_SHARD"
            and settings.integer("sharding_group_size", 0) == 0
        ),
        "hsdp needs the sizes of its groups",
        "set sharding_group_size and replica_group_size",
        "utils/fsdp_utils.py, hsdp_device_mesh",
    ),
    (
        "enable_fsdp",
        lambda settings, given: _fsdp(settings) and given.launch.launcher == "python",
        "FSDP needs the environment that torchrun sets",
        "start it with torchrun --nproc_per_node",
        "finetuning.py, main",
    ),
    (
        "enable_fsdp",
        lambda settings, given: not _fsdp(settings) and given.launch.launcher == "torchrun" and given.ranks > 1,
        "without enable_fsdp every process trains on its own, all on the first card",
        "add --enable_fsdp, or start one process",
        "finetuning.py, main",
    ),
)
"""What it refuses at start: the key, when, why, what to do, and where in src/llama_cookbook that stands."""


def conflicts(settings: Settings, given: Given) -> Iterator[Problem]:
    """The rules that ``settings`` break."""
    for key, applies, message, hint, source in CONFLICTS:
        if applies(settings, given):
            yield Problem(
                "conflict",
                Severity.ERROR,
                message,
                hint=hint,
                key=key,
                place=settings.place(key),
                source=f"llama-cookbook 0.0.5.post1 {source}",
            )


def assumptions(settings: Settings, given: Given, fields: Mapping[str, Any]) -> Iterator[Problem]:
    """What is estimated otherwise than it runs, with what it may be off by."""
    yield unmeasured("llama-cookbook", SOURCE, OWN_LOOP_WITHIN)
    if settings.flag("use_peft") and _method(settings) not in ("lora", "llama_adapter"):
        why = f"{_method(settings)[:20]} has other parameters and activations than LoRA"
        yield unmodelled(settings, "peft_method", why)
    if quantization_of(settings) == "8bit":
        yield unmodelled(settings, "quantization", "8-bit weights are estimated as 16-bit ones")
    if quantization_of(settings) == "4bit" and not settings.flag("use_peft"):
        yield unmodelled(settings, "quantization", "4-bit weights do not train: all is estimated in 16 bits")
    if settings.text("batching_strategy", "packing") == "padding":
        yield Problem(
            "unresolved",
            Severity.WARNING,
            f"padding cuts no sample: they are as long as in the data, and estimated with {fields['seq_len']} tokens",
            hint="use --batching_strategy packing, or state the longest sample with --set context_length=...",
            key="batching_strategy",
            place=settings.place("batching_strategy"),
            may_need_more="context_length" not in settings,
            may_need_less=True,
        )
    if fields["sharding"] == "hsdp" and settings.flag("hsdp") and not _groups_are_machines(settings, given):
        yield unmodelled(settings, "sharding_group_size", "HSDP is estimated as sharded inside a machine")
    yield from _loading(settings, given)


def _groups_are_machines(settings: Settings, given: Given) -> bool:
    size = settings.integer("sharding_group_size", 0)
    return size == (given.launch.per_node or given.ranks)


def _loading(settings: Settings, given: Given) -> Iterator[Problem]:
    """Host RAM: from_pretrained runs on every rank, and only transformers' own switch keeps the others' copies away."""
    saves = settings.flag("low_cpu_fsdp")
    switched = all(given.launch.variable(name).lower() in TRUE for name in _LOADING)
    if not settings.flag("enable_fsdp") or given.ranks == 1 or (saves and switched):
        return
    ranks = given.launch.per_node or given.ranks
    params = _params(settings.text("model_name"))
    low = "--low_cpu_fsdp alone does not keep" if saves else "nothing keeps"
    yield Problem(
        "host-memory",
        Severity.WARNING,
        f"{low} the {ranks} ranks of a machine from loading a whole copy of the model into its RAM each",
        hint=f"--low_cpu_fsdp with {'=1 '.join(_LOADING)}=1 set",
        key="low_cpu_fsdp",
        place=settings.place("low_cpu_fsdp"),
        source=SOURCE,
        needed_bytes=2 * params * ranks if params is not None else None,
    )


def _params(model: str) -> int | None:
    """The elements of a model of the catalogue; None for another."""
    name = model.strip().lower()
    for entry in list_models():
        if name in {each.lower() for each in (entry.id, *entry.aliases, *entry.same_shape_ids)}:
            return entry.total_params
    return None
