"""Traces of small models: the same in any order, from few layers as from all, and as large as they should be."""

import bitsandbytes
import pytest
import torch
from small_traces import ALTERNATING, EXPERTS, GPT2, LLAMA, TIED, settings

from ftplan.errors import InputError
from ftplan.estimators.trace.digest import Digest
from ftplan.estimators.trace.worker import digested
from ftplan.results import Phase

VECTOR = 8192
"""What a vector with a number for every parameter takes, such as their norms: it is as long as the traced model's."""
RANKS = {"world_size": 4, "ranks_per_node": 4}


def peaks(told: Digest) -> dict[Phase, int]:
    return {phase: peak.allocated_bytes for phase, peak in told.phases.items()}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (LLAMA, {}),
        (LLAMA, {"method": "full", "gradient_checkpointing": False}),
        (LLAMA, {"method": "qlora", "prepare_kbit": True}),
        (LLAMA, {"lora_dropout": 0.1, "padding": True, "accumulation": 2}),
        (TIED, {"method": "full", "optimizer": "adamw_bnb_8bit"}),
        (ALTERNATING, {"attention": "eager"}),
        (EXPERTS, {"method": "full"}),
        (GPT2, {"method": "full", "gradient_checkpointing": False}),
        (LLAMA, {"stack": "trl", "method": "full"}),
        (LLAMA, {"stack": "llamafactory"}),
        (LLAMA, {"method": "full", "sharding": "ddp", **RANKS}),
        ({**LLAMA, "num_hidden_layers": 12}, {"method": "full", "sharding": "fsdp2", **RANKS}),
        ({**LLAMA, "num_hidden_layers": 12}, {"method": "qlora", "sharding": "fsdp2", **RANKS}),
    ],
)
def test_few_layers_stand_for_all(model, fields):
    few = digested(settings(model, **fields))
    whole = digested(settings(model, whole=True, **fields))
    assert few.note == ""
    assert few.traced_layers < few.layers == whole.traced_layers
    for phase, peak in peaks(whole).items():
        assert peaks(few)[phase] == pytest.approx(peak, abs=VECTOR)
    assert few.peak_reserved_bytes == whole.peak_reserved_bytes
    assert few.needed_bytes == pytest.approx(whole.needed_bytes, rel=0.002)
    assert few.trainable_params == whole.trainable_params
    assert few.total_params == whole.total_params
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        assert few.work[phase].matrix_flops == pytest.approx(whole.work[phase].matrix_flops)


def test_where_layers_cannot_stand_for_others_every_one_is_traced():
    model = {**LLAMA, "num_hidden_layers": 10}
    told = digested(settings(model, method="full", sharding="hsdp", world_size=4, ranks_per_node=2))
    assert told.traced_layers == told.layers == 10
    assert "every layer was traced" in told.note
    inside = digested(settings(model, method="full", sharding="fsdp2", world_size=2, ranks_per_node=2))
    held, alone = (each.phases[Phase.SAVE].parts["optimizer states"] for each in (told, inside))
    assert held == alone  # a node holds the whole state once


def test_a_trace_leaves_nothing_behind():
    before = (torch.nn.functional.dropout, torch.nn.functional.scaled_dot_product_attention, torch.is_autocast_enabled)
    resize = torch.UntypedStorage.resize_
    attach = bitsandbytes.nn.modules.fix_4bit_weight_quant_state_from_module
    first = digested(settings())
    digested(settings(EXPERTS, method="full"))
    digested(settings(method="qlora", sharding="fsdp2", **RANKS))
    assert digested(settings()) == first
    after = (torch.nn.functional.dropout, torch.nn.functional.scaled_dot_product_attention, torch.is_autocast_enabled)
    assert before == after
    assert torch.UntypedStorage.resize_ is resize
    assert bitsandbytes.nn.modules.fix_4bit_weight_quant_state_from_module is attach
    assert not torch.distributed.is_initialized()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.ones(2, dtype=torch.bfloat16).exp().dtype == torch.bfloat16  # CUDA's list is gone again


def test_terms_sum_to_the_phases():
    told = digested(settings(method="full", optimizer="adamw_torch"))
    for phase, peak in told.phases.items():
        alive = [term.bytes for term in told.terms() if phase in term.alive]
        assert sum(alive) == peak.allocated_bytes
        assert all(size > 0 for size in alive)
    assert told.phases[told.peak_phase].allocated_bytes == told.peak_allocated_bytes


def test_parameters_and_states_have_their_sizes():
    told = digested(settings(method="full", weights_dtype="bf16"))
    parts = told.phases[Phase.OPTIMIZER].parts
    assert parts["gradients"] == pytest.approx(2 * told.total_params, rel=0.01)
    assert parts["optimizer states"] == pytest.approx(4 * told.total_params, rel=0.01)
    assert parts["weights"] == pytest.approx(2 * told.total_params, rel=0.01)
    assert told.trainable_params == told.total_params


def test_matrix_flops_are_six_a_parameter_and_token():
    told = digested(settings(method="full", gradient_checkpointing=False, seq_len=64))
    linear = told.total_params - 1000 * 256  # the embedding multiplies nothing
    total = sum(sum(work.matrix_flops.values()) for phase, work in told.work.items() if phase is not Phase.EVAL)
    assert total == pytest.approx(6 * linear * 64, rel=0.05)


@pytest.mark.parametrize("longer", [{"seq_len": 256}, {"micro_batch": 2}, {"accumulation": 2}, {"lora_rank": 64}])
def test_more_never_costs_less(longer):
    assert digested(settings(**longer)).peak_allocated_bytes >= digested(settings()).peak_allocated_bytes


def test_more_ranks_hold_less_each():
    held = [
        digested(settings(method="full", sharding="fsdp2", world_size=ranks, ranks_per_node=ranks))
        .phases[Phase.SAVE]
        .parts
        for ranks in (2, 8)
    ]
    for part in ("weights", "optimizer states"):
        assert held[1][part] < held[0][part] / 3


def test_grad_op_keeps_parameters_gathered_and_offload_moves_states_to_the_host():
    full = digested(settings(method="full", sharding="fsdp2", **RANKS))
    kept = digested(settings(method="full", sharding="fsdp2-grad-op", **RANKS))
    away = digested(settings(method="full", sharding="fsdp2", offload="optimizer+params", **RANKS))
    assert (
        kept.phases[Phase.FORWARD].parts["gathered parameters"]
        > full.phases[Phase.FORWARD].parts["gathered parameters"]
    )
    assert "optimizer states" not in away.phases[Phase.OPTIMIZER].parts
    assert away.host_phases[Phase.OPTIMIZER].parts["optimizer states"] >= 8 * away.total_params // 4
    assert full.phases[Phase.OPTIMIZER].parts["optimizer states"] >= 8 * full.total_params // 4
    assert full.work[Phase.FORWARD].sent_bytes["all-gather"] > 0


def test_without_sync_whole_gradients_wait_between_micro_batches():
    fields = {"method": "full", "sharding": "fsdp2", "accumulation": 3, **RANKS}
    waiting = digested(settings(**fields))
    reduced = digested(settings(**fields, sync_each_batch=True))
    assert waiting.peak_allocated_bytes > reduced.peak_allocated_bytes


def test_a_large_micro_batch_costs_no_more_than_its_tokens():
    one, four = (digested(settings(micro_batch=size, loss_path="full")) for size in (1, 4))
    held = one.phases[Phase.SAVE].allocated_bytes
    assert four.peak_allocated_bytes - held < 4.5 * (one.peak_allocated_bytes - held)


def test_paged_states_are_no_device_memory():
    told = digested(settings(method="full", optimizer="paged_adamw_8bit"))
    assert told.host_phases[Phase.OPTIMIZER].allocated_bytes > told.total_params
    embedding = 8 * 1000 * 256  # whose states Trainer keeps in fp32, paged as well
    assert told.host_phases[Phase.OPTIMIZER].allocated_bytes >= embedding
    unpaged = digested(settings(method="full", optimizer="adamw_bnb_8bit"))
    assert told.peak_allocated_bytes < unpaged.peak_allocated_bytes


def test_an_optimizer_or_architecture_that_is_not_there_is_the_users_mistake():
    with pytest.raises(InputError, match="cannot be traced"):
        digested(settings(optimizer="galore_adamw"))
    with pytest.raises(InputError, match="no architecture"):
        digested(settings({**LLAMA, "model_type": "baichuan"}))
