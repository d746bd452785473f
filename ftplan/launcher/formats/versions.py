"""Keys as a release spells them: what the vocabulary knows of names that came, went or changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.profiles.frameworks import Vocabulary

OTHER_VALUES: Final = frozenset(
    {
        *("xformers_attention", "sdp_attention", "flex_attention", "flash_attention", "sage_attention"),
        *("eager_attention", "use_flash_attn", "flash_attn_d512", "unsloth_lora_mlp", "max_source_length"),
        *("max_target_length", "group_by_length", "include_inputs_for_metrics", "lora_bf16_mode"),
        *("fsdp_config.fsdp_sharding_strategy", "use_loss_scale", "vllm_dtype", "image_resolution"),
    }
)
"""Older names that took other values than the present one: flags, or a part of what it says."""


def release(version: str) -> tuple[int, ...]:
    """The numbers of a release, to compare: ``4.46.0rc1`` is (4, 46). Raises InputError for what starts with none."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    if not numbers:
        raise InputError(f"{version[:40]!r} is no release", hint="write its numbers, such as 5.23", field="version")
    return tuple(numbers)


def is_before(version: str, other: str) -> bool:
    """Whether ``version`` is an older release than ``other``; no version means the newest one."""
    return bool(version) and release(version) < release(other)


def for_release(arguments: Mapping[str, Any], vocabulary: Vocabulary, version: str) -> dict[str, Any]:
    """As `written` for a release that somebody asks for, without what it lacks where that says its own default."""
    release(version)
    kept = {}
    for key, value in arguments.items():
        came = vocabulary.added.get(vocabulary.canonical(key), "") if key in vocabulary.own else ""
        says_default = key in vocabulary.defaults and value == vocabulary.defaults[key]
        if not (came and says_default and is_before(version, came) and not _older_name(key, vocabulary, version)):
            kept[key] = value
    return written(kept, vocabulary, version)


def written(
    arguments: Mapping[str, Any], vocabulary: Vocabulary, version: str = "", prefix: str = ""
) -> dict[str, Any]:
    """``arguments`` under the names that the release has; without one, that of the vocabulary.

    Only the vocabulary's own names are looked at: those of an included library follow that library's releases. Raises
    InputError for what the release lacks under any name.
    """
    version = version or vocabulary.version
    found: dict[str, Any] = {}
    for key, value in arguments.items():
        dotted = f"{prefix}{key}"
        name = _name(dotted, vocabulary, version).removeprefix(prefix)
        inside = isinstance(value, Mapping) and any(known.startswith(f"{dotted}.") for known in vocabulary.defaults)
        found[name] = written(value, vocabulary, version, f"{dotted}.") if inside else value
    return found


def _name(key: str, vocabulary: Vocabulary, version: str) -> str:
    """What the release calls ``key``."""
    if key not in vocabulary.own:
        return key
    present = key if key in OTHER_VALUES else vocabulary.canonical(key)
    added = vocabulary.added.get(present, "")
    if not added or not is_before(version, added):
        return present
    older = _older_name(present, vocabulary, version)
    if older:
        return older
    raise InputError(
        f"{vocabulary.name} {version} has no {present}, which came with {added}",
        hint=f"choose {vocabulary.name} {added} or newer, or do without it",
        field=present,
    )


def _older_name(present: str, vocabulary: Vocabulary, version: str) -> str:
    """The name under which a release takes the same values; empty without one."""
    for old, each in vocabulary.renamed.items():
        is_known = each.to == present and each.since and old in vocabulary.own and old not in OTHER_VALUES
        if is_known and not _is_gone(old, vocabulary, version):
            return old
    return ""


def _is_gone(old: str, vocabulary: Vocabulary, version: str) -> bool:
    removed = vocabulary.renamed[old].removed
    return removed is not None and not is_before(version, removed)
