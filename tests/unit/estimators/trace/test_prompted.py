"""The analytic estimate of LLaMA-Adapter beside a trace of peft's own modules."""

import pytest
from small import cluster
from small_traces import LLAMA, settings

from ftplan.estimators.analytic import estimate
from ftplan.estimators.trace.worker import digested
from ftplan.profiles.hf_config import profile_from_config
from ftplan.results import Phase, Timeline
from ftplan.spec import RunConfig

MODEL = {**LLAMA, "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-5}
MISTRAL = {**MODEL, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
PROFILES = {kind["model_type"]: profile_from_config(kind, id="small", source="tests") for kind in (MODEL, MISTRAL)}
WITHIN, PHASE_WITHIN = 0.005, 0.01
PHASES = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD)


def phases(model, gpus, **fields):
    """(analytic, traced) bytes of each phase of a step."""
    given = {"method": "llama-adapter", "adapter_layers": 5, "seq_len": 1024, "micro_batch": 2, **fields}
    own = {"world_size": 2, "ranks_per_node": 2} if gpus.startswith("2x") else {}
    told = digested(settings(model, **given, **own))
    config = RunConfig(model="small", **given)
    analytic = Timeline(estimate(config, PROFILES[model["model_type"]], cluster(gpus)).terms).by_phase
    return {phase: (analytic[phase], told.phases[phase].allocated_bytes) for phase in PHASES}


@pytest.mark.parametrize(
    ("model", "gpus", "fields"),
    [
        (MODEL, "1xH100", {"gradient_checkpointing": False, "attention": "eager"}),
        (MODEL, "1xH100", {"adapter_layers": 8, "adapter_len": 32, "stack": "trl", "adapter_dtype": "fp32"}),
        (MODEL, "1xH100", {"quantization": "nf4", "prepare_kbit": True}),
        (MODEL, "2xH100", {"sharding": "ddp", "weights_dtype": "fp32", "accumulation": 2}),
        (MISTRAL, "1xH100", {"gradient_checkpointing": False, "precision": "none"}),
    ],
)
def test_it_agrees_with_the_trace(model, gpus, fields):
    found = phases(model, gpus, **fields)
    analytic, traced = (max(each[side] for each in found.values()) for side in (0, 1))
    assert analytic == pytest.approx(traced, rel=WITHIN)
    for phase, (one, other) in found.items():
        assert one == pytest.approx(other, rel=PHASE_WITHIN), phase


def test_few_layers_stand_for_all_below_and_above_the_first_prompt():
    fields = {"method": "llama-adapter", "adapter_layers": 10}
    model = {**LLAMA, "num_hidden_layers": 12}
    few, whole = (digested(settings(model, whole=every, **fields)) for every in (False, True))
    assert few.traced_layers < few.layers == 12
    assert few.trainable_params == whole.trainable_params == 10 * (10 * 256 + 1)
    for phase in PHASES:
        assert few.phases[phase].allocated_bytes == pytest.approx(whole.phases[phase].allocated_bytes, abs=8192)
