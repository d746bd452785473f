"""DeepSpeed and FSDP settings that frameworks have in their packages and users name without having the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_BATCH: Final[Mapping[str, Any]] = {
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
}
_BUCKETS: Final[Mapping[str, Any]] = {
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
}
_ON_HOST: Final[Mapping[str, Any]] = {"device": "cpu", "pin_memory": True}
_AXOLOTL_ZERO3: Final[Mapping[str, Any]] = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 0,
    **_BUCKETS,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}
_SWIFT_ZERO3: Final[Mapping[str, Any]] = {
    "stage": 3,
    "overlap_comm": False,
    "contiguous_gradients": True,
    **_BUCKETS,
}


def _with(zero: Mapping[str, Any], *, bf16: bool | str = "auto", **more: Any) -> dict[str, Any]:
    return {**_BATCH, "zero_optimization": dict(zero), "bf16": {"enabled": bf16}, **more}


def _swift(stage: int, **more: Any) -> dict[str, Any]:
    return _with(
        {"stage": stage, "overlap_comm": False, "contiguous_gradients": True, "reduce_bucket_size": 2e8, **more}
    )


AXOLOTL_DEEPSPEED: Final[Mapping[str, Mapping[str, Any]]] = {
    "zero1.json": _with({"stage": 1, "overlap_comm": True}),
    "zero2.json": _with({"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}}),
    "zero3.json": _with(_AXOLOTL_ZERO3),
    "zero3_bf16.json": _with(_AXOLOTL_ZERO3, bf16=True),
    "zero3_bf16_cpuoffload_all.json": _with(
        {**_AXOLOTL_ZERO3, "offload_optimizer": _ON_HOST, "offload_param": _ON_HOST},
        bf16=True,
        zero_force_ds_cpu_optimizer=False,
    ),
    "zero3_bf16_cpuoffload_params.json": _with(
        {**_AXOLOTL_ZERO3, "offload_param": _ON_HOST}, bf16=True, zero_force_ds_cpu_optimizer=False
    ),
}
"""What decides memory in axolotl 0.18.0's deepspeed_configs; ``zero2.json`` offloads the optimizer there."""

SWIFT_DEEPSPEED: Final[Mapping[str, Mapping[str, Any]]] = {
    "zero0": _swift(0),
    "zero1": _swift(1),
    "zero2": _swift(2),
    "zero2_offload": _swift(2, offload_optimizer=_ON_HOST),
    "zero3": _with(_SWIFT_ZERO3),
    "zero3_offload": _with({**_SWIFT_ZERO3, "offload_optimizer": _ON_HOST, "offload_param": _ON_HOST}),
}
"""The same in ms-swift 4.6's swift/config; its allgather bucket of 2e8 elements is not in a `RunConfig`."""

SWIFT_FSDP: Final[Mapping[str, Mapping[str, Any]]] = {
    "fsdp2": {
        "fsdp": "full_shard auto_wrap",
        "fsdp_config": {
            "fsdp_version": 2,
            "reshard_after_forward": True,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "cpu_ram_efficient_loading": True,
            "activation_checkpointing": True,
        },
    },
}
