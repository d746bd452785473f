from dataclasses import replace

import pytest
from small import SMALL, cluster, small_config

from ftplan.estimators.analytic import estimate
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.runtime import runtime_figure
from ftplan.results import Basis, Calibrated, History, Provenance
from ftplan.units import GIB

NO_HISTORY = History()
KIND = (1, "lora", "none", "none")


def changed(gpus: str = "1x24GB", history: History = NO_HISTORY, host: dict | None = None, **card) -> Cluster:
    given = cluster(gpus)
    node = given.nodes[0]
    node = replace(node, gpus=tuple(replace(gpu, **card) for gpu in node.gpus), host=replace(node.host, **(host or {})))
    return replace(given, nodes=(node,), history=history)


def told(where: Cluster, **fields):
    return estimate(small_config(**fields), SMALL, where)


def test_without_anything_measured_times_are_assumed():
    result = told(cluster("1x24GB"))
    assert result.basis == Basis(devices=("24GB",))
    assert not result.basis.is_calibrated
    assert result.step.provenance == Provenance.ASSUMED


def test_a_calibrated_device_is_told():
    calibrated = Calibrated("24GB", "2026-11-22T10:00:00+00:00", ("context",))
    result = told(changed(calibrated=calibrated))
    assert result.basis.calibrations == (calibrated,)
    assert result.basis.is_calibrated
    assert result.step.provenance == Provenance.ANALYTIC


def test_one_calibrated_device_of_two_is_not_enough():
    calibrated = Calibrated("24GB", "2026-11-22T10:00:00+00:00", ("context",))
    assert not Basis(("24GB", "H100-SXM"), (calibrated,)).is_calibrated


def test_recorded_runs_scale_every_part_of_a_step():
    plain, scaled = told(cluster("1x24GB")), told(changed(history=History({1: (1.5, 4)})))
    assert scaled.step_seconds == pytest.approx(1.5 * plain.step_seconds)
    assert scaled.tokens_per_second == pytest.approx(plain.tokens_per_second / 1.5)
    assert scaled.step.compute_seconds == pytest.approx(1.5 * plain.step.compute_seconds)
    assert (scaled.basis.step_ratio, scaled.basis.step_runs) == (1.5, 4)


def test_other_rank_counts_are_left_alone():
    result = told(changed("2x24GB", History({1: (1.5, 4)})), sharding="ddp")
    assert result.basis.step_ratio == 1.0
    assert result.step_seconds == told(cluster("2x24GB"), sharding="ddp").step_seconds


def test_an_excess_is_added_to_the_process_and_to_what_is_needed():
    plain, more = told(cluster("1x24GB")), told(changed(history=History(excess_bytes={KIND: GIB})))
    assert more.needed_bytes == plain.needed_bytes + GIB
    assert more.process_bytes == plain.process_bytes + GIB
    assert more.peak_allocated_bytes == plain.peak_allocated_bytes
    assert more.basis.excess_bytes == GIB


def test_an_excess_can_make_a_run_not_fit():
    assert not told(changed(history=History(excess_bytes={KIND: 30 * GIB}))).fits


def test_an_excess_of_another_kind_does_not_count():
    history = History(excess_bytes={(1, "full", "none", "none"): GIB})
    assert told(changed(history=history)).needed_bytes == told(cluster("1x24GB")).needed_bytes


def test_measured_communicators_come_before_the_packaged_ones():
    plain, measured = (told(where, sharding="ddp") for where in (cluster("2x24GB"), changed("2x24GB", nccl_bytes=0)))
    assert plain.process_bytes - measured.process_bytes == 883_000_000
    assert told(changed(nccl_bytes=GIB)).process_bytes == told(cluster("1x24GB")).process_bytes


def test_a_slower_host_launches_later():
    plain, slower = told(cluster("1x24GB")), told(changed(host={"launch_factor": 2.0}))
    assert slower.step.overhead_seconds == pytest.approx(2 * plain.step.overhead_seconds)
    assert slower.step.compute_seconds == plain.step.compute_seconds


def test_a_measured_link_takes_the_place_of_the_bus():
    where = changed("2x24GB", peer_bytes_per_second=2 * cluster("2x24GB").gpus[0].pcie_bytes_per_second)
    plain, faster = (told(each, sharding="ddp") for each in (cluster("2x24GB"), where))
    # The bus without peer access is staged through the host, which a measured rate has in it.
    staging = runtime_figure("step_time", "pcie_link_efficiency").value
    direct = runtime_figure("step_time", "link_efficiency").value
    expected = plain.step.communication_seconds / 2 * staging / direct
    assert faster.step.communication_seconds == pytest.approx(expected)
