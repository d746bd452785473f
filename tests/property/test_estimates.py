from hypothesis import given
from hypothesis import strategies as st
from strategies import cards, configs, estimated, inventories, legal, model_of, models

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.results import Estimate, Phase, Provenance, Timeline, from_json, to_json
from ftplan.units import MIB

TERMS_THAT_SHARD = {"weights", "adapters", "master weights", "optimizer states"}
SHARDINGS = ("fsdp2", "fsdp2-grad-op", "zero1", "zero2", "zero3")


@given(configs(), inventories)
def test_a_phase_is_the_sum_of_its_terms_and_the_peak_is_the_highest(config, gpus):
    for rank in estimated(config, gpus).ranks:
        sums = {phase: sum(term.bytes for term in rank.terms if phase in term.alive) for phase in Phase}
        assert Timeline(rank.terms).by_phase == sums
        assert rank.peak_allocated_bytes == sums[rank.peak_phase] == max(sums.values())


@given(configs(), inventories)
def test_no_term_is_negative_and_none_is_alive_at_no_time(config, gpus):
    result = estimated(config, gpus)
    for term in (*result.terms, *result.host.terms):
        assert term.bytes >= 0
        assert isinstance(term.bytes, int)
        assert len(set(term.alive)) == len(term.alive) > 0


@given(configs(), inventories)
def test_what_is_needed_lies_between_tensors_and_their_process(config, gpus):
    for rank in estimated(config, gpus).ranks:
        assert 0 < rank.peak_allocated_bytes <= rank.peak_reserved_bytes <= rank.process_bytes
        assert rank.peak_allocated_bytes < rank.needed_bytes


@given(configs(), inventories)
def test_the_whole_is_its_worst_rank_and_fits_if_every_rank_and_the_host_do(config, gpus):
    result = estimated(config, gpus)
    worst = max(result.ranks, key=lambda rank: rank.needed_bytes - rank.capacity_bytes)
    assert (result.needed_bytes, result.capacity_bytes) == (worst.needed_bytes, worst.capacity_bytes)
    assert result.fits == (result.host.fits and all(rank.needed_bytes <= rank.capacity_bytes for rank in result.ranks))
    assert result.host.fits == (result.host_bytes <= result.host.capacity_bytes)


@given(configs(), inventories, st.integers(1, 8), st.integers(1, 8), st.integers(1, 4096))
def test_what_the_estimate_of_another_batch_left_behind_changes_nothing(config, gpus, samples, steps, length):
    """What a batch does not decide is computed once for a cluster; another cluster object shares nothing."""
    model, used, fresh = model_of(config.model), *(resolve_inventory(parse_inventory(gpus)) for _ in range(2))
    estimate(config.model_copy(update={"micro_batch": samples, "accumulation": steps, "seq_len": length}), model, used)
    assert estimate(config, model, used) == estimate(config, model, fresh)


@given(configs(), inventories)
def test_a_total_is_no_better_known_than_its_terms(config, gpus):
    result = estimated(config, gpus)
    assert result.provenance == Provenance.worst(term.provenance for term in result.terms)


@given(configs(), inventories)
def test_time_passes_in_every_step(config, gpus):
    result = estimated(config, gpus)
    assert result.step_seconds > 0
    assert result.tokens_per_second > 0
    assert min(result.step.communication_seconds, result.step.offload_seconds, result.step.optimizer_seconds) >= 0


@given(legal(), st.sampled_from(("seq_len", "micro_batch")), st.integers(1, 4096))
def test_longer_or_more_samples_never_need_less(drawn, field, more):
    config, gpus = drawn
    larger = config.model_copy(update={field: getattr(config, field) + more})
    before, after = estimated(config, gpus), estimated(larger, gpus)
    assert after.peak_allocated_bytes >= before.peak_allocated_bytes
    assert after.needed_bytes >= before.needed_bytes
    assert after.host_bytes >= before.host_bytes


@given(legal(), st.integers(1, 64))
def test_more_accumulation_never_needs_less_and_takes_longer(drawn, more):
    config, gpus = drawn
    larger = config.model_copy(update={"accumulation": config.accumulation + more, "sync_each_batch": True})
    before = estimated(config.model_copy(update={"sync_each_batch": True}), gpus)
    after = estimated(larger, gpus)
    assert after.needed_bytes >= before.needed_bytes
    assert after.step_seconds >= before.step_seconds


@given(configs(), inventories, st.sampled_from(("zero2", "zero3")), st.integers(1, 10**9))
def test_a_larger_bucket_never_needs_less(drawn, gpus, sharding, more):
    config = drawn.model_copy(update={"sharding": sharding})
    bucket = config.zero_reduce_bucket or model_of(config.model).hidden_size ** 2
    before, after = (
        estimated(config.model_copy(update={"zero_reduce_bucket": elements}), gpus)
        for elements in (bucket, bucket + more)
    )
    # It is reduced later, so that the rank's partition may come when layers have gone. ZeRO-1 is left out: there
    # gradients that are too large for a bucket stay up to the step.
    assert after.peak_allocated_bytes >= 0.97 * before.peak_allocated_bytes


@given(legal(), st.integers(1, 64))
def test_a_larger_rank_never_needs_less(drawn, more):
    config, gpus = drawn
    larger = config.model_copy(update={"lora_rank": config.lora_rank + more})
    before, after = estimated(config, gpus), estimated(larger, gpus)
    assert after.trainable_params >= before.trainable_params
    # ZeRO-3 keeps what is used again within so many elements: larger adapters push a weight out of that.
    least = 0.99 if config.sharding == "zero3" else 1
    assert after.needed_bytes >= least * before.needed_bytes


@given(
    configs().filter(lambda config: config.offload == "none"),
    cards,
    st.sampled_from(SHARDINGS),
    st.integers(1, 16),
    st.integers(1, 48),
)
def test_more_ranks_never_raise_the_sharded_state(config, card, sharding, few, more):
    config = config.model_copy(update={"sharding": sharding})
    state = [sharded_state(estimated(config, f"{ranks}x{card}")) for ranks in (few, few + more)]
    for name in state[1]:
        assert state[1][name] <= state[0][name]


def sharded_state(result):
    return {term.name: term.bytes for term in result.terms if term.name in TERMS_THAT_SHARD}


@given(
    configs().filter(lambda config: config.offload == "none"),
    cards,
    st.sampled_from(("fsdp2", "zero3")),
    st.sampled_from((2, 4, 8)),
)
def test_all_shards_together_hold_the_state_once(config, card, sharding, ranks):
    """Once, but for the allocator's blocks, of which a tensor's part can leave up to a MiB unused, and 4-bit scales.

    bitsandbytes keeps those whole on every rank: 4 bytes for 64 elements of half a byte.
    """
    besides = 0.05 if config.quantization == "none" else 0.05 + 4 / 32
    config = config.model_copy(update={"sharding": sharding})
    whole, part = (sharded_state(estimated(config, f"{count}x{card}")) for count in (1, ranks))
    for name, size in part.items():
        assert 0.98 * whole[name] - ranks * MIB <= ranks * size
        assert size < whole[name] * (1 / ranks + besides) + 64 * MIB


@given(configs(), st.sampled_from((2, 4, 8)), cards)
def test_replication_shrinks_nothing(config, ranks, card):
    config = config.model_copy(update={"sharding": "ddp", "offload": "none"})
    one, many = (estimated(config, f"{count}x{card}") for count in (1, ranks))
    assert many.peak_allocated_bytes == one.peak_allocated_bytes
    assert many.needed_bytes >= one.needed_bytes


@given(configs())
def test_checkpointing_never_raises_the_forward_s_peak(config):
    """Without the workspace, because a forward that the backward's thread repeats takes one there, and without what
    ZeRO-3 gathers: a parameter that is used again soon stays, and checkpointing uses each once more.
    """
    apart = {"workspace", "gathered parameters"} if config.sharding == "zero3" else {"workspace"}
    plain, checkpointed = (
        Timeline(
            [
                term
                for term in estimated(config.model_copy(update={"gradient_checkpointing": on}), "1xH200").terms
                if term.name not in apart
            ]
        ).by_phase
        for on in (False, True)
    )
    assert checkpointed[Phase.LOSS] <= plain[Phase.LOSS]


@given(configs(models), inventories)
def test_estimates_survive_json(config, gpus):
    result = estimated(config, gpus)
    assert from_json(Estimate, to_json(result)) == result
