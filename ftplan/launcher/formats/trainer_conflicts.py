"""What transformers' Trainer refuses before the first step: arguments against each other, and against DeepSpeed's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ftplan.launcher.formats.deepspeed import AUTO
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.verdicts import Problem, Severity

ARGUMENTS: Final = "transformers 5.23 training_args.py, _validate_args"
DEEPSPEED: Final = "transformers 5.23 integrations/deepspeed.py, trainer_config_process"
TRAINER: Final = "transformers 5.23 trainer.py"

_Rule = tuple[str, Callable[[Settings, str], bool], str, str, str]


def _strategy(settings: Settings, key: str, default: str) -> str:
    return settings.text(key, default).lower().replace("false", "no")


CONFLICTS: Final[tuple[_Rule, ...]] = (
    (
        "fp16",
        lambda settings, _: settings.flag("bf16") and settings.flag("fp16"),
        "bf16 and fp16 are both set",
        "set one",
        ARGUMENTS,
    ),
    (
        "load_best_model_at_end",
        lambda settings, _: (
            settings.flag("load_best_model_at_end")
            and _strategy(settings, "save_strategy", "steps")
            not in ("best", _strategy(settings, "eval_strategy", "no"))
        ),
        "load_best_model_at_end needs the same strategy for saving as for evaluating",
        "set eval_strategy and save_strategy alike",
        ARGUMENTS,
    ),
    (
        "auto_find_batch_size",
        lambda settings, sharding: settings.flag("auto_find_batch_size") and sharding == "zero3",
        "auto_find_batch_size is not supported with DeepSpeed ZeRO-3",
        "leave it out, or use ZeRO-2",
        TRAINER,
    ),
    (
        "save_only_model",
        lambda settings, sharding: (
            settings.flag("save_only_model")
            and settings.flag("load_best_model_at_end")
            and sharding not in ("", "none", "ddp")
        ),
        "save_only_model cannot be used with load_best_model_at_end under DeepSpeed or FSDP",
        "leave one of them out",
        TRAINER,
    ),
)
"""The key, when, why, what to do and who says so; the second argument is the sharding."""


def conflicts(settings: Settings, sharding: str) -> Iterator[Problem]:
    """The refusals that ``settings`` meet."""
    for key, applies, message, hint, source in CONFLICTS:
        if applies(settings, sharding):
            place = settings.place(key)
            yield Problem("conflict", Severity.ERROR, message, hint=hint, key=key, place=place, source=source)


FSDP1_ONLY: Final = frozenset({"no_shard", "hybrid_shard", "hybrid_shard_zero2"})


def only_in_fsdp1(words: Sequence[str], origin: Setting) -> Iterator[Problem]:
    """Words of ``fsdp`` that FSDP's second version, the one without any, has no equal of."""
    for word in words:
        if word in FSDP1_ONLY:
            yield Problem(
                "conflict",
                Severity.ERROR,
                f"fsdp {word} is only available with FSDP1",
                hint="use full_shard, or set fsdp_config's version to 1",
                key="fsdp",
                place=origin.place,
                source="transformers 5.23 training_args.py, _apply_legacy_fsdp_to_config",
            )


def mismatches(inside: Settings, settings: Settings) -> Iterator[Problem]:
    """Values of a DeepSpeed file that differ from the arguments: only "auto" takes theirs."""
    defaults = load_vocabulary("transformers").defaults
    for key, name in (
        ("train_micro_batch_size_per_gpu", "per_device_train_batch_size"),
        ("gradient_accumulation_steps", "gradient_accumulation_steps"),
        ("gradient_clipping", "max_grad_norm"),
        ("optimizer.params.lr", "learning_rate"),
        ("optimizer.params.eps", "adam_epsilon"),
        ("optimizer.params.weight_decay", "weight_decay"),
    ):
        if inside.value(key, AUTO) != AUTO:
            yield from _differ(inside, key, name, inside.number(key, 0), settings.number(name, defaults[name]))
    for name in ("bf16", "fp16"):
        key = f"{name}.enabled"
        if inside.value(key, AUTO) != AUTO:
            full = settings.flag(f"{name}_full_eval")
            yield from _differ(inside, key, name, inside.flag(key), settings.flag(name) or full)


def _differ(inside: Settings, key: str, name: str, stated: Any, mine: Any) -> Iterator[Problem]:
    if stated != mine:
        yield differing(inside[key], name, mine)


def differing(origin: Setting, name: str, mine: Any) -> Problem:
    """A value of DeepSpeed's that is not the argument's."""
    return Problem(
        "conflict",
        Severity.ERROR,
        f"{origin.key} is {_shown(origin.value)} for DeepSpeed, and {name} is {_shown(mine)}",
        hint='write "auto" into DeepSpeed\'s file',
        key=origin.key,
        place=origin.place,
        source=DEEPSPEED,
    )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)[:40]
