from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from jobs import make_job

from ftplan.errors import InputError
from ftplan.launcher import trackers


def test_the_names_are_those_of_transformers() -> None:
    found = find_spec("transformers")
    assert found is not None
    assert found.origin is not None
    source = (Path(found.origin).parent / "integrations" / "integration_utils.py").read_text(encoding="utf-8")
    table = source.split("INTEGRATION_TO_CALLBACK = {")[1].split("}")[0]
    assert set(re.findall(r'"(\w+)":', table)) == set(trackers.PACKAGES)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    trackers.check_names(["wandb", "mlflow"])
    with pytest.raises(InputError, match="unknown tracker 'wanbd'") as caught:
        trackers.check_names(["wandb", "wanbd"])
    assert "mlflow" in caught.value.hint


def test_a_tracker_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"mlflow"}
    monkeypatch.setattr(trackers, "find_spec", lambda name: name if name in there else None)
    monkeypatch.delenv(trackers.KUBEFLOW_SERVER, raising=False)
    trackers.check_installed(["mlflow"])
    with pytest.raises(InputError, match=r"tracker dagshub needs dagshub$"):
        trackers.check_installed(["dagshub"])
    with pytest.raises(InputError, match="needs the variable KUBEFLOW_TRAINER_SERVER_URL"):
        trackers.check_installed(["kubeflow"])


def test_tensorboard_is_told_wherever_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    assert trackers.reported_to(make_job()) == ["tensorboard"]
    assert trackers.reported_to(make_job(trackers=("wandb", "tensorboard"))) == ["tensorboard", "wandb"]
    assert trackers.reported_to(make_job(tensorboard=False)) == []
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert trackers.reported_to(make_job(trackers=("wandb",))) == ["wandb"]


def test_trackers_keep_their_files_with_the_run() -> None:
    assert trackers.environment(make_job(run_dir="/runs/a")) == {"TENSORBOARD_LOGGING_DIR": "/runs/a/tensorboard"}
    assert trackers.environment(make_job(run_dir="/runs/a", trackers=("wandb",)))["WANDB_DIR"] == "/runs/a"
