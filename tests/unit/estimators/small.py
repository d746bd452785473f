"""A model small enough to count by hand, and workloads on it.

Hidden size 64, MLP 256, 3 layers, 4 query and 2 key-value heads of 16, 1000 tokens, untied head. Elements:
q 4096, k and v 2048 each, o 4096, gate, up and down 16384 each: 61440 in the linears of a layer, 61568 with its two
norms; 3 layers, the final norm of 64 and twice 64000 for embedding and head make 312768.
"""

from __future__ import annotations

from typing import Any

from ftplan.estimators.workload import Workload
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.hf_config import profile_from_config
from ftplan.profiles.model_schema import ModelProfile
from ftplan.spec import RunConfig

HIDDEN, MLP, LAYERS, HEADS, VOCABULARY = 64, 256, 3, 4, 1000
PARAMS = 312_768
IN_LAYER_LINEARS = 61_440
LAYER_PARAMS = 61_568
QUANTIZED = LAYERS * IN_LAYER_LINEARS
EMBEDDING = VOCABULARY * HIDDEN

ADAPTER_PER_RANK = 4224
"""Of all linears: q 128, k and v 96 each, o 128, gate, up and down 320 each, in 3 layers."""

QV_PER_RANK = 672

SEQ_LEN, MICRO_BATCH = 128, 2
TOKENS = 256


def small_model(**changes: Any) -> ModelProfile:
    given = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
    }
    return profile_from_config({**given, **changes}, id="small", source="tests")


SMALL = small_model()


def cluster(gpus: str) -> Cluster:
    return resolve_inventory(parse_inventory(gpus))


def small_config(**fields: Any) -> RunConfig:
    given = {"model": "small", "seq_len": SEQ_LEN, "micro_batch": MICRO_BATCH, "lora_rank": 8, "precision": "none"}
    return RunConfig(**{**given, **fields})


def workload(gpus: str = "1x24GB", model: ModelProfile = SMALL, **fields: Any) -> Workload:
    """A workload on the small model: bf16 without autocast and rank 8 unless said otherwise."""
    return Workload(small_config(**fields), model, cluster(gpus))
