"""The derived quantities every term needs: element sizes, shard counts, tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Final, TypeVar

from ftplan.estimators.params import trainable_params, untouched_params
from ftplan.estimators.prompts import with_prompts
from ftplan.profiles.device_schema import Cluster, GpuProfile
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.stacks import load_stack
from ftplan.spec import RunConfig
from ftplan.units import DTYPE_BYTES, ceil_div

FP32 = 4

BATCH: Final = ("micro_batch", "accumulation", "seq_len")
"""Fields of a configuration that say how many samples of which length a step takes."""

SETUPS: Final = 2048
"""How many setups are remembered; a search has some hundred."""

_T = TypeVar("_T")


class Place:
    """A configuration on a cluster, whatever the model: who takes part. `Workload` adds the model.

    Attributes:
        on_cpu: the devices are CPU processes, without a caching allocator.
        world: data-parallel ranks; one without sharding, which uses the first device only.
        ranks_per_node: ranks of one node.
        is_fsdp: FSDP2 in any form.
        zero_stage: DeepSpeed's ZeRO stage, 0 without DeepSpeed.
    """

    def __init__(self, config: RunConfig, cluster: Cluster) -> None:
        self.config = config
        self.cluster = cluster
        self.on_cpu = cluster.gpus[0].kind == "cpu"
        sharding = config.sharding
        self.world = 1 if sharding == "none" else cluster.world_size
        self.ranks_per_node = min(self.world, max(len(node.gpus) for node in cluster.nodes))
        self.is_fsdp = sharding in ("fsdp2", "fsdp2-grad-op", "hsdp")
        self.zero_stage = int(sharding[4]) if sharding.startswith("zero") else 0

    @property
    def gpus(self) -> tuple[GpuProfile, ...]:
        """The devices that take part, in rank order."""
        return self.cluster.gpus[: self.world]


class Workload(Place):
    """One configuration of one model on one cluster, with everything derived from them once. Do not change it.

    A plain class: the search makes thousands, and computing all fields at once costs less than caching each.
    Element sizes are in bytes. Ranks are data-parallel, one on each device.

    Attributes:
        setup: what of it the number and length of samples do not decide.
        shard_ranks: ranks that one copy of the sharded state is spread over: a node's under HSDP, else all.
        parameter_shards, gradient_shards, optimizer_shards: over how many ranks each is split.
        trainable: elements that train.
        updated: those of them that get gradients, and with them optimizer states; DeepSpeed keeps states for all.
        tokens: tokens of one micro-batch on one rank.
        quantized: linear weights are 4-bit.
        trains_all: every weight has a gradient, embeddings too; otherwise only adapters do.
        autocast: matrix products run under autocast. DeepSpeed and FSDP2 cast the parameters instead.
        frozen_bytes: element of a base weight that is not quantized.
        unquantized_bytes: element of embeddings, norms and head; prepare_model_for_kbit_training makes them fp32.
        compute_bytes: element of the matrix products' operands.
        trainable_bytes: element of a trainable parameter as the optimizer sees it on the device.
        gradient_bytes: element of a gradient as backward leaves it: the parameter's.
        stream_bytes: element of the residual stream: the embedding's; FSDP2's policy and DeepSpeed cast to compute.
        casts_parameters: FSDP2's mixed precision or DeepSpeed gives the forward parameters of the compute dtype.
        gathered_bytes: element of a parameter that FSDP2 gathers, if it is not packed.
        casts_weights: autocast makes a compute-dtype copy of the base weights: fp32 weights under autocast.
    """

    def __init__(self, config: RunConfig, model: ModelProfile, cluster: Cluster) -> None:
        super().__init__(config, cluster)
        self.model = with_prompts(model, config)
        self.stack = load_stack(config.stack)
        self._set_ranks()
        self._set_elements()
        self.trainable = trainable_params(model, config)
        self.updated = self.trainable - (0 if self.zero_stage else untouched_params(model, config))
        self.setup = Setup(config, model, cluster)

    def _set_ranks(self) -> None:
        sharding = self.config.sharding
        self.shard_ranks = self.ranks_per_node if sharding == "hsdp" else self.world
        self.parameter_shards = self.shard_ranks if self.is_fsdp or self.zero_stage == 3 else 1
        self.gradient_shards = self.shard_ranks if self.is_fsdp or self.zero_stage >= 2 else 1
        self.optimizer_shards = self.shard_ranks if self.is_fsdp or self.zero_stage else 1

    def _set_elements(self) -> None:
        config = self.config
        self.tokens = config.tokens_per_micro_batch
        self.quantized = config.quantization != "none"
        self.trains_all = not config.trains_adapters
        self.autocast = config.precision != "none" and not self.zero_stage
        self.frozen_bytes = DTYPE_BYTES[config.weights_dtype]
        self.unquantized_bytes = FP32 if config.prepare_kbit and config.trains_adapters else self.frozen_bytes
        if self.zero_stage and config.precision != "none":
            self.unquantized_bytes = DTYPE_BYTES[config.precision]
        self.casts_parameters = config.precision != "none" and (bool(self.zero_stage) or self.is_fsdp)
        self.trainable_bytes = self._trainable_bytes()
        self.compute_bytes = self._compute_bytes()
        self.gathered_bytes = self.compute_bytes if self.casts_parameters else self.frozen_bytes
        if self.trains_all and not self.casts_parameters:
            self.gathered_bytes = self.trainable_bytes
        self.gradient_bytes = self.trainable_bytes
        self.stream_bytes = self._stream_bytes()
        wider = self.stream_bytes > self.compute_bytes
        self.casts_weights = self.autocast and not self.is_fsdp and not self.quantized and wider

    def _compute_bytes(self) -> int:
        """Autocast's dtype; without it that of the weights as they train."""
        config = self.config
        if config.precision != "none":
            return DTYPE_BYTES[config.precision]
        fp32 = self.stack.upcasts(config) and self.trains_all and not self.zero_stage
        return FP32 if fp32 else self.frozen_bytes

    def _trainable_bytes(self) -> int:
        """accelerate's FSDP upcasts trainables to fp32 under mixed precision, unless the model has 4-bit weights
        (utils/fsdp_utils.py), LLaMA-Factory always (model/adapter.py). DeepSpeed keeps the model's dtype and adds an
        fp32 master copy.
        """
        if self.zero_stage and self.config.precision != "none":
            # Adapters that come after zero.Init keep their dtype.
            late = self.zero_stage == 3 and self.config.trains_adapters
            return DTYPE_BYTES[self.config.adapter_dtype if late else self.config.precision]
        fsdp_upcasts = self.is_fsdp and self.config.precision != "none" and not self.quantized
        if self.stack.upcasts(self.config) or fsdp_upcasts:
            return FP32
        return DTYPE_BYTES[self.config.adapter_dtype] if self.config.trains_adapters else self.frozen_bytes

    def _stream_bytes(self) -> int:
        if self.casts_parameters:
            return self.compute_bytes
        if self.stack.upcasts(self.config) and self.trains_all:
            return FP32
        return self.unquantized_bytes

    def sharded(self, total: int, shards: int) -> int:
        """Bytes of one rank's part of ``total``, rounded up."""
        return ceil_div(total, shards)


class Setup:
    """A workload without its batch. Equal ones share all that samples and their length do not decide: see `once`.

    Whether there are several samples, micro-batches, and whether the length exceeds a window does decide something;
    with prompts, of which each sample has its own copy, the length itself.
    """

    __slots__ = ("_cluster", "_fields", "_hash", "_model")

    def __init__(self, config: RunConfig, model: ModelProfile, cluster: Cluster) -> None:
        fields = config.__dict__.copy()
        for name in BATCH:
            del fields[name]
        windowed = config.seq_len if model.has_windows or config.trains_prompts else 0
        self._fields = (config.micro_batch > 1, config.accumulation > 1, windowed, *fields.values())
        self._model = model
        self._cluster = cluster
        self._hash = hash(self._fields)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Setup)
            and self._model is other._model
            and self._cluster is other._cluster
            and self._fields == other._fields
        )


def once(compute: Callable[[Workload], _T]) -> Callable[[Workload], _T]:
    """Compute once for all workloads of a setup; a search tries many batches of each."""
    found: dict[Setup, _T] = {}

    @wraps(compute)
    def known(work: Workload) -> _T:
        value = found.get(work.setup)
        if value is None:
            if len(found) >= SETUPS:
                found.clear()
            value = found[work.setup] = compute(work)
        return value

    return known
