"""Checks of files that stand in a test."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ftplan.verdicts import Check, Problem
from ftplan.workflows import checking

LLAMAFACTORY: Mapping[str, Any] = {
    "model_name_or_path": "Qwen/Qwen2.5-0.5B",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "identity",
    "template": "qwen",
    "cutoff_len": 512,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "bf16": True,
    "output_dir": "o",
}


def written(folder: Path, files: Mapping[str, str]) -> list[str]:
    """``files`` by name in ``folder``: their paths."""
    paths = []
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
        paths.append(str(folder / name))
    return paths


def llamafactory(**settings: Any) -> str:
    """A file of LLaMA-Factory's with other settings; None takes one out."""
    content = {key: value for key, value in {**LLAMAFACTORY, **settings}.items() if value is not None}
    return yaml.safe_dump(content, sort_keys=False)


def zero(stage: int, **more: Any) -> str:
    """A file of DeepSpeed's."""
    return json.dumps({"zero_optimization": {"stage": stage, **more}}, indent=1)


def checked(files: Mapping[str, str], gpus: str, **asked: Any) -> Check:
    """The check of the first of ``files``, each once for the same text."""
    return _checked(tuple(files.items()), gpus, json.dumps(asked, sort_keys=True))


@functools.cache
def _checked(files: tuple[tuple[str, str], ...], gpus: str, asked: str) -> Check:
    with tempfile.TemporaryDirectory() as folder:
        first = written(Path(folder), dict(files))[0]
        return checking.check(checking.Asked((first,), gpus=gpus, **json.loads(asked))).check


def kinds(check: Check) -> list[str]:
    """What is wrong, by kind."""
    return [problem.kind for problem in check.problems]


def only(check: Check, kind: str) -> Problem:
    """The one problem of a kind."""
    (found,) = [problem for problem in check.problems if problem.kind == kind]
    return found
