"""What of a base on the hub is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
from huggingface_hub.utils import filter_repo_objects

from ftplan.launcher.job import Source
from ftplan.launcher.merge_job import MergeJob
from ftplan.launcher.train import model_folder

WANTED = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
OTHERS = ["consolidated.safetensors", "original/model.safetensors", "fp16/config.json", "pytorch_model.bin", "LICENSE"]


def test_weights_come_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken: list[str] = []

    def download(hub_id: str, **patterns: Any) -> str:
        taken.extend(filter_repo_objects(WANTED + OTHERS, **patterns))
        return str(tmp_path)

    monkeypatch.setattr(model_folder, "snapshot_download", download)
    base = Source(kind="hub", location="owner/name")
    job = MergeJob(adapter="a", base=base, out=str(tmp_path), max_shard_bytes=1)
    assert model_folder.base_folder(job) == tmp_path
    assert taken == WANTED
