import pytest
from small import cluster, workload

from ftplan.estimators.runtime import deepspeed_bytes, nccl_bytes, needed_bytes, reserved_bytes, workspace_bytes
from ftplan.profiles.runtime import runtime_figure
from ftplan.units import GIB, MIB

CARD, HOPPER, CPU = (cluster(name).gpus[0] for name in ("24GB", "H100", "cpu:4GB"))
SHORT_LIVED = {"logits": 2 * GIB, "optimizer_temporaries": 0, "gradients": GIB, "recomputed_layer": 0, "gathered": 0}


@pytest.mark.parametrize(
    ("gpu", "size"), [(HOPPER, 2 * 32 * MIB), (CARD, 2 * 8_519_680), (CPU, 0)], ids=["hopper", "other", "cpu"]
)
def test_forward_and_backward_have_a_cublas_workspace_each(gpu, size):
    assert workspace_bytes(gpu, workload()).value == size


@pytest.mark.parametrize(
    ("gpus", "sharding", "has_nccl"),
    [("1x24GB", "none", False), ("2x24GB", "none", False), ("2x24GB", "ddp", True), ("2xcpu:4GB", "ddp", False)],
)
def test_several_gpus_pay_for_nccl(gpus, sharding, has_nccl):
    work = workload(gpus, sharding=sharding)
    figure = nccl_bytes(work.cluster.gpus[0], work)
    assert (figure.value > 0) is has_nccl
    assert figure.source


@pytest.mark.parametrize(
    ("sharding", "has_own"), [("ddp", False), ("fsdp2", False), ("zero1", True), ("zero2", True), ("zero3", True)]
)
def test_deepspeed_takes_memory_outside_the_allocator(sharding, has_own):
    assert (deepspeed_bytes(CARD, workload("2x24GB", sharding=sharding)).value > 0) is has_own


def test_the_default_allocator_strands_a_share_of_what_comes_and_goes():
    shares = runtime_figure("reserved", "logits").value * 2 + runtime_figure("reserved", "gradients").value
    reserved = reserved_bytes(10 * GIB, SHORT_LIVED, CARD, workload())
    assert reserved == 10 * GIB + round(shares * GIB)


def test_expandable_segments_strand_less_than_the_default_allocator():
    expandable = reserved_bytes(10 * GIB, SHORT_LIVED, CARD, workload(expandable_segments=True))
    assert 10 * GIB < expandable < reserved_bytes(10 * GIB, SHORT_LIVED, CARD, workload())


def test_with_expandable_segments_only_what_is_not_weights_needs_slack():
    work = workload(expandable_segments=True)
    slack = runtime_figure("expandable_slack").value
    assert needed_bytes(10 * GIB, 6 * GIB, 0, CARD, work) == 10 * GIB + round(slack * 4 * GIB)
    assert needed_bytes(10 * GIB, 10 * GIB, 0, CARD, work) == 10 * GIB


@pytest.mark.parametrize("sharding", ["fsdp2", "zero2", "zero3"])
def test_side_streams_of_sharding_need_no_less_slack(sharding):
    plain, sharded = (workload("2x24GB", sharding=each, expandable_segments=True) for each in ("ddp", sharding))
    assert needed_bytes(10 * GIB, 0, 0, CARD, sharded) >= needed_bytes(10 * GIB, 0, 0, CARD, plain)


def test_the_default_allocator_needs_what_it_would_reserve():
    slack = runtime_figure("default_slack").value
    assert needed_bytes(10 * GIB, 6 * GIB, 13 * GIB, CARD, workload()) == 13 * GIB + round(slack * 13 * GIB)


@pytest.mark.parametrize("expandable", [False, True])
def test_a_cpu_has_no_caching_allocator(expandable):
    work = workload("1xcpu:4GB", expandable_segments=expandable)
    assert reserved_bytes(GIB, SHORT_LIVED, CPU, work) == GIB
    assert needed_bytes(GIB, 0, 3 * GIB, CPU, work) == GIB


@pytest.mark.parametrize(
    "path", [("nccl_bytes",), ("expandable_slack",), ("reserved", "logits"), ("deepspeed_offload_host_bytes",)]
)
def test_every_figure_has_a_source(path):
    assert runtime_figure(*path).source
