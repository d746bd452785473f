"""Trials of one process talk to the other ranks over one group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")
import torch

from ftplan.launcher.train import rehearsal
from ftplan.launcher.train.reporter import Reporter
from ftplan.launcher.trial_job import Trial, TrialsJob
from ftplan.spec import RunConfig


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every `Control` that is made."""
    made: list[Any] = []

    def control() -> Any:
        made.append(SimpleNamespace(any=lambda flag: flag))
        return made[-1]

    threads = torch.get_num_threads()
    monkeypatch.setattr(rehearsal, "Control", control)
    rehearsal._control.cache_clear()
    yield made
    rehearsal._control.cache_clear()
    torch.set_num_threads(threads)


def test_trials_talk_over_one_group(groups: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Any) -> None:
        raise RuntimeError("the trial fails, and the next one comes")

    monkeypatch.setattr(rehearsal, "trainer_arguments", fail)
    trials = tuple(Trial(id=name, config=RunConfig(model="demo", seq_len=8)) for name in "abc")
    told = tmp_path / "told"
    job = TrialsJob(architecture="demo", world_size=1, device="cpu", trials=trials, results=str(told))
    assert rehearsal.rehearse(job, Reporter(told))
    assert len(told.read_text().splitlines()) == 3
    assert len(groups) == 1
