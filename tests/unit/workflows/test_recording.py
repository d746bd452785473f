from dataclasses import replace

import pytest

from ftplan.profiles import store
from ftplan.profiles.calibration import RunFigures
from ftplan.results import Basis, Calibrated, Measured, RunRecord
from ftplan.spec import RunConfig
from ftplan.units import GIB
from ftplan.workflows import recording

WHEN = "2026-11-22T10:00:00+00:00"


@pytest.fixture
def record():
    def figures(process, step):
        return Measured(None, None, process, GIB, step, None)

    return RunRecord(
        run_id="20261122-100000-3f2a",
        status="finished",
        config=RunConfig(model="Qwen2.5-7B", method="lora", sharding="ddp"),
        inventory="2xH100",
        global_batch=8,
        steps=10,
        first_loss=2.0,
        last_loss=1.0,
        predicted=figures(12 * GIB, 3.0),
        measured=figures(13 * GIB, 2.2),
        wall_seconds=30.0,
        versions={"torch": "2.11.0"},
        basis=Basis(("H100-SXM",), (Calibrated("H100-SXM", WHEN, ("context",)),), 1.5, 3, 2 * GIB),
    )


def test_a_run_is_kept_with_the_prediction_before_its_correction(record):
    assert recording.recorded(record, ranks=2) == ""
    (kept,) = store.load().runs
    assert (kept.devices, kept.calibrated_at, kept.ranks) == (("H100-SXM",), (WHEN,), 2)
    assert (kept.method, kept.sharding, kept.offload) == ("lora", "ddp", "none")
    assert (kept.predicted.process_bytes, kept.predicted.step_seconds) == (10 * GIB, 2.0)
    assert (kept.measured.process_bytes, kept.measured.step_seconds) == (13 * GIB, 2.2)
    assert kept.versions == {"torch": "2.11.0"}


@pytest.mark.parametrize("changes", [{"status": "interrupted"}, {"basis": Basis()}, {"profiles": ("trace.json.gz",)}])
def test_other_runs_are_not_kept(record, changes):
    recording.recorded(replace(record, **changes), ranks=2)
    assert store.load().runs == ()


def test_unknown_figures_stay_unknown(record):
    nothing = Measured(None, None, None, None, None, None)
    recording.recorded(replace(record, predicted=nothing, measured=nothing), ranks=2)
    (kept,) = store.load().runs
    assert kept.predicted == kept.measured == RunFigures(None, None, None)


def test_a_run_that_cannot_be_kept_is_no_failure(record, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTPLAN_DATA", str(tmp_path / "file" / "folder"))
    assert "will not go by this run" in recording.recorded(record, ranks=2)
