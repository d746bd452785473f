"""The derived quantities every term needs: element sizes, shard counts, tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ftplan.profiles.schema import Cluster, ModelProfile, StackProfile
from ftplan.profiles.stacks import load_stack
from ftplan.spec import RunConfig
from ftplan.units import DTYPE_BYTES, ceil_div


@dataclass(frozen=True)
class Workload:
    """One configuration of one model on one cluster.

    Element sizes are in bytes. Ranks are data-parallel: each device holds one.
    """

    config: RunConfig
    model: ModelProfile
    cluster: Cluster

    @cached_property
    def stack(self) -> StackProfile:
        """The behaviour of the training loop."""
        return load_stack(self.config.stack)

    @cached_property
    def world(self) -> int:
        """Data-parallel ranks: one without sharding, which uses the first device only."""
        return 1 if self.config.sharding == "none" else self.cluster.world_size

    @cached_property
    def ranks_per_node(self) -> int:
        """Ranks of one node."""
        return min(self.world, max(len(node.gpus) for node in self.cluster.nodes))

    @cached_property
    def is_fsdp(self) -> bool:
        """FSDP2 in any form."""
        return self.config.sharding in ("fsdp2", "fsdp2-grad-op", "hsdp")

    @cached_property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage, 0 without DeepSpeed."""
        return int(self.config.sharding[4]) if self.config.sharding.startswith("zero") else 0

    @cached_property
    def shard_ranks(self) -> int:
        """Ranks that one copy of the sharded state is spread over: a node's under HSDP, else all."""
        return self.ranks_per_node if self.config.sharding == "hsdp" else self.world

    @cached_property
    def parameter_shards(self) -> int:
        """Over how many ranks parameters are split."""
        return self.shard_ranks if self.is_fsdp or self.zero_stage == 3 else 1

    @cached_property
    def gradient_shards(self) -> int:
        """Over how many ranks gradients are split when the optimizer runs."""
        return self.shard_ranks if self.is_fsdp or self.zero_stage >= 2 else 1

    @cached_property
    def optimizer_shards(self) -> int:
        """Over how many ranks optimizer states are split."""
        return self.shard_ranks if self.is_fsdp or self.zero_stage else 1

    @cached_property
    def tokens(self) -> int:
        """Tokens of one micro-batch on one rank."""
        return self.config.tokens_per_micro_batch

    @cached_property
    def autocast(self) -> bool:
        """Whether matrix products run under autocast. DeepSpeed and FSDP2 cast the parameters instead."""
        return self.config.precision != "none" and not self.zero_stage

    @cached_property
    def frozen_bytes(self) -> int:
        """Element of a base weight that is not quantized."""
        return DTYPE_BYTES[self.config.weights_dtype]

    @cached_property
    def unquantized_bytes(self) -> int:
        """Element of embeddings, norms and head: prepare_model_for_kbit_training makes them fp32."""
        return 4 if self.config.prepare_kbit and self.config.trains_adapters else self.frozen_bytes

    @cached_property
    def trainable_bytes(self) -> int:
        """Element of a trainable parameter as the optimizer sees it on the device.

        accelerate's FSDP upcasts trainables to fp32 under mixed precision (utils/fsdp_utils.py); LLaMA-Factory always
        (adapter.py), except under ZeRO-3. DeepSpeed keeps the model's dtype and adds an fp32 master copy.
        """
        own = DTYPE_BYTES[self.config.adapter_dtype] if self.config.trains_adapters else self.frozen_bytes
        if self.zero_stage:
            return self.compute_bytes
        if self.is_fsdp and self.config.precision != "none":
            return 4
        if self.stack.upcasts_trainables and self.zero_stage != 3:
            return 4
        return own

    @cached_property
    def gradient_bytes(self) -> int:
        """Element of a gradient as backward leaves it: the parameter's dtype."""
        return self.trainable_bytes

    @cached_property
    def compute_bytes(self) -> int:
        """Element of the matrix products' operands."""
        precision = self.config.precision
        return DTYPE_BYTES[self.config.weights_dtype if precision == "none" else precision]

    @cached_property
    def stream_bytes(self) -> int:
        """Element of the residual stream: the embedding's dtype; FSDP2's policy and DeepSpeed cast it to compute."""
        if self.is_fsdp or self.zero_stage:
            return self.compute_bytes
        if self.stack.upcasts_trainables and not self.config.trains_adapters:
            return 4
        return self.unquantized_bytes

    @cached_property
    def casts_weights(self) -> bool:
        """Whether autocast makes a compute-dtype copy of the base weights: fp32 weights under autocast."""
        return self.autocast and not self.is_fsdp and self.stream_bytes > self.compute_bytes and not self.quantized

    @cached_property
    def quantized(self) -> bool:
        """Whether linear weights are 4-bit."""
        return self.config.quantization != "none"

    @cached_property
    def embedding_trains(self) -> bool:
        """Whether the token embedding has a gradient."""
        return not self.config.trains_adapters

    def sharded(self, total: int, shards: int) -> int:
        """Bytes of one rank's part of ``total``, rounded up."""
        return ceil_div(total, shards)
