import pytest
from kept_parts import WHEN, calibration, run

from ftplan.profiles.calibration import Kept, RunFigures
from ftplan.profiles.device_schema import Cluster, Node
from ftplan.profiles.gpus import load_cpu, load_gpu
from ftplan.profiles.history import with_history
from ftplan.profiles.hosts import load_host
from ftplan.profiles.overlay import calibrated
from ftplan.results import History
from ftplan.units import GIB

ONE = Cluster((Node((load_gpu("H100-SXM"),), load_host("hgx-h100")),), "1xH100")


def history(*runs, cluster=ONE):
    return with_history(cluster, runs).history


def test_three_runs_correct_steps_by_their_median():
    ratios = history(run(step_ratio=1.1), run(step_ratio=1.9), run(step_ratio=1.2)).step_ratios
    assert ratios == {1: (pytest.approx(1.2), 3)}


def test_two_runs_say_too_little():
    assert history(run(step_ratio=1.5), run(step_ratio=1.5)).step_ratios == {}


@pytest.mark.parametrize(("measured", "taken"), [(9.0, 2.0), (0.1, 0.5)])
def test_a_correction_is_bounded(measured, taken):
    assert history(*(run(step_ratio=measured),) * 3).step_ratios[1][0] == taken


def test_rank_counts_are_apart():
    ratios = history(*(run(step_ratio=1.5),) * 3, *(run(ranks=2),) * 2).step_ratios
    assert list(ratios) == [1]


def test_the_largest_excess_of_a_kind_counts():
    found = history(run(excess_bytes=GIB), run(excess_bytes=2 * GIB), run(excess_bytes=3 * GIB, sharding="zero2"))
    assert found.excess_bytes == {(1, "lora", "none", "none"): 2 * GIB, (1, "lora", "zero2", "none"): 3 * GIB}


def test_a_cpu_process_teaches_nothing_of_another_model_s():
    cpus = Cluster((Node((load_cpu(8 * GIB),), load_host("hgx-h100")),), "1xcpu")
    kept = run(excess_bytes=GIB, devices=cpus.device_names)
    assert history(kept, cluster=cpus).excess_bytes == {}


@pytest.mark.parametrize("excess", [0, -GIB, 10 * GIB // 200])
def test_memory_is_never_lowered_nor_raised_by_noise(excess):
    assert history(run(excess_bytes=excess)).excess_bytes == {}


def test_figures_that_are_not_known_teach_nothing():
    unknown = RunFigures(None, None, None)
    assert history(*(run(measured=unknown),) * 3, *(run(predicted=unknown),) * 3) == History()


@pytest.mark.parametrize("changes", [{"devices": ("A100-80GB",)}, {"ftplan": "0.0.1"}, {"calibrated_at": (WHEN,)}])
def test_runs_that_were_predicted_otherwise_do_not_count(changes):
    assert with_history(ONE, (run(step_ratio=1.5, **changes),) * 3) is ONE


def test_runs_after_a_calibration_count_with_it():
    cluster = calibrated(ONE, Kept((calibration(context_bytes=GIB),)))
    assert history(*(run(step_ratio=1.5),) * 3, cluster=cluster) == History()
    assert history(*(run(step_ratio=1.5, calibrated_at=(WHEN,)),) * 3, cluster=cluster).step_ratios == {1: (1.5, 3)}
