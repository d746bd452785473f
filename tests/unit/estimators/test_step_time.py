import pytest
from small import ADAPTER_PER_RANK, EMBEDDING, HEADS, LAYERS, QUANTIZED, SEQ_LEN, SMALL, TOKENS, small_model, workload

from ftplan.estimators.step_time import step_flops, step_time
from ftplan.profiles.models import load_model

SCORES = TOKENS * SEQ_LEN * LAYERS * HEADS * (16 + 16)
FORWARD = 2 * TOKENS * QUANTIZED + SCORES
HEAD = 2 * TOKENS * EMBEDDING
ADAPTERS = 6 * TOKENS * 8 * ADAPTER_PER_RANK
QWEN = load_model("Qwen2.5-7B")


def step(gpus="1xA100-80GB", model=QWEN, **fields):
    given = {"precision": "bf16", "seq_len": 1024}
    return step_time(workload(gpus, model=model, **{**given, **fields}))


@pytest.mark.parametrize(
    ("fields", "flops"),
    [
        ({"method": "full", "gradient_checkpointing": False}, 3 * (FORWARD + HEAD)),
        ({"method": "full", "gradient_checkpointing": True}, 4 * FORWARD + 3 * HEAD),
        ({"gradient_checkpointing": False}, 2 * (FORWARD + HEAD) + ADAPTERS),
        ({"gradient_checkpointing": True}, 3 * FORWARD + 2 * HEAD + ADAPTERS),
    ],
)
def test_flops_are_two_a_weight_and_token_and_as_many_for_each_gradient(fields, flops):
    assert step_flops(workload(**fields)) == flops


def test_full_training_costs_six_flops_a_parameter_and_token():
    work = workload(model=QWEN, method="full", gradient_checkpointing=False, seq_len=512, micro_batch=1)
    dense = QWEN.total_params - QWEN.embedding_params  # the embedding is a look-up
    assert step_flops(work) == pytest.approx(6 * dense * 512, rel=0.02)


def test_a_token_passes_its_own_experts_only():
    def flops(per_token):
        experts = {"num_local_experts": 8, "num_experts_per_tok": per_token}
        model = small_model(model_type="mixtral", architectures=["MixtralForCausalLM"], **experts)
        return step_flops(workload(model=model, method="full"))

    assert flops(2) < flops(4) < flops(8)
    assert flops(4) - flops(2) == pytest.approx(2 * (flops(3) - flops(2)))


def test_each_micro_batch_costs_the_same_and_the_optimizer_runs_once():
    one, two, three = (step(accumulation=count) for count in (1, 2, 3))
    assert three.compute_seconds == pytest.approx(3 * one.compute_seconds)
    micro_batch = two.overhead_seconds - one.overhead_seconds
    assert three.overhead_seconds - two.overhead_seconds == pytest.approx(micro_batch)
    assert 0 < micro_batch < one.overhead_seconds
    assert one.optimizer_seconds == three.optimizer_seconds


def test_one_device_talks_to_nobody():
    assert step().communication_seconds == 0
    assert step("4xA100-80GB", sharding="none").communication_seconds == 0


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_several_devices_pay_communication(sharding):
    assert step("4xA100-80GB", sharding=sharding).communication_seconds > 0


@pytest.mark.parametrize("sharding", ["fsdp2", "zero3"])
def test_gathering_parameters_costs_more_than_reducing_adapter_gradients(sharding):
    sharded, replicated = step("4x24GB", sharding=sharding), step("4x24GB", sharding="ddp")
    assert sharded.communication_seconds > 10 * replicated.communication_seconds
    assert sharded.total_seconds > sharded.compute_seconds + sharded.optimizer_seconds


def test_nvlink_is_faster_than_pcie():
    nvlink, pcie = (step(gpus, sharding="ddp", method="full") for gpus in ("8xH100", "8xH100-PCIe"))
    assert nvlink.communication_seconds < pcie.communication_seconds


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_without_overlap_collectives_take_their_time_alone(sharding):
    beside, alone = (step("4xA100-80GB", sharding=sharding, method="full", zero_overlap=each) for each in (True, False))
    assert alone.communication_seconds == beside.communication_seconds
    assert alone.total_seconds > beside.total_seconds


def test_nodes_talk_over_a_network_that_their_ranks_share():
    one, two = (step(gpus, sharding="ddp", method="full") for gpus in ("8xRTX4090", "2x4xRTX4090"))
    assert one.communication_seconds < two.communication_seconds


def test_checkpointing_computes_more():
    plain, checkpointed = (step(gradient_checkpointing=on).compute_seconds for on in (False, True))
    assert 1.2 * plain < checkpointed < 1.6 * plain


def test_four_bit_weights_are_unpacked_in_each_pass():
    assert step(method="qlora").compute_seconds > step().compute_seconds
    assert step(method="qlora").overhead_seconds > step().overhead_seconds


def test_a_faster_card_is_faster():
    seconds = [step(f"1x{card}").total_seconds for card in ("H100", "A100-80GB", "L4")]
    assert seconds == sorted(seconds)


def test_the_slowest_card_sets_the_pace():
    mixed = step("1xH100+1xL4", sharding="ddp", micro_batch=4)
    assert mixed.compute_seconds == pytest.approx(step("2xL4", sharding="ddp", micro_batch=4).compute_seconds)


@pytest.mark.parametrize(
    "fields", [{"sharding": "zero2", "offload": "optimizer"}, {"sharding": "fsdp2", "offload": "optimizer+params"}]
)
def test_offload_pays_pcie_and_the_host(fields):
    offloaded = step("4x24GB", method="full", **fields)
    kept = step("4x24GB", method="full", sharding=fields["sharding"])
    assert kept.offload_seconds == 0 < offloaded.offload_seconds
    assert offloaded.optimizer_seconds == 0 < kept.optimizer_seconds
    assert offloaded.total_seconds > kept.total_seconds


def test_moving_parameters_costs_more_than_moving_the_optimizer():
    optimizer, everything = (
        step("4x24GB", method="full", sharding="zero3", offload=offload).offload_seconds
        for offload in ("optimizer", "optimizer+params")
    )
    assert everything > optimizer


def test_tiny_work_is_bound_by_launches_and_large_work_by_compute():
    assert step(model=SMALL, seq_len=16).bound_by == "kernel launches"
    assert step(seq_len=4096, micro_batch=8).bound_by == "compute"
    assert (
        step("4x24GB", method="full", sharding="zero3", offload="optimizer+params", seq_len=128).bound_by == "offload"
    )


def test_a_cpu_launches_no_kernels():
    assert step("2xcpu:8GB", model=SMALL, sharding="ddp", weights_dtype="fp32", precision="none").overhead_seconds == 0


def test_the_total_is_no_less_than_its_longest_part_and_no_more_than_their_sum():
    result = step("4x24GB", sharding="zero3", accumulation=4)
    parts = (
        result.compute_seconds,
        result.overhead_seconds,
        result.communication_seconds,
        result.offload_seconds,
        result.optimizer_seconds,
    )
    assert max(parts) <= result.total_seconds <= 1.2 * sum(parts)


def test_a_host_optimizer_is_as_fast_as_the_threads_of_a_rank_until_memory_is_the_limit():
    offloaded = {"method": "full", "sharding": "zero2", "offload": "optimizer"}
    alone, sharing = (step("2xA100-80GB", stack=stack, **offloaded) for stack in ("trainer", "trl"))
    assert alone.offload_seconds > 2 * sharing.offload_seconds
