import pytest
from small import ADAPTER_PER_RANK, PARAMS, SMALL, small_model, workload

from ftplan.estimators.host import SHARD_FILE_BYTES, host_estimate
from ftplan.estimators.offloading import pinned
from ftplan.estimators.timeline import device_terms
from ftplan.profiles.runtime import runtime_figure
from ftplan.results import Phase, Provenance, Timeline
from ftplan.units import GB

LOADING = runtime_figure("process_host_loading_bytes").value
PROCESS = runtime_figure("process_host_bytes").value
GROUP = runtime_figure("process_group_host_bytes").value
LARGE = small_model(hidden_size=4096, intermediate_size=14336, num_hidden_layers=40, vocab_size=32000)
FULL = {"method": "full", "precision": "bf16"}


def host(gpus="4x24GB", model=SMALL, **fields):
    return host_estimate(workload(gpus, model=model, **fields))


def size_of(name, **fields):
    return sum(term.bytes for term in host(**fields).terms if term.name == name)


@pytest.mark.parametrize(
    ("gpus", "sharding", "ranks"), [("1x24GB", "none", 1), ("4x24GB", "ddp", 4), ("4x24GB", "none", 1)]
)
def test_each_rank_is_a_process(gpus, sharding, ranks):
    group = GROUP if ranks > 1 else 0
    fields = {"gpus": gpus, "sharding": sharding}
    assert size_of("processes", **fields) == round(ranks * LOADING)
    assert size_of("processes", **fields) + size_of("training", **fields) == round(ranks * (PROCESS + group))


def test_only_the_ranks_of_one_node_share_its_memory():
    assert size_of("processes", gpus="2x4x24GB", sharding="ddp") == round(4 * LOADING)
    assert size_of("training", gpus="2x4x24GB", sharding="ddp") == round(4 * (PROCESS + GROUP - LOADING))


@pytest.mark.parametrize("sharding", ["ddp", "zero1", "zero2"])
def test_ranks_that_hold_the_whole_model_each_load_a_copy(sharding):
    assert size_of("loading", sharding=sharding) == 4 * PARAMS * 2


def test_under_fsdp2_rank_0_loads_the_model_and_the_others_receive_files():
    whole = LARGE.total_params * 2
    assert whole > SHARD_FILE_BYTES
    assert size_of("loading", model=LARGE, sharding="fsdp2") == whole + 3 * SHARD_FILE_BYTES


def test_under_mixed_precision_rank_0_hands_on_what_trains_in_fp32():
    files = 3 * SHARD_FILE_BYTES
    assert size_of("loading", model=LARGE, sharding="fsdp2", **FULL) == LARGE.total_params * 4 + files


def test_what_is_packed_is_loaded_file_by_file():
    assert size_of("loading", model=LARGE, method="qlora", sharding="ddp") == 4 * SHARD_FILE_BYTES


def test_ranks_of_zero_3_share_the_pages_of_a_file_and_load_inside_deepspeed():
    assert size_of("loading", model=LARGE, sharding="zero3") == SHARD_FILE_BYTES
    training = next(term for term in host(sharding="zero3").terms if term.name == "training")
    assert Phase.LOAD in training.alive


def test_loading_ends_before_the_first_step():
    result = host(model=LARGE, sharding="ddp")
    assert result.peak_phase is Phase.LOAD
    assert [term.alive for term in result.terms if term.name == "loading"] == [(Phase.LOAD,)]


@pytest.mark.parametrize(
    ("fields", "partitions"),
    [
        # fp32 master and gradient, pinned as powers of two; the 16-bit gradients so too, or flat beside the weights.
        ({"sharding": "zero2", "offload": "optimizer"}, lambda each: 2 * pinned(4 * each) + pinned(2 * each)),
        ({"sharding": "zero3", "offload": "optimizer"}, lambda each: 2 * pinned(4 * each) + 4 * each),
    ],
)
def test_zero_pins_its_partitions(fields, partitions):
    assert size_of("pinned weights and gradients", **FULL, **fields) == 4 * partitions(PARAMS // 4)


def test_what_is_pinned_tensor_by_tensor_takes_up_to_twice_its_size():
    weights = size_of("pinned weights and gradients", **FULL, sharding="fsdp2", offload="optimizer+params")
    assert 8 * PARAMS < weights <= 16 * PARAMS
    assert pinned(2**20) == 2**20
    assert pinned(2**20 + 1) == 2**21


@pytest.mark.parametrize(
    "fields", [{"sharding": "zero2", "offload": "optimizer"}, {"sharding": "fsdp2", "offload": "optimizer+params"}]
)
def test_states_are_on_the_host_once_over_all_ranks(fields):
    assert size_of("offloaded states", **FULL, **fields) == 8 * PARAMS


def test_deepspeed_s_own_adam_works_in_place():
    fields = {**FULL, "sharding": "zero2", "offload": "optimizer"}
    assert size_of("host optimizer", stack="trainer", **fields) == 8 * PARAMS
    assert size_of("host optimizer", stack="trl", **fields) == 0


def test_paged_states_can_live_on_the_host():
    adapters = 8 * ADAPTER_PER_RANK
    assert size_of("offloaded states", gpus="1x24GB", optimizer="paged_adamw_32bit") == 8 * adapters
    assert size_of("offloaded states", gpus="1x24GB", optimizer="adamw_torch") == 0


@pytest.mark.parametrize(
    ("sharding", "kind", "element"),
    [("ddp", "whole", 2), ("fsdp2", "fsdp", 4), ("zero2", "zero", 2), ("zero3", "zero3", 2)],
)
def test_a_checkpoint_of_full_fine_tuning_is_made_on_the_host(sharding, kind, element):
    copies = runtime_figure("saving_copies", kind).value
    assert size_of("saving", sharding=sharding, **FULL) == round(copies * element * PARAMS)
    assert size_of("saving", sharding=sharding) == 0


def test_the_tensors_of_cpu_processes_are_in_the_host_s_memory():
    work = workload("2xcpu:4GB", sharding="ddp", weights_dtype="fp32")
    cpu, result = work.cluster.gpus[0], host("2xcpu:4GB", sharding="ddp", weights_dtype="fp32")
    device_peak = Timeline(device_terms(work, cpu)).peak_bytes
    assert result.peak_bytes == 2 * (cpu.context_bytes + device_peak)


def test_the_host_fits_if_its_ram_suffices():
    fitting = host(model=LARGE, sharding="fsdp2", **FULL)
    assert fitting.fits
    assert fitting.peak_bytes <= fitting.capacity_bytes
    offloaded = host(model=LARGE, gpus="1x24GB", sharding="zero3", offload="optimizer+params", **FULL)
    assert offloaded.peak_bytes > 16 * LARGE.total_params > 100 * GB
    assert offloaded.fits is (offloaded.peak_bytes <= offloaded.capacity_bytes)
    assert not offloaded.fits


def test_host_figures_are_sums_of_their_terms():
    result = host(sharding="zero3", offload="optimizer", **FULL)
    timeline = Timeline(result.terms)
    assert timeline.peak == (result.peak_phase, result.peak_bytes)
    assert timeline.provenance in (Provenance.MEASURED, Provenance.ANALYTIC)


@pytest.mark.parametrize(
    ("fields", "copies"),
    [
        ({"sharding": "ddp"}, 3),
        ({"sharding": "zero2"}, 3),
        ({"sharding": "ddp", "weights_dtype": "fp32"}, 0),
        ({"sharding": "fsdp2"}, 0),
        ({"sharding": "zero3"}, 0),
        ({"sharding": "ddp", "method": "qlora"}, 0),
    ],
)
def test_ranks_that_map_the_same_pages_share_them(fields, copies):
    told = host("4x24GB", **fields)
    assert told.shared_bytes == copies * 2 * PARAMS
    assert told.peak_bytes >= told.needed_bytes


def test_shared_pages_count_once_while_loading_and_only_then():
    told = host("4x24GB", sharding="ddp")
    by_phase = Timeline(told.terms).by_phase
    assert told.needed_bytes == max(
        size - (told.shared_bytes if phase is Phase.LOAD else 0) for phase, size in by_phase.items()
    )
    assert by_phase[told.needed_phase] in (told.needed_bytes, told.needed_bytes + told.shared_bytes)
    assert told.fits == (told.needed_bytes <= told.capacity_bytes)
