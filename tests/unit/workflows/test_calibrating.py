import importlib.util
from dataclasses import replace

import pytest

from ftplan.errors import InputError, RunFailedError
from ftplan.launcher.probing import Part, Probed
from ftplan.profiles import store
from ftplan.profiles.data_folder import data_folder
from ftplan.profiles.gpus import load_gpu
from ftplan.profiles.hosts import load_host
from ftplan.workflows import calibrating

H100, A100 = load_gpu("H100-SXM"), load_gpu("A100-80GB")


@pytest.fixture
def machine(monkeypatch):
    """A machine with these cards, whose probes answer at once; returns the probes that ran."""

    def install(*gpus, figures=None, failures=None):
        names = tuple(f"GPU-{index}" for index in range(len(gpus)))
        ran = []

        def run_probe(probe, deadline, on_part):
            ran.append(probe)
            on_part(Part("context"))
            alone = {"context_bytes": 5} if figures is None else figures
            return Probed("2.11.0", {"nccl_bytes": 7} if probe.ranks > 1 else alone, dict(failures or {}))

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(calibrating, "detect_gpus", lambda: gpus)
        monkeypatch.setattr(calibrating, "visible_names", lambda: names)
        monkeypatch.setattr(calibrating, "driver_version", lambda: "580.65")
        monkeypatch.setattr(calibrating, "detect_host", lambda: replace(load_host("desktop"), cores=1))
        monkeypatch.setattr(calibrating, "run_probe", run_probe)
        return ran

    return install


def calibrate(gpus="local"):
    told = []
    return calibrating.calibrate(gpus, lambda device, part: told.append((device, part.name))), told


def test_one_card_is_measured_and_kept(machine):
    ran = machine(H100)
    (made,), told = calibrate()
    assert (made.device, made.driver, made.torch, made.figures.context_bytes) == ("H100-SXM", "580.65", "2.11.0", 5)
    assert store.load().calibrations == (made,)
    assert [(probe.kind, probe.ranks, probe.env["CUDA_VISIBLE_DEVICES"]) for probe in ran] == [("cuda", 1, "GPU-0")]
    assert told == [("H100-SXM", "context")]


def test_several_cards_are_measured_once_a_kind_and_together(machine):
    ran = machine(H100, H100, A100)
    made, told = calibrate()
    assert [one.device for one in made] == ["H100-SXM", "A100-80GB-SXM"]
    assert {one.figures.nccl_bytes for one in made} == {7}
    shown = [(probe.ranks, probe.env["CUDA_VISIBLE_DEVICES"]) for probe in ran]
    assert shown == [(1, "GPU-0"), (1, "GPU-2"), (3, "GPU-0,GPU-1,GPU-2")]
    assert told[-1] == ("", "context")


@pytest.mark.parametrize("gpus", ["local", "cpu"])
def test_the_cpu_is_measured_where_it_is_asked_for_or_all_there_is(machine, gpus):
    ran = machine(*([H100] if gpus == "cpu" else []))
    (made,), _ = calibrate(gpus)
    assert (made.device, made.driver) == ("cpu", "")
    assert [(probe.kind, probe.env["CUDA_VISIBLE_DEVICES"]) for probe in ran] == [("cpu", "")]


def test_what_failed_is_kept_with_the_rest(machine):
    machine(H100, failures={"host link": "no memory"})
    (made,), _ = calibrate()
    assert made.failures == {"host link": "no memory"}


def test_nothing_measured_is_a_failure_and_is_not_kept(machine):
    machine(H100, figures={}, failures={"context": "no device"})
    with pytest.raises(RunFailedError, match="nothing could be measured on H100-SXM") as error:
        calibrate()
    assert error.value.hint == "no device"
    assert store.load().calibrations == ()


def test_other_machines_cannot_be_measured():
    with pytest.raises(InputError, match="cannot calibrate '2x24GB'"):
        calibrate("2x24GB")


def test_calibrating_needs_torch(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="torch"):
        calibrate()


def test_what_could_not_be_kept_is_said_before_anything_is_measured(machine):
    ran = machine(H100)
    folder = data_folder()
    folder.mkdir(parents=True)
    (folder / "calibration.json").write_text("{")
    with pytest.raises(InputError, match=r"calibration\.json"):
        calibrate()
    assert ran == []
