from dataclasses import replace

import pytest
from kept_parts import WHEN, calibration

from ftplan.profiles.calibration import Kept
from ftplan.profiles.device_schema import Cluster, Node
from ftplan.profiles.gpus import load_cpu, load_gpu
from ftplan.profiles.hosts import load_host
from ftplan.profiles.overlay import calibrated
from ftplan.profiles.runtime import runtime_figure
from ftplan.units import GIB, MIB

H100 = load_gpu("H100-SXM")


def cluster(*gpus, text="2xH100", nodes=1):
    return Cluster((Node(gpus, load_host("hgx-h100")),) * nodes, text)


def reference(name, kind="gpu"):
    return runtime_figure("calibration_reference", kind, name).value


def overlaid(made, *gpus, text="2xH100", nodes=1):
    return calibrated(cluster(*(gpus or (H100, H100)), text=text, nodes=nodes), Kept((made,)))


def test_a_card_that_measures_as_the_reference_keeps_its_data_sheet():
    made = calibration(
        matrix_dtype="bf16",
        matrix_flops_per_second=reference("matrix_fraction") * H100.flops["bf16"],
        memory_bytes_per_second=reference("memory_fraction") * H100.memory_bytes_per_second,
        to_device_bytes_per_second=reference("host_link_fraction") * H100.pcie_bytes_per_second,
        link_bytes_per_second=reference("link_fraction") * H100.nvlink_bytes_per_second,
        launch_seconds=reference("launch_seconds"),
    )
    found = overlaid(made, text="local")
    gpu = found.gpus[0]
    assert gpu.flops == pytest.approx(H100.flops)
    assert gpu.memory_bytes_per_second == pytest.approx(H100.memory_bytes_per_second)
    assert gpu.pcie_bytes_per_second == pytest.approx(H100.pcie_bytes_per_second)
    assert gpu.link_bytes_per_second == pytest.approx(H100.link_bytes_per_second)
    assert found.nodes[0].host.launch_factor == pytest.approx(1.0)


def test_one_dtype_speaks_for_all():
    half = reference("matrix_fraction") * H100.flops["bf16"] / 2
    gpu = overlaid(calibration(matrix_dtype="bf16", matrix_flops_per_second=half)).gpus[0]
    assert gpu.flops == pytest.approx({dtype: rate / 2 for dtype, rate in H100.flops.items()})


def test_memory_beside_the_allocator_is_taken_as_measured():
    gpu = overlaid(calibration(context_bytes=500 * MIB, nccl_bytes=700 * MIB)).gpus[0]
    assert gpu.context_bytes == 500 * MIB + reference("context_beyond_bytes")
    assert gpu.nccl_bytes == 700 * MIB + reference("nccl_beyond_bytes")
    assert gpu.context_provenance == "measured"
    assert gpu.source == "ftplan calibrate, 2026-11-22"


MACHINE = {"to_device_bytes_per_second": 1e9, "from_device_bytes_per_second": 2e9, "link_bytes_per_second": 3e9}


def test_links_and_launch_times_are_this_machines():
    made = calibration(context_bytes=MIB, launch_seconds=2 * reference("launch_seconds"), **MACHINE)
    away, here = overlaid(made), overlaid(made, text=" Local ")
    assert away.gpus[0].link_bytes_per_second == H100.link_bytes_per_second
    assert away.gpus[0].pcie_bytes_per_second == H100.pcie_bytes_per_second
    assert away.nodes[0].host.launch_factor == 1.0
    assert away.gpus[0].calibrated.figures == ("context",)
    assert here.gpus[0].pcie_bytes_per_second == pytest.approx(1e9 / reference("host_link_fraction"))
    assert here.gpus[0].link_bytes_per_second == pytest.approx(3e9 / reference("link_fraction"))
    assert here.nodes[0].host.launch_factor == pytest.approx(2.0)
    assert here.gpus[0].calibrated.figures == ("context", "host link", "device link", "launch times")
    assert here.gpus[0].calibrated.measured_at == WHEN


def test_what_was_not_measured_stays():
    gpu = overlaid(calibration()).gpus[0]
    assert gpu.calibrated.figures == ()
    assert gpu == replace(H100, calibrated=gpu.calibrated)


def test_other_cards_stay():
    other = load_gpu("A100-80GB")
    found = overlaid(calibration(context_bytes=MIB), H100, other)
    assert found.gpus[1] is other
    assert calibrated(cluster(other), Kept((calibration(context_bytes=MIB),))) == cluster(other)


def test_a_card_in_part_is_that_card():
    part = replace(H100, usable_bytes=20 * GIB)
    assert overlaid(calibration(context_bytes=MIB), part).gpus[0].usable_bytes == 20 * GIB


def test_many_nodes_cost_no_more_than_one():
    found = overlaid(calibration(context_bytes=MIB), *(H100,) * 8, nodes=5000)
    assert len({id(gpu) for gpu in found.gpus}) == 1


def test_cpu_processes_share_the_machine_wherever_they_are_said_to_be():
    made = calibration("cpu", matrix_dtype="fp32", matrix_flops_per_second=8e11, memory_bytes_per_second=4e10)
    cpu = load_cpu(4 * GIB)
    one, two = (overlaid(made, *(cpu,) * count, text="cpu:4GiB").gpus[0] for count in (1, 2))
    assert one.flops["fp32"] == pytest.approx(8e11 / reference("matrix_fraction", "cpu"))
    assert two.flops["fp32"] == pytest.approx(one.flops["fp32"] / 2)
    assert two.memory_bytes_per_second == pytest.approx(one.memory_bytes_per_second / 2)
    assert one.calibrated.figures == ("matrix rate", "memory bandwidth")
