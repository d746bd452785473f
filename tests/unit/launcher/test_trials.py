"""Trials whose processes are played by a small script: what they write, and how they hang or die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jobs import make_config
from pydantic import ValidationError

from ftplan.launcher import artifacts, trials
from ftplan.launcher.trial_job import from_line, to_line
from ftplan.launcher.trials import Limits, Trial, Trialled, TrialsJob, TrialsSetup, group, run_trials, training_job

PLAYER = """\
import json, os, signal, sys, time
job = json.load(open(sys.argv[1]))
def write(trial, status, end="\\n", **more):
    with open(job["results"], "a") as file:
        file.write(json.dumps({"trial": trial, "status": status, **more}) + end)
with open(job["results"] + ".started", "a") as file:
    file.write(f"{os.getpid()} {sys.argv[2]} {' '.join(trial['id'] for trial in job['trials'])}\\n")
for trial in (trial["id"] for trial in job["trials"]):
    kind = trial.split("-")[0]
    print("ftplan trial:", trial, flush=True)
    if kind == "hangs":
        time.sleep(60)
    elif kind == "dies":
        print("Segmentation fault", flush=True)
        os._exit(7)
    elif kind == "lacks":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", flush=True)
        os._exit(1)
    elif kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "told":
        print("torch.OutOfMemoryError: told by a process that goes on", flush=True)
        write(trial, "out_of_memory")
    elif kind == "fails":
        write(trial, "failed", message="no such thing")
    elif kind == "peers":
        write(trial, "failed", message="connection lost")
        write(trial, "out_of_memory", message="no room")
        os._exit(1)
    elif kind == "torn":
        write(trial, "measu", end="")
        os._exit(9)
    else:
        write(trial, "measured", step_seconds=1.5)
        if kind == "keeps":  # memory that the next trial could not have
            sys.exit(0)
"""
SETUP = TrialsSetup(architecture="/models/demo", world_size=2, device="cuda")
LIMITS = Limits(first=20.0, trial=0.7, exit=5.0)


def make_trial(name: str, **config: Any) -> Trial:
    return Trial(id=name, config=make_config(**config))


class Player:
    """Runs trials with the script in the place of the worker, and remembers what was handed on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[Trialled] = []

    def __call__(self, *names: str, seconds: float = 30.0, **config: Any) -> dict[str, str]:
        """Statuses by trial, in the order they came."""
        self.told = []
        given = [make_trial(name, **config) for name in names]
        deadline = time.monotonic() + seconds
        run_trials(given, SETUP, folder=self.folder, deadline=deadline, on_result=self.told.append, limits=LIMITS)
        return {told.trial: told.status for told in self.told}

    @property
    def started(self) -> list[str]:
        """The trials that each process was given, in its order."""
        file = self.folder / f"{trials.RESULTS}.started"
        return [line.split(" ", 2)[2] for line in file.read_text().splitlines()] if file.exists() else []

    def message(self, name: str) -> str:
        return next(told.message for told in self.told if told.trial == name)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Player:
    script = tmp_path / "player.py"
    script.write_text(PLAYER)

    def command(module: str, job_file: str, *, ranks: int | None, python: str | None = None) -> list[str]:
        return [sys.executable, str(script), job_file, str(ranks)]

    monkeypatch.setattr(artifacts, "command", command)
    return Player(tmp_path / "trials")


def test_all_are_measured_in_one_process(play: Player) -> None:
    assert play("a", "b", "c") == {"a": "measured", "b": "measured", "c": "measured"}
    assert play.started == ["a b c"]
    assert play.told[0].step_seconds == 1.5


def test_a_failure_that_is_told_costs_no_process(play: Player) -> None:
    assert list(play("a", "fails", "c").values()) == ["measured", "failed", "measured"]
    assert play.message("fails") == "no such thing"
    assert len(play.started) == 1


def test_a_process_that_dies_costs_the_trial_that_was_running(play: Player) -> None:
    assert play("a", "dies", "c") == {"a": "measured", "dies": "failed", "c": "measured"}
    assert "exit code 7" in play.message("dies")
    assert "Segmentation fault" in play.message("dies")
    assert play.started == ["a dies c", "c"]


def test_a_trial_that_keeps_memory_gives_the_next_one_a_process_of_its_own(play: Player) -> None:
    assert play("a", "keeps", "c") == {"a": "measured", "keeps": "measured", "c": "measured"}
    assert play.started == ["a keeps c", "c"]


def test_a_log_or_a_kill_tells_that_memory_was_lacking(play: Player) -> None:
    assert play("lacks", "killed", "told", "dies") == {
        "lacks": "out_of_memory",
        "killed": "out_of_memory",
        "told": "out_of_memory",
        "dies": "failed",
    }
    assert "OutOfMemoryError" in play.message("lacks")
    assert "host runs out of memory" in play.message("killed")


def test_a_trial_that_hangs_is_ended(play: Player) -> None:
    started = time.monotonic()
    assert play("a", "hangs", "c") == {"a": "measured", "hangs": "failed", "c": "measured"}
    assert time.monotonic() - started < 15
    assert "took longer than 1 s" in play.message("hangs")


def test_of_what_several_ranks_tell_the_lack_of_memory_is_the_cause(play: Player) -> None:
    assert play("peers", "b", sharding="ddp") == {"peers": "out_of_memory", "b": "measured"}
    assert play.message("peers") == "no room"
    assert play.started == ["peers b", "b"]


def test_when_the_deadline_passes_the_rest_has_no_time(play: Player) -> None:
    assert play("a", "hangs", "c", seconds=0.6)["c"] == "no_time"
    assert play("a", "b", seconds=-1.0) == {"a": "measured", "b": "no_time"}


def test_what_was_measured_is_kept(play: Player) -> None:
    play("a", "fails", "lacks")
    assert play("b", "a", "lacks", "fails") == {
        "a": "measured",
        "lacks": "out_of_memory",
        "b": "measured",
        "fails": "failed",
    }
    assert play.started == ["a fails lacks", "b fails"]
    assert play.told[0].step_seconds == 1.5


def test_a_torn_line_is_no_result(play: Player) -> None:
    play.folder.mkdir()
    whole = to_line(Trialled("a", "measured", step_seconds=2.0))
    (play.folder / trials.RESULTS).write_bytes(whole + whole.replace(b'"a"', b'"b"')[:30])
    assert play("a", "b") == {"a": "measured", "b": "measured"}
    assert play.started == ["b"]
    assert play.told[0].step_seconds == 2.0


def test_a_process_that_dies_while_it_writes(play: Player) -> None:
    assert play("torn", "b") == {"torn": "failed", "b": "measured"}
    assert play("torn", "b") == {"b": "measured", "torn": "failed"}


def test_an_interrupt_leaves_no_process(play: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(told: Trialled) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(
            [make_trial("a"), make_trial("hangs")],
            SETUP,
            folder=play.folder,
            deadline=time.monotonic() + 30,
            on_result=interrupt,
        )
    pid = int((play.folder / f"{trials.RESULTS}.started").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_cannot_run_as_configured_is_not_started(play: Player) -> None:
    assert play("a", sharding="hsdp") == {"a": "failed"}
    assert "several machines" in play.message("a")
    assert play.started == []


def test_groups_share_what_a_process_fixes() -> None:
    given = [
        make_trial("ddp", sharding="ddp"),
        make_trial("alone"),
        make_trial("zero2", sharding="zero2"),
        make_trial("fsdp", sharding="fsdp2"),
        make_trial("liger", kernels="liger"),
        make_trial("alone-full", method="full", micro_batch=1),
        make_trial("segments", expandable_segments=True),
        make_trial("zero3", sharding="zero3", offload="optimizer+params"),
        make_trial("offloaded", sharding="fsdp2", offload="optimizer+params"),
    ]
    names = [[trial.id for trial in together] for together in group(given, SETUP)]
    assert names == [
        ["ddp", "fsdp"],
        ["alone", "alone-full", "liger"],
        ["zero2", "zero3"],
        ["segments"],
        ["offloaded"],
    ]


def test_a_trial_may_have_another_architecture() -> None:
    other = make_trial("other").model_copy(update={"architecture": "/models/other"})
    job = TrialsJob(**SETUP.model_dump(), trials=(make_trial("own"), other), results="/runs/tune/trials.jsonl")
    assert [training_job(job, trial).model.location for trial in job.trials] == ["/models/demo", "/models/other"]


def test_on_one_cpu_an_unsharded_trial_runs_under_torchrun_with_the_others() -> None:
    given = [make_trial("none"), make_trial("ddp", sharding="ddp")]
    one = TrialsSetup(architecture="/m", world_size=1, device="cpu")
    assert len(group(given, one)) == 1
    assert len(group(given, one.model_copy(update={"world_size": 2}))) == 2


def test_the_run_that_a_trial_cuts_short() -> None:
    trial = make_trial("long", sharding="ddp", micro_batch=4, accumulation=64)
    job = TrialsJob(**SETUP.model_dump(), trials=(trial,), results="/runs/tune/trials.jsonl")
    training = training_job(TrialsJob.model_validate_json(job.model_dump_json()), trial)
    assert training.config.accumulation == 3
    assert training.global_batch == 4 * 3 * 2
    assert training.max_steps == 5
    assert training.run_dir == "/runs/tune"


def test_one_micro_batch_a_step_tells_too_little() -> None:
    with pytest.raises(ValidationError):
        TrialsSetup(architecture="/m", world_size=1, device="cpu", max_accumulation=1)


def test_a_result_is_a_line() -> None:
    told = Trialled("a", "measured", step_seconds=0.5, peak_reserved_bytes=2**40, message="two\nlines")
    assert from_line(to_line(told)) == told
    assert to_line(told).count(b"\n") == 1
    assert from_line(b'{"trial": "a"}') is None
    assert from_line(b"") is None


def test_a_cap_may_be_larger_than_a_count() -> None:
    assert Trial(id="a", config=make_config(), cap_bytes=80 * 10**9).cap_bytes == 80 * 10**9
    with pytest.raises(ValidationError):
        Trial(id="a", config=make_config(), cap_bytes=0)


def test_trials_are_light() -> None:
    script = "import json, sys; import ftplan.launcher.trials; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
