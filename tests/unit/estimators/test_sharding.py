import pytest
from small import ADAPTER_PER_RANK, EMBEDDING, HIDDEN, LAYER_PARAMS, MLP, PARAMS, small_model, workload

from ftplan.estimators import sharding, states
from ftplan.estimators.timeline import device_terms
from ftplan.results import Phase

ADAPTERS = 8 * ADAPTER_PER_RANK
FULL = {"method": "full", "precision": "bf16"}
LARGE = small_model(hidden_size=4096, intermediate_size=14336, num_hidden_layers=16, vocab_size=32000)
"""More than ZeRO-3's limit of live parameters."""


def on_four(sharding_name, **fields):
    return workload("4x24GB", sharding=sharding_name, **fields)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, ADAPTERS * 4),
        ({"adapter_dtype": "bf16"}, ADAPTERS * 2),
        ({"method": "full"}, PARAMS * 2),
        ({"method": "full", "weights_dtype": "fp32"}, PARAMS * 4),
    ],
)
def test_ddp_copies_every_gradient_into_buckets(fields, size):
    assert sharding.ddp_buckets(on_four("ddp", **fields)) == size


@pytest.mark.parametrize("name", ["none", "fsdp2", "zero1", "zero2", "zero3"])
def test_only_ddp_has_ddp_buckets(name):
    assert sharding.ddp_buckets(on_four(name, method="full")) == 0


@pytest.mark.parametrize(("name", "size"), [("zero1", 2 * 2 * HIDDEN**2), ("zero2", 2 * 2 * HIDDEN**2)])
def test_zero_1_and_2_overlap_two_buckets(name, size):
    assert sharding.zero_buckets(on_four(name)) == size


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_without_overlap_there_is_one_bucket(name):
    assert sharding.zero_buckets(on_four(name, zero_overlap=False)) == 2 * HIDDEN**2


@pytest.mark.parametrize(("name", "count"), [("zero1", 2), ("zero2", 2), ("zero3", 1)])
def test_a_bucket_is_as_large_as_it_is_given_whatever_trains(name, count):
    few = on_four(name, lora_rank=1, lora_targets="q_proj", zero_reduce_bucket=10**8)
    assert few.trainable < 10**8
    none = on_four(name, lora_rank=1, lora_targets="q_proj")
    taken, before = (sharding.zero_buckets(each) + sharding.zero_buffers(each) for each in (few, none))
    assert taken - before == count * 2 * (10**8 - HIDDEN**2)


@pytest.mark.parametrize(("accumulation", "phases"), [(1, 1), (4, 3)])
def test_accumulating_stage_1_keeps_its_buckets(accumulation, phases):
    work = on_four("zero1", accumulation=accumulation)
    buckets = next(term for term in device_terms(work, work.cluster.gpus[0]) if term.name == "buckets")
    assert len(buckets.alive) == phases


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_a_bucket_that_takes_all_gradients_is_copied_at_the_end(name):
    work = on_four(name, zero_reduce_bucket=PARAMS, **FULL)
    assert sharding.zero_partition(work) == 0
    assert sharding.zero_reducing(work, 0, 0) == 2 * PARAMS
    assert sharding.zero_reducing(work, 2 * PARAMS, 0) == 0


def test_a_smaller_bucket_is_copied_beside_what_layers_kept():
    work = on_four("zero2", zero_reduce_bucket=PARAMS // 2, **FULL)
    assert sharding.zero_partition(work) == 2 * PARAMS // 4
    assert sharding.zero_reducing(work, 0, 0) == pytest.approx(PARAMS, abs=2)
    assert sharding.zero_reducing(work, 0, 1000) == pytest.approx(PARAMS - 500, abs=2)
    assert sharding.zero_reducing(work, 0, 2 * PARAMS) == 0


def test_what_stage_1_accumulated_is_gone_as_it_is_in_the_bucket():
    work = on_four("zero1", accumulation=4, zero_reduce_bucket=PARAMS - 1, **FULL)
    assert sharding.zero_partition(work) == 0
    assert sharding.zero_reducing(work, 0, 0) <= 2


def test_without_overlap_stage_1_has_all_gradients_when_it_makes_its_partition():
    work = on_four("zero1", zero_overlap=False, **FULL)
    assert sharding.zero_partition(work) == 0
    assert sharding.zero_reducing(work, 0, 0) == 2 * PARAMS + 2 * PARAMS // 4
    assert sharding.zero_reducing(work, 2 * PARAMS, 0) == 2 * PARAMS // 4


@pytest.mark.parametrize("name", ["none", "ddp", "fsdp2", "zero3"])
def test_only_zero_1_and_2_copy_buckets(name):
    assert sharding.zero_reducing(on_four(name, **FULL), 0, 0) == 0


def test_zero_3_s_settings_reach_what_it_fetches():
    fetching = sharding.zero3_fetching(
        on_four("zero3", zero_prefetch_bucket=0, zero_persistence_threshold=7), lingers=False
    )
    assert (fetching.prefetch_elements, fetching.persistent_elements) == (0, 7)
    auto = sharding.zero3_fetching(on_four("zero3"), lingers=False)
    assert (auto.prefetch_elements, auto.persistent_elements) == (int(0.9 * HIDDEN**2), 10 * HIDDEN)


@pytest.mark.parametrize("name", ["none", "ddp", "fsdp2"])
def test_without_deepspeed_there_are_no_zero_buffers(name):
    assert sharding.zero_buckets(on_four(name)) == 0
    assert sharding.zero_buffers(on_four(name)) == 0


@pytest.mark.parametrize(
    ("name", "offload", "size"),
    [
        ("zero3", "none", 2 * HIDDEN**2 + 2 * PARAMS // 4),
        ("zero1", "none", 0),
        ("zero2", "none", 0),
        ("zero2", "optimizer", 2 * EMBEDDING),
        ("zero3", "optimizer", 2 * HIDDEN**2),
        ("zero3", "optimizer+params", 2 * HIDDEN**2),
    ],
)
def test_buffers_that_deepspeed_keeps_between_steps(name, offload, size):
    assert sharding.zero_buffers(on_four(name, offload=offload, **FULL)) == size


@pytest.mark.parametrize(
    ("name", "offload", "parameters", "optimizer"),
    [
        ("zero3", "optimizer+params", True, True),
        ("zero2", "optimizer", False, True),
        ("zero3", "optimizer", False, True),
        ("fsdp2", "optimizer+params", True, True),
        ("fsdp2", "optimizer", True, True),  # FSDP2's policy moves everything
        ("zero3", "none", False, False),
        ("fsdp2", "none", False, False),
    ],
)
def test_what_offload_moves(name, offload, parameters, optimizer):
    work = on_four(name, offload=offload)
    assert sharding.offloads_parameters(work) is parameters
    assert sharding.offloads_optimizer(work) is optimizer


def test_a_layer_and_the_tail_of_fsdp2():
    work = on_four("fsdp2", **FULL)
    assert sharding.layer_weight_bytes(work) == 2 * LAYER_PARAMS
    assert sharding.tail_weight_bytes(work) == 2 * EMBEDDING


def test_fsdp2_gathers_packed_layers_as_they_are():
    work = on_four("fsdp2", method="qlora", precision="bf16")
    packed = on_four("fsdp2", precision="bf16")
    assert sharding.layer_weight_bytes(work) < 0.3 * sharding.layer_weight_bytes(packed)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("none", 2 * PARAMS),
        ("ddp", 2 * PARAMS),
        ("fsdp2", 4 * PARAMS // 4),
        ("zero1", 2 * PARAMS // 4 + 4 * PARAMS // 4),  # its own part, and that converted to fp32
        ("zero2", 2 * PARAMS // 4 + 4 * PARAMS // 4),
        ("zero3", 4 * PARAMS // 4),  # in fp32; flat as they are before AdamW's temporaries come
    ],
)
def test_gradients_when_the_optimizer_reads_them(name, size):
    assert sharding.gradients_at_step(on_four(name, **FULL)) == size


def test_without_temporaries_zero_3_peaks_when_it_converts_its_flat_gradients():
    fused = on_four("zero3", optimizer="adamw_torch_fused", **FULL)
    assert sharding.gradients_at_step(fused) == 2 * PARAMS // 4 + 4 * PARAMS // 4


@pytest.mark.parametrize(
    ("name", "accumulation", "size"),
    [("zero2", 1, 2 * PARAMS // 4), ("zero2", 2, 0), ("zero1", 1, 2 * PARAMS // 4), ("zero3", 1, 0)],
)
def test_the_last_rank_has_its_partition_of_the_gradients_as_the_backward_begins(name, accumulation, size):
    assert sharding.zero_partition(on_four(name, accumulation=accumulation, **FULL)) == size


@pytest.mark.parametrize(("name", "offload"), [("zero2", "optimizer"), ("zero3", "optimizer+params")])
def test_offloaded_optimizers_keep_no_gradients_on_the_device(name, offload):
    work = on_four(name, offload=offload, accumulation=2, **FULL)
    assert sharding.zero_partition(work) == 0
    assert sharding.gradients_at_step(work) == 0
    assert sharding.accumulated_gradients(work) == 0


@pytest.mark.parametrize("name", ["none", "ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_without_accumulation_no_gradient_outlives_a_micro_batch(name):
    assert sharding.accumulated_gradients(on_four(name, **FULL)) == 0


@pytest.mark.parametrize(
    ("name", "fields", "size"),
    [
        ("none", {}, 2 * PARAMS),
        ("ddp", {}, 2 * PARAMS),
        ("fsdp2", {}, 2 * PARAMS),  # Trainer accumulates without synchronising: whole, in the reduce dtype
        ("fsdp2", {"sync_each_batch": True}, 4 * PARAMS // 4),
        ("zero1", {}, 2 * PARAMS),
        ("zero2", {}, 2 * PARAMS // 4),
        ("zero3", {}, 0),
    ],
)
def test_gradients_kept_between_micro_batches(name, fields, size):
    assert sharding.accumulated_gradients(on_four(name, accumulation=2, **FULL, **fields)) == size


def test_the_buffer_of_an_offloaded_optimizer_holds_the_largest_adapter():
    assert sharding.zero_buffers(on_four("zero2", offload="optimizer")) == 2 * 8 * MLP


def test_a_4_bit_model_is_whole_before_fsdp2_shards_it():
    packed = on_four("fsdp2", method="qlora", precision="bf16", adapter_dtype="fp32")
    beyond = sharding.whole_before_sharding(packed)
    assert beyond > 0.7 * states.whole_weight_bytes(packed)
    terms = device_terms(packed, packed.cluster.gpus[0])
    alive = [term.alive for term in terms if term.name == "before sharding"]
    assert alive == [(Phase.LOAD,)]
    assert "before sharding" not in {term.name for term in device_terms(on_four("fsdp2"), packed.cluster.gpus[0])}
