"""Configurations that one framework's files can say, mostly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st
from strategies import configs

from ftplan.errors import CannotExpressError, InputError
from ftplan.launcher.formats.given import Format, Target
from ftplan.launcher.formats.rendering import rendered
from ftplan.spec import RunConfig


def targets(releases: tuple[str, ...] = ("",)) -> st.SearchStrategy[Target]:
    return st.builds(
        Target,
        nodes=st.sampled_from((1, 1, 2)),
        per_node=st.sampled_from((1, 2, 8)),
        version=st.sampled_from(releases),
        learning_rate=st.sampled_from((None, 1e-5, 3e-4)),
    )


@st.composite
def meant(
    draw: st.DrawFn, fixed: Callable[[RunConfig], Mapping[str, Any]], releases: tuple[str, ...] = ("",)
) -> tuple[RunConfig, Target]:
    """A configuration with the processes it is for: any, or of a kind that the framework has, with ``fixed`` fields."""
    config, target = draw(configs()), draw(targets(releases))
    if draw(st.integers(0, 3)) == 0:
        return config, target
    fields: dict[str, Any] = config.model_dump() | {"adapter_dtype": None} | _spread(config, target.ranks)
    fields["padding"] = not config.packing and config.micro_batch > 1
    return RunConfig(**(fields | fixed(RunConfig(**fields)))), target


def _spread(config: RunConfig, ranks: int) -> dict[str, Any]:
    """Sharding and offload as files have them, on so many processes."""
    sharding = "fsdp2" if config.sharding == "hsdp" else config.sharding
    if ranks == 1 or sharding == "none":
        sharding = "none" if ranks == 1 else "ddp"
    offload = config.offload
    if sharding in ("none", "ddp"):
        offload = "none"
    elif offload != "none":
        offload = "optimizer" if sharding in ("zero1", "zero2") else "optimizer+params"
    return {"sharding": sharding, "offload": offload}


def written(chosen: Format, config: RunConfig, target: Target) -> tuple[dict[str, str], InputError | None]:
    """The files, or what keeps the format from writing them."""
    try:
        return rendered(chosen, config, target), None
    except InputError as error:
        return {}, error


def names_what_is_missing(error: InputError, target: Target) -> bool:
    """Whether the error names fields of a configuration, or a key with the release that lacks it."""
    if isinstance(error, CannotExpressError):
        return bool(error.fields) and set(error.fields) <= set(RunConfig.model_fields)
    return bool(error.field and target.version) and target.version in error.message


def without_effect(config: RunConfig) -> set[str]:
    """Fields that mean nothing for the method, and the model, which is written by its hub id."""
    ignored = {"model"}
    if not config.trains_adapters:
        ignored |= {"lora_rank", "lora_alpha", "lora_targets", "lora_dropout", "adapter_dtype"}
    if config.quantization == "none":
        ignored |= {"double_quantization", "prepare_kbit"}
    if config.accumulation == 1:
        ignored |= {"sync_each_batch"}
    return ignored


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without what is only their spelling."""
    targets = str(fields.get("lora_targets", ""))
    same = {"adamw_8bit": "adamw_bnb_8bit", "paged_adamw": "paged_adamw_32bit"}
    optimizer = str(fields.get("optimizer", ""))
    return {
        **fields,
        "lora_targets": frozenset(("q_proj", "v_proj") if targets == "qv" else targets.split(",")),
        "optimizer": same.get(optimizer, optimizer),
    }
