"""What users see of calibrations: the command's own output, and what plans and estimates say."""

import json
from dataclasses import replace

import pytest

from ftplan import __version__
from ftplan.profiles import store
from ftplan.profiles.calibration import Calibration, DeviceFigures, RecordedRun, RunFigures
from ftplan.profiles.data_folder import data_folder
from ftplan.profiles.gpus import load_gpu
from ftplan.profiles.runtime import runtime_figure
from ftplan.units import GIB, MIB

WHEN = "2026-11-22T10:00:00+00:00"
ESTIMATE = ("estimate", "--model", "Qwen2.5-7B", "--gpus", "1xH100")
PLAN = ("plan", "--model", "Qwen2.5-7B", "--gpus", "1xH100")


@pytest.fixture
def calibrated():
    figures = DeviceFigures(
        context_bytes=600 * MIB,
        matrix_dtype="bf16",
        matrix_flops_per_second=load_gpu("H100-SXM").flops["bf16"] / 4,
        memory_bytes_per_second=2.9e12,
        to_device_bytes_per_second=55e9,
        from_device_bytes_per_second=54e9,
        launch_seconds=1.1e-5,
        nccl_bytes=GIB,
        link_bytes_per_second=350e9,
        ranks=2,
    )
    store.keep_calibration(Calibration("H100-SXM", "580.65", "2.11.0", WHEN, figures, {"b": "out of luck"}))


def keep_runs(*ratios, calibrated_at=(), excess_bytes=0):
    predicted = RunFigures(10 * GIB, GIB, 2.0)
    for number, ratio in enumerate(ratios):
        store.keep_run(
            RecordedRun(
                run_id=f"run-{number}",
                finished_at=WHEN,
                ftplan=__version__,
                devices=("H100-SXM",),
                calibrated_at=calibrated_at,
                ranks=1,
                model="Qwen2.5-7B",
                method="lora",
                sharding="none",
                offload="none",
                predicted=predicted,
                measured=replace(predicted, process_bytes=10 * GIB + excess_bytes, step_seconds=2 * ratio),
            )
        )


def test_nothing_kept_is_said_with_a_hint(cli):
    answer = cli("calibrate", "--show")
    assert (answer.code, answer.out) == (0, "nothing was measured or recorded yet\n")
    assert "hint: measure this machine: ftplan calibrate" in answer.err
    assert cli("calibrate", "--show", "--json").document == {"calibrations": [], "runs": []}


def test_figures_and_runs_are_shown(cli, calibrated):
    keep_runs(1.25)
    text = cli("calibrate", "--show").out
    for told in ("driver 580.65 · torch 2.11.0 · 2026-11-22", "0.59 GiB", "247 TFLOP/s in bf16", "2,900 GB/s"):
        assert told in text
    for told in ("11.0 µs", "350 GB/s in an all-reduce of 2", "not measured: b: out of luck", "run-0", "-20.0% off"):
        assert told in text
    document = cli("calibrate", "--show", "--json").document
    assert document["calibrations"][0]["figures"]["nccl_bytes"] == GIB
    assert document["runs"][0]["run_id"] == "run-0"


def test_reset_says_what_it_removed(cli, calibrated):
    keep_runs(1.0)
    answer = cli("calibrate", "--reset")
    assert [line.rsplit("/", 1)[-1] for line in answer.out.splitlines()] == ["calibration.json", "runs.jsonl"]
    assert cli("calibrate", "--reset").out == "nothing to remove\n"
    assert cli("calibrate", "--reset", "--json").document == {"removed": []}


@pytest.mark.parametrize("arguments", [("--show", "--reset"), ("--gpus", "2x24GB"), ("--gpus", "")])
def test_bad_input(cli, arguments):
    answer = cli("calibrate", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert "hint: " in answer.err


@pytest.mark.parametrize("name", ["calibration.json", "runs.jsonl"])
@pytest.mark.parametrize("arguments", [PLAN, ESTIMATE, ("calibrate", "--show")], ids=" ".join)
def test_a_foreign_file_stops_nothing_for_good(cli, name, arguments):
    folder = data_folder()
    folder.mkdir(parents=True)
    (folder / name).write_text("not ours\n")
    answer = cli(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert f"{folder / name} is not what this version of ftplan keeps there" in answer.err
    assert "hint: ftplan calibrate --reset removes it" in answer.err
    assert cli("calibrate", "--reset").code == 0
    assert cli(*arguments).code == 0


@pytest.mark.parametrize("arguments", [PLAN, ESTIMATE], ids=" ".join)
def test_answers_say_that_they_are_assumed_or_calibrated(cli, calibrated, arguments):
    text = " ".join(cli(*arguments).out.split())
    assert "calibrated on 2026-11-22)" in text
    assert "note: calibrated on 2026-11-22: context, NCCL, matrix rate, memory bandwidth of H100-SXM" in text
    cli("calibrate", "--reset")
    text = " ".join(cli(*arguments).out.split())
    assert "assumed until calibrated)" in text
    assert "note: calibrated" not in text


def test_figures_count(cli, calibrated):
    after = cli(*ESTIMATE, "--json").document
    cli("calibrate", "--reset")
    before = cli(*ESTIMATE, "--json").document
    beyond = runtime_figure("calibration_reference", "gpu", "context_beyond_bytes").value
    assert before["process_bytes"] - after["process_bytes"] == (768 - 600) * MIB - beyond
    assert after["step"]["compute_seconds"] > 1.5 * before["step"]["compute_seconds"]
    assert (before["step"]["provenance"], after["step"]["provenance"]) == ("assumed", "analytic")
    assert after["basis"]["calibrations"] == [
        {
            "device": "H100-SXM",
            "measured_at": WHEN,
            "figures": ["context", "NCCL", "matrix rate", "memory bandwidth"],
        }
    ]


def test_other_cards_are_estimated_as_before(cli, calibrated):
    assert "assumed until calibrated)" in " ".join(cli(*ESTIMATE[:-1], "1xA100-80GB").out.split())


def test_recorded_runs_are_told_and_count(cli):
    before = cli(*ESTIMATE, "--json").document
    keep_runs(1.2, 1.3, 1.4, excess_bytes=GIB)
    after = cli(*ESTIMATE, "--json").document
    assert after["step_seconds"] == pytest.approx(1.3 * before["step_seconds"])
    assert after["needed_bytes"] == before["needed_bytes"] + GIB
    for arguments in (PLAN, ESTIMATE):
        text = " ".join(cli(*arguments).out.split())
        assert "times are 1.30 of the closed form's: the median of 3 recorded runs on H100-SXM" in text
    assert "note: 1.00 GiB more are needed: recorded runs of this kind took that over their prediction" in text


def test_a_batch_goes_by_them_too(cli, calibrated):
    line = json.dumps({"model": "Qwen2.5-7B", "gpus": "1xH100"})
    (document,) = cli("estimate", "--batch", "-", "--json", stdin=line).documents
    assert document["basis"]["calibrations"][0]["device"] == "H100-SXM"
