"""What of a torchtune configuration is estimated otherwise than its recipes do it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ftplan.launcher.formats.dialect import OWN_LOOP_WITHIN, unmeasured, unmodelled
from ftplan.launcher.formats.launch import Launch
from ftplan.launcher.formats.settings import Settings
from ftplan.launcher.formats.torchtune_models import Builder
from ftplan.launcher.formats.torchtune_recipes import Recipe
from ftplan.profiles.models import load_model
from ftplan.units import DTYPE_BYTES
from ftplan.verdicts import Problem, Severity

SOURCE: Final = "torchtune 0.7 (bd2a0fc7) recipes and torchtune/training"
KNOWN_OPTIMIZERS: Final = (
    *("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD", "bitsandbytes.optim.AdamW8bit"),
    *("bitsandbytes.optim.PagedAdamW", "bitsandbytes.optim.PagedAdamW8bit", "bitsandbytes.optim.Lion8bit"),
)
CHUNKED_OUTPUT: Final = "CEWithChunkedOutputLoss"
PARTED: Final = "LinearCrossEntropyLoss"
LOGITS_BYTES: Final = 2
"""Bytes of a token and a word of the vocabulary that CEWithChunkedOutputLoss has beside the other's: all logits."""
_NF4_PART: Final = 0.25


def assumptions(
    settings: Settings, recipe: Recipe, builder: Builder | None, fields: Mapping[str, Any], launch: Launch
) -> Iterator[Problem]:
    """Every such thing, with what it may be off by."""
    yield unmeasured("torchtune", SOURCE, OWN_LOOP_WITHIN)
    if settings.value("tokenizer.max_seq_len") is None:
        yield _no_length(settings, fields)
    yield from _loss(settings, builder, fields, recipe)
    if settings.text("optimizer._component_") not in KNOWN_OPTIMIZERS:
        name = settings.text("optimizer._component_")[:60]
        yield unmodelled(settings, "optimizer._component_", f"{name} is estimated as {fields['optimizer']}")
    if fields["method"] != "full" and builder is not None and builder.fused:
        yield Problem(
            "assumption",
            Severity.NOTE,
            "adapters on parts of a fused matrix are estimated as one on all of it, as transformers has it",
            key="model.lora_attn_modules",
            place=settings.place("model.lora_attn_modules"),
            may_need_more=True,
            may_need_less=True,
            within=0.02,
        )
    yield from _mesh(settings, recipe, fields, launch)
    if settings.text("device", "cuda").split(":")[0] != "cuda":
        yield unmodelled(settings, "device", f"{settings.text('device')[:20]} is estimated as a CUDA device")
    if "ac_mode" in settings and settings.value("ac_mode") not in (None, "None"):
        yield unmodelled(settings, "ac_mode", "selective checkpointing is estimated as none")


def _no_length(settings: Settings, fields: Mapping[str, Any]) -> Problem:
    return Problem(
        "unresolved",
        Severity.WARNING,
        f"no max_seq_len is set: samples are as long as in the data, and estimated with {fields['seq_len']} tokens",
        hint="set it in the file, or state the longest sample with --set tokenizer.max_seq_len=...",
        key="tokenizer.max_seq_len",
        place=settings.place("tokenizer.max_seq_len"),
        may_need_more=True,
        may_need_less=True,
    )


def _loss(settings: Settings, builder: Builder | None, fields: Mapping[str, Any], recipe: Recipe) -> Iterator[Problem]:
    name = settings.text("loss._component_").rsplit(".", 1)[-1]
    if name == PARTED:
        return
    place = settings.place("loss._component_")
    if name != CHUNKED_OUTPUT:
        yield Problem(
            "assumption",
            Severity.NOTE,
            f"{name[:40] or 'the loss'} is estimated on logits in fp32; torchtune converts none",
            key="loss._component_",
            place=place,
            may_need_less=True,
        )
        return
    yield Problem(
        "assumption",
        Severity.NOTE,
        f"{name} is estimated as {PARTED}, which does not hold all logits at once",
        hint=f"use torchtune.modules.loss.{PARTED}",
        key="loss._component_",
        place=place,
        source="torchtune 0.7 torchtune/modules/loss/ce_chunked_output_loss.py",
        may_need_more=True,
        within=_logits_part(builder, fields, recipe),
    )


def _logits_part(builder: Builder | None, fields: Mapping[str, Any], recipe: Recipe) -> float | None:
    """All logits as a part of one rank's weights, which are less than all that it needs; None if that is not known."""
    if builder is None or fields["offload"] != "none":
        return None
    model = load_model(builder.id)
    logits = LOGITS_BYTES * model.vocab_size * int(fields["micro_batch"]) * int(fields["seq_len"])
    weights = model.total_params * DTYPE_BYTES[fields["weights_dtype"]]
    if fields["method"] == "qlora":
        weights = round(weights * _NF4_PART)
    return logits * (recipe.ranks if str(fields["sharding"]) not in ("none", "ddp") else 1) / weights


def _mesh(settings: Settings, recipe: Recipe, fields: Mapping[str, Any], launch: Launch) -> Iterator[Problem]:
    """Meshes that are none of the sharding's names."""
    replicas = settings.integer("data_parallel_replicate_dim", 1, least=1)
    if fields["sharding"] == "hsdp" and (
        launch.nodes != replicas or not settings.flag("fsdp_reshard_after_forward", True)
    ):
        why = f"{replicas} replicas are estimated as one a machine, sharded inside it"
        yield unmodelled(settings, "data_parallel_replicate_dim", why)
    if fields["sharding"] == "ddp":
        yield Problem(
            "conflict",
            Severity.ERROR,
            "with data_parallel_shard_dim 1 nothing shards the model, and nothing reduces its gradients",
            hint="set data_parallel_shard_dim -1",
            key="data_parallel_shard_dim",
            place=settings.place("data_parallel_shard_dim"),
            source="torchtune 0.7 recipes/full_finetune_distributed.py, _setup_model",
        )
    several = (launch.nodes or 1) > 1 and recipe.launched
    if several and "rdzv_endpoint" not in launch.options and not launch.variable("PET_RDZV_ENDPOINT"):
        yield Problem(
            "conflict",
            Severity.WARNING,
            "tune run without --rdzv_endpoint starts the processes of one machine",
            hint="give --rdzv_backend c10d --rdzv_endpoint HOST:29500, or set PET_RDZV_ENDPOINT",
            key="config",
            source="torchtune 0.7 torchtune/_cli/run.py, _run_distributed",
        )
