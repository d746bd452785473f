"""What axolotl's settings ask for, in one word each: attention, Liger, the version of FSDP, the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ftplan.launcher.formats.settings import Settings

NAME: Final = "axolotl"
LIGER: Final = "axolotl.integrations.liger.LigerPlugin"
LORA_KERNELS: Final = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
FLASH: Final = "flash_attention_2"
ATTENTION_FLAGS: Final[Mapping[str, str]] = {
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
    "flash_attention": FLASH,
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
"""Older flags, the one that wins first."""
ALIASES: Final = {"flash": FLASH, "flex": "flex_attention", "sdp": "sdpa"}
WITHOUT_CAST: Final = ("eager", "sdpa")


def attention_key(settings: Settings) -> str:
    """The key that decides about attention."""
    return next((flag for flag in ATTENTION_FLAGS if settings.flag(flag)), "attn_implementation")


def asked_attention(settings: Settings) -> str:
    """The attention that is asked for, by its name in transformers; empty where none is."""
    named = settings.text("attn_implementation").strip()
    flagged = next((name for flag, name in ATTENTION_FLAGS.items() if settings.flag(flag)), "")
    return ALIASES.get(named, named) or flagged or (FLASH if settings.flag("gemma4_hybrid_attn_impl") else "")


def attention(settings: Settings) -> tuple[str, bool]:
    """The attention to estimate with, and whether packed samples are kept apart without a mask."""
    asked = asked_attention(settings)
    if "flash" in asked or asked in ("xformers", "sage"):
        return FLASH, True
    return (asked if asked in WITHOUT_CAST else "sdpa"), asked in (*WITHOUT_CAST, "flex_attention")


def has_liger(settings: Settings) -> bool:
    """Whether Liger's plugin is on."""
    return any(name.endswith("LigerPlugin") for name in settings.words("plugins"))


def has_liger_loss(settings: Settings) -> bool:
    """Whether Liger's fused loss takes the head's place."""
    return has_liger(settings) and settings.flag("liger_fused_linear_cross_entropy")


def adapter(settings: Settings) -> str:
    """The adapter's kind in small letters, empty without one."""
    return settings.text("adapter").lower()


def fsdp_version(settings: Settings) -> int:
    """The version of FSDP that is asked for; the first where none is."""
    inside = settings.value("fsdp_config", {})
    inner = (inside.get("fsdp_version") or inside.get("version")) if isinstance(inside, Mapping) else None
    return 2 if str(settings.value("fsdp_version") or inner or 1) == "2" else 1


def reenters(settings: Settings) -> Any:
    """``use_reentrant`` as it is stated, None where it is not."""
    inside = settings.value("gradient_checkpointing_kwargs", {})
    return inside.get("use_reentrant") if isinstance(inside, Mapping) else None
