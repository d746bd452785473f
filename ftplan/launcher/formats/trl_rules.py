"""What TRL's SFTTrainer refuses, and what it does that no estimator models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from ftplan.launcher.formats.dialect import unmodelled
from ftplan.launcher.formats.given import Given
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.settings import Settings
from ftplan.verdicts import Problem, Severity

TRAINER: Final = "trl 1.16 trainer/sft_trainer.py"
MODEL: Final = "trl 1.16 trainer/model_config.py"
LOSSES: Final = ("nll", "dft", "chunked_nll")
PACKING_LOSES_SAMPLES: Final = "wrapped"
"""The strategy that cuts samples and keeps no borders between them; the others are bfd and bfd_split."""


def is_unlimited(settings: Settings) -> bool:
    """Whether samples are not cut: ``max_length`` is null."""
    return "max_length" in settings and settings["max_length"].value is None and not settings["max_length"].unresolved


def packs(settings: Settings) -> bool:
    """Whether samples share rows and are kept apart: by bfd packing or in batches without padding."""
    packing = settings.flag("packing") and settings.text("packing_strategy", "bfd") != PACKING_LOSES_SAMPLES
    return packing or settings.flag("padding_free")


def _checkpoints(settings: Settings, option: str) -> bool:
    names = (f"{prefix}_checkpointing_kwargs.{option}" for prefix in ("activation", "gradient"))
    return any(settings.flag(name) for name in names)


def _inside(settings: Settings, key: str) -> Mapping[str, Any]:
    value = settings.value(key, {})
    return value if isinstance(value, Mapping) else {}


_Rule = tuple[str, Callable[[Settings, str], bool], str, str, str]

CONFLICTS: Final[tuple[_Rule, ...]] = (
    (
        "load_in_8bit",
        lambda settings, _: settings.flag("load_in_8bit") and settings.flag("load_in_4bit"),
        "load_in_8bit and load_in_4bit are both set",
        "set one",
        MODEL,
    ),
    (
        "use_peft",
        lambda settings, _: (
            (settings.flag("load_in_4bit") or settings.flag("load_in_8bit")) and not settings.flag("use_peft")
        ),
        "a quantized model cannot be trained without adapters",
        "set use_peft, or leave the quantization out",
        "transformers 5.23 trainer_utils.py, validate_quantization_for_training",
    ),
    (
        "padding_free",
        lambda settings, _: (
            settings.flag("padding_free") and not settings.flag("packing") and not is_unlimited(settings)
        ),
        "padding_free without packing does not enforce max_length",
        "set packing, or max_length null",
        TRAINER,
    ),
    (
        "max_length",
        lambda settings, _: settings.flag("packing") and is_unlimited(settings),
        "packing needs a max_length",
        "set max_length",
        TRAINER,
    ),
    (
        "liger_kernel_config",
        lambda settings, _: (
            settings.flag("use_liger_kernel")
            and _inside(settings, "liger_kernel_config").get("fused_linear_cross_entropy") is True
        ),
        "Liger's fused loss replaces the forward in which TRL computes its own",
        "leave fused_linear_cross_entropy out",
        TRAINER,
    ),
    (
        "lora_target_modules",
        lambda settings, _: settings.flag("use_peft") and "lm_head" in settings.words("lora_target_modules"),
        "an adapter on lm_head would never be trained: the loss takes the head's weight itself",
        "remove lm_head from lora_target_modules",
        TRAINER,
    ),
    (
        "loss_type",
        lambda settings, _: settings.text("loss_type", "nll") not in LOSSES,
        "loss_type is none that SFTTrainer knows",
        "valid: nll, dft",
        TRAINER,
    ),
    (
        "gradient_checkpointing_kwargs",
        lambda settings, sharding: (
            _checkpoints(settings, "selective")
            and (_checkpoints(settings, "use_reentrant") or (sharding == "zero3" and settings.flag("use_peft")))
        ),
        "selective checkpointing needs the non-reentrant kind, which adapters under ZeRO-3 cannot have",
        "leave selective out",
        TRAINER,
    ),
    (
        "gradient_checkpointing_kwargs",
        lambda settings, _: _checkpoints(settings, "selective") and not settings.flag("gradient_checkpointing", True),
        "selective checkpointing needs gradient_checkpointing",
        "set gradient_checkpointing, or leave selective out",
        TRAINER,
    ),
)
"""The key, when, why, what to do and who says so; the second argument is the sharding."""


def rules(given: Given, base: Partial, *, fused_head: bool) -> Iterator[Problem]:
    """Refusals, and what is estimated as something else than it is."""
    settings = given.settings
    sharding = str(base.fields.get("sharding", given.around.fields.get("sharding", "")))
    for key, applies, message, hint, source in CONFLICTS:
        if applies(settings, sharding):
            place = settings.place(key)
            yield Problem("conflict", Severity.ERROR, message, hint=hint, key=key, place=place, source=source)
    yield from _no_data(given)
    if is_unlimited(settings) and not settings.flag("packing"):
        yield unmodelled(
            settings, "max_length", "samples are not cut, so that the longest decides", less=False, source=TRAINER
        )
    attention = settings.text("attn_implementation", "sdpa")
    if packs(settings) and base.fields["micro_batch"] != 1 and not attention.startswith("flash_attention"):
        why = f"TRL lays the rows of a batch end to end, for which {attention} takes a mask of all tokens by all"
        key = "packing" if settings.flag("packing") else "padding_free"
        yield unmodelled(settings, key, why, less=False, source=TRAINER)
    if fused_head and settings.flag("use_liger_kernel"):
        why = "TRL takes Liger's kernels for the layers only, and computes the loss itself"
        yield unmodelled(settings, "use_liger_kernel", why, more=False, source=TRAINER)


def _no_data(given: Given) -> Iterator[Problem]:
    settings = given.settings
    if given.launch.launcher == "trl" and not settings.value("dataset_name") and not settings.value("datasets"):
        yield Problem(
            "conflict",
            Severity.ERROR,
            "neither dataset_name nor datasets is set",
            hint="set dataset_name",
            key="dataset_name",
            source="trl 1.16 scripts/sft.py",
        )
