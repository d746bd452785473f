"""Frozen inputs: what to train (`RunConfig`), what is asked (`PlanRequest`), and on which devices (`Inventory`).

Light to import: pydantic and the standard library only. Nothing in a `RunConfig` is "auto" but the sizes of DeepSpeed's
buckets, which follow from the model (`OF_THE_MODEL`); a field that is left out when one is built takes the default
documented here, which may follow from other fields (`_DERIVED`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Method = Literal["full", "lora", "qlora", "llama-adapter"]
Dtype = Literal["fp32", "bf16", "fp16"]
Precision = Literal["none", "bf16", "fp16"]
Quantization = Literal["none", "nf4", "fp4"]
Sharding = Literal["none", "ddp", "fsdp2", "fsdp2-grad-op", "hsdp", "zero1", "zero2", "zero3"]
Offload = Literal["none", "optimizer", "optimizer+params"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Kernels = Literal["none", "liger"]
LossPath = Literal["full", "chunked", "liger"]
Link = Literal["auto", "nvlink", "pcie"]
StackName = Literal["trainer", "trl", "llamafactory", "axolotl", "swift", "torchtune", "cookbook"]
Objective = Literal["throughput", "memory", "headroom", "cost"]
EstimatorName = Literal["analytic", "trace"]

PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Elements = Annotated[int, Field(ge=0, lt=2**63)]

DEFAULT_MARGIN: Final = 0.03
"""Part of each card that plans keep free."""


class Spec(BaseModel):
    """Base of all inputs: immutable, no unknown fields, no silent conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RunConfig(Spec):
    """One fine-tuning run, fully explicit; the type every part of ftplan reads or writes.

    ``micro_batch`` counts samples a rank puts through one forward; ``seq_len`` counts tokens of each sample after
    truncation, padding or packing; ``accumulation`` counts micro-batches between two optimizer steps.
    """

    model: str = Field(min_length=1, description="catalogue name or alias, hub id, or a path to a config or a folder")
    method: Method = "lora"
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveInt = 32
    lora_targets: str = Field(default="all-linear", description="all-linear, qv, or module names joined by commas")
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    adapter_len: PositiveInt = Field(default=10, description="tokens of LLaMA-Adapter's prompt in each adapted layer")
    adapter_layers: PositiveInt = Field(
        default=30, description="layers with LLaMA-Adapter's prompt, from the last down"
    )
    adapter_dtype: Dtype = "fp32"
    quantization: Quantization = "none"
    double_quantization: bool = False
    prepare_kbit: bool = Field(default=False, description="peft's prepare_model_for_kbit_training is called")
    weights_dtype: Dtype = "bf16"
    precision: Precision = Field(default="bf16", description="autocast dtype of the trainer, or none")
    optimizer: str = Field(default="adamw_torch", description="a name of transformers' `optim`")
    gradient_checkpointing: bool = True
    seq_len: PositiveInt = 1024
    micro_batch: PositiveInt = 1
    accumulation: PositiveInt = 1
    padding: bool = Field(default=False, description="batches carry an attention mask")
    packing: bool = Field(default=False, description="samples are concatenated to seq_len")
    attention: Attention = "sdpa"
    kernels: Kernels = "none"
    loss_path: LossPath = "full"
    sharding: Sharding = "none"
    offload: Offload = "none"
    zero_reduce_bucket: PositiveInt | None = Field(
        default=None, description="elements of DeepSpeed's reduce_bucket_size; None: the hidden size squared"
    )
    zero_prefetch_bucket: Elements | None = Field(
        default=None, description="elements of stage3_prefetch_bucket_size; None: 0.9 times the hidden size squared"
    )
    zero_persistence_threshold: Elements | None = Field(
        default=None, description="elements of stage3_param_persistence_threshold; None: 10 times the hidden size"
    )
    zero_overlap: bool = Field(default=True, description="DeepSpeed's overlap_comm")
    sync_each_batch: bool = Field(
        default=False, description="accelerate reduces gradients after every micro-batch, so FSDP2 keeps them sharded"
    )
    stack: StackName = "trainer"
    expandable_segments: bool = False
    evaluates: bool = Field(default=False, description="evaluations run between steps, with the same micro-batch")

    @model_validator(mode="before")
    @classmethod
    def _fill_derived(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        for field, derive in _DERIVED.items():
            if filled.get(field) is None:
                filled[field] = derive(filled)
        return filled

    @field_validator("lora_targets")
    @classmethod
    def _names_only(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if not all(names):
            raise ValueError("lora_targets holds an empty name")
        return ",".join(names)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method == "qlora" and self.quantization == "none":
            raise ValueError("method qlora needs a quantization, one of nf4 or fp4")
        if self.quantization != "none" and self.method not in ("qlora", "llama-adapter"):
            raise ValueError("quantization goes with method qlora or llama-adapter")
        if self.kernels == "liger" and self.loss_path != "liger":
            raise ValueError("kernels liger replaces the loss: loss_path must be liger")
        if self.kernels != "liger" and self.loss_path == "liger":
            raise ValueError("loss_path liger needs kernels liger")
        return self

    @property
    def trains_adapters(self) -> bool:
        """Whether only adapters train: LoRA's, or LLaMA-Adapter's prompts."""
        return self.method != "full"

    @property
    def trains_lora(self) -> bool:
        """Whether only LoRA adapters train."""
        return self.method in ("lora", "qlora")

    @property
    def trains_prompts(self) -> bool:
        """Whether only LLaMA-Adapter's prompts train."""
        return self.method == "llama-adapter"

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names in ``lora_targets``, with ``qv`` left as one name."""
        return tuple(self.lora_targets.split(","))

    @property
    def tokens_per_micro_batch(self) -> int:
        """Tokens one rank puts through one forward."""
        return self.micro_batch * self.seq_len


OF_THE_MODEL: Final = frozenset({"zero_reduce_bucket", "zero_prefetch_bucket", "zero_persistence_threshold"})
"""Fields that may be None: a multiple of the model's hidden size, as transformers fills in "auto"."""


def _adapter_dtype(given: Mapping[str, Any]) -> object:
    """What the stack makes of adapters.

    TRL's SFTTrainer recasts those of a quantized model to bf16; peft alone makes LoRA's fp32 (FACTS in data/).
    LLaMA-Adapter's prompts have the dtype of the query's weight, fp32 where that is packed, and peft casts them no
    further (peft 0.21.2 tuners/adaption_prompt/layer.py, AdaptedAttention.__init__). With fp16 our engine keeps all of
    them in fp32: torch's gradient scaler takes no other gradients.
    """
    if given.get("stack") == "trl" and given.get("precision") == "fp16":
        return "fp32"
    if given["quantization"] != "none":
        return "bf16" if given.get("stack") == "trl" else "fp32"
    return (given.get("weights_dtype") or "bf16") if given.get("method") == "llama-adapter" else "fp32"


_DERIVED: Final[Mapping[str, Callable[[Mapping[str, Any]], object]]] = {
    "quantization": lambda given: "nf4" if given.get("method") == "qlora" else "none",
    "double_quantization": lambda given: given["quantization"] != "none",
    "lora_alpha": lambda given: 2 * given.get("lora_rank", 16) if isinstance(given.get("lora_rank", 16), int) else 32,
    "adapter_dtype": _adapter_dtype,
    "loss_path": lambda given: (
        "liger"
        if given.get("kernels") == "liger"
        else "chunked"
        if given.get("stack") in ("trl", "torchtune")
        else "full"
    ),
}


class DeviceGroup(Spec):
    """``count`` equal devices of one node; ``device`` is a catalogue name (``H100-SXM``), ``cpu`` or a size class."""

    device: str
    count: PositiveInt
    memory_bytes: int | None = Field(default=None, description="memory given in the inventory itself, as in cpu:4GB")


class Inventory(Spec):
    """The devices of a run: ``nodes`` equal nodes, each with the same groups of devices."""

    text: str = Field(description="as the user wrote it")
    groups: tuple[DeviceGroup, ...] = Field(strict=False, min_length=1)
    nodes: PositiveInt = 1
    host_memory_bytes: int | None = Field(default=None, description="RAM of each node; None: the default host's")
    link: Link = Field(default="auto", description="between the cards of a node; auto: what the cards have themselves")
    network_bytes_per_second: float | None = Field(default=None, gt=0, description="of each node to the others")

    @property
    def devices_per_node(self) -> int:
        """Devices of one node."""
        return sum(group.count for group in self.groups)

    @property
    def world_size(self) -> int:
        """Devices of all nodes: one rank each."""
        return self.nodes * self.devices_per_node


class TrainingRequest(Spec):
    """A whole training whose time and cost are asked for: ``samples`` of the data, before packing, for ``epochs``.

    ``mean_tokens`` is the mean length of a sample, None if each has ``seq_len``. ``price`` is in US dollars for an hour
    of one device, None for the devices' own.
    """

    samples: PositiveInt
    epochs: float = Field(default=1.0, gt=0, lt=1e6)
    mean_tokens: float | None = Field(default=None, gt=0, lt=2**31)
    price: float | None = Field(default=None, ge=0, lt=1e6)


class FormerBatch(Spec):
    """How a configuration made its batch before it moved to other devices.

    ``samples`` is its global batch on ``gpus`` devices, ``accumulation`` its micro-batches of a step, where known;
    ``learning_rate`` is the one that was found good with it.
    """

    samples: PositiveInt
    gpus: PositiveInt | None = None
    micro_batch: PositiveInt | None = None
    accumulation: PositiveInt | None = None
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class PlanRequest(Spec):
    """What the planner is asked: everything not pinned here is its choice.

    ``pins`` maps names of `RunConfig` fields to the values the user insists on. ``missing_packages`` are those that
    the machine which trains is known to lack. ``was`` tells of the configuration that this one takes the place of.
    ``written_for`` names the tool that is to run it, ``not_written`` what its files cannot say.
    """

    model: str = Field(min_length=1)
    inventory: Inventory
    method: Literal["auto", "full", "lora", "qlora", "llama-adapter"] = "auto"
    global_batch: PositiveInt = 32
    seq_len: PositiveInt = 2048
    seq_len_is_default: bool = False
    seq_len_is_limit: bool = Field(default=False, description="samples may be cut shorter where nothing fits")
    highest_rank: bool = Field(default=False, description="take the highest rank that costs little speed")
    objective: Objective = "throughput"
    margin: float = Field(default=DEFAULT_MARGIN, ge=0.0, lt=0.5, description="part of the card kept free")
    pins: Mapping[str, Any] = Field(default_factory=dict)
    training: TrainingRequest | None = Field(default=None, description="tell time and cost of this training, too")
    missing_packages: tuple[str, ...] = Field(default=(), strict=False)
    written_for: str = Field(default="", description="the tool whose files the plan is for, if not our own")
    not_written: Mapping[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="values of fields that this tool's files cannot say"
    )
    was: FormerBatch | None = None

    @model_validator(mode="after")
    def _pins_are_fields(self) -> Self:
        unknown = sorted(set(self.pins) - set(RunConfig.model_fields))
        if unknown:
            raise ValueError(f"pins name no field of RunConfig: {', '.join(unknown)}")
        return self
