"""A step with one layer of each kind must say what the step with every layer says."""

import pytest
from small import SMALL, small_model, workload

from ftplan.estimators.tape.build import moments_for, options_of, targets_of
from ftplan.estimators.tape.moments import Batch, moments_of
from ftplan.estimators.tape.step import record
from ftplan.results import Phase

BATCHES = [Batch(1, 16), Batch(4, 128), Batch(1, 4096)]
IN_STEP = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.EVAL)
GEMMA = small_model(
    model_type="gemma2",
    architectures=["Gemma2ForCausalLM"],
    head_dim=16,
    sliding_window=32,
    num_hidden_layers=6,
    layer_types=["sliding_attention", "full_attention"] * 3,
    tie_word_embeddings=True,
)
MIXTRAL = small_model(
    model_type="mixtral", architectures=["MixtralForCausalLM"], num_local_experts=4, num_experts_per_tok=2
)


def whole_moments(work):
    options, model = options_of(work), work.model
    targets = work.config.lora_targets if work.config.trains_adapters else ""
    found = {group.layer: targets_of(model.model_type, group.layer, targets, options.rank) for group in model.groups}
    return moments_of(record(model, options, found, whole=True))


@pytest.mark.parametrize("model", [SMALL, GEMMA, MIXTRAL], ids=["llama", "gemma2", "mixtral"])
@pytest.mark.parametrize(
    ("gpus", "fields"),
    [
        ("1x24GB", {"method": "full"}),
        ("1x24GB", {"method": "full", "gradient_checkpointing": False}),
        ("1x24GB", {"method": "lora", "lora_dropout": 0.05}),
        ("1x24GB", {"method": "lora", "gradient_checkpointing": False, "attention": "eager"}),
        ("1x24GB", {"method": "qlora"}),
        ("1x24GB", {"method": "full", "accumulation": 4, "kernels": "liger", "loss_path": "liger"}),
        ("2x24GB", {"method": "full", "sharding": "fsdp2"}),
        ("2x24GB", {"method": "lora", "sharding": "fsdp2", "gradient_checkpointing": False}),
        ("2x24GB", {"method": "full", "sharding": "zero2"}),
    ],
)
def test_layers_that_are_not_recorded_are_put_back(model, gpus, fields):
    work = workload(gpus, model=model, **fields)
    pruned, whole = moments_for(work), whole_moments(work)
    for phase in IN_STEP:
        for batch in BATCHES:
            assert pruned.worst(phase, batch).bytes(batch) == pytest.approx(
                whole.worst(phase, batch).bytes(batch), rel=1e-9
            ), (phase, batch.samples, batch.length)
    one, other = pruned.traffic, whole.traffic
    assert (one.forward, one.recomputed, one.backward) == (other.forward, other.recomputed, other.backward)
    assert one.written.plus(other.written.times(-1)) == pytest.approx((0.0,) * 5, abs=1e-3)


def test_the_parts_of_a_moment_are_its_total():
    moments = moments_for(workload(model=MIXTRAL, method="lora"))
    for phase in IN_STEP:
        for batch in BATCHES:
            worst = moments.worst(phase, batch)
            assert sum(batch.bytes(size) for _, size in worst.parts) == pytest.approx(batch.bytes(worst.total))


@pytest.mark.parametrize(("larger", "smaller"), [(Batch(2, 128), Batch(1, 128)), (Batch(1, 256), Batch(1, 128))])
@pytest.mark.parametrize("phase", IN_STEP)
def test_a_larger_micro_batch_is_never_smaller(larger, smaller, phase):
    moments = moments_for(workload(method="full"))
    assert moments.worst(phase, larger).bytes(larger) > moments.worst(phase, smaller).bytes(smaller)
