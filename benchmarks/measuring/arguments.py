"""A case as the Trainer's arguments: what everyone sets, and what each way of sharding adds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from benchmarks.measuring.case import Case


def training_arguments(case: Case, world_size: int, *, on_cpu: bool) -> TrainingArguments:
    """The arguments of ``case``; making them starts the process group and, under ZeRO-3, zero.Init."""
    kind: Any = TrainingArguments
    of_trl: dict[str, Any] = {}
    if case.trl:
        from trl import SFTConfig

        kind = SFTConfig
        of_trl = {"max_length": case.seq, "dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False}
    return kind(
        output_dir=str(Path(tempfile.gettempdir()) / "out_measure"),
        max_steps=case.steps,
        per_device_train_batch_size=case.micro,
        per_device_eval_batch_size=case.micro,
        gradient_accumulation_steps=case.accum,
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        bf16=case.amp == "bf16",
        fp16=case.amp == "fp16",
        optim=case.optim,
        gradient_checkpointing=case.ckpt,
        gradient_checkpointing_kwargs={"use_reentrant": False} if case.ckpt else None,
        use_liger_kernel=case.liger,
        ddp_find_unused_parameters=False,
        max_grad_norm=1.0,
        seed=0,
        use_cpu=on_cpu,
        **sharding_arguments(case, world_size),
        **of_trl,
    )


def sharding_arguments(case: Case, world_size: int) -> dict[str, Any]:
    """The arguments that spread a case over ranks; none for one process and DDP."""
    arguments: dict[str, Any] = {}
    if case.offload and case.parallel.startswith("fsdp"):
        arguments["ddp_backend"] = "cpu:gloo,cuda:nccl"  # offloaded gradients are clipped on the host
    if case.parallel == "hsdp":
        from accelerate.parallelism_config import ParallelismConfig

        arguments["parallelism_config"] = ParallelismConfig(dp_replicate_size=2, dp_shard_size=world_size // 2)
    if case.zero_stage:
        arguments["deepspeed"] = deepspeed_config(case)
    if case.is_fsdp:
        arguments["fsdp"] = "full_shard auto_wrap"
        arguments["fsdp_config"] = fsdp_config(case)
    if case.sync_each_batch:
        arguments["accelerator_config"] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return arguments


def deepspeed_config(case: Case) -> dict[str, Any]:
    """DeepSpeed's configuration as transformers' documentation gives it, with offload to pinned memory."""
    zero: dict[str, Any] = {
        "stage": case.zero_stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "allgather_bucket_size": 5e8,
    }
    if case.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "sub_group_size": 1e9,
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
        }
    if case.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if case.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
    }


def fsdp_config(case: Case) -> dict[str, Any]:
    """accelerate's FSDP2 options; checkpointing is the Trainer's."""
    config: dict[str, Any] = {
        "version": 2,
        "fsdp_version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": case.parallel != "fsdp2-grad-op",
        "activation_checkpointing": False,
        "cpu_ram_efficient_loading": False,
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    if case.offload:
        config |= {"cpu_offload": True, "offload_params": True}
    return config
