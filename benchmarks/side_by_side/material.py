"""What both programs read: random weights of the real shape, a tokenizer, and rows that fill the sequence."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.side_by_side.cases import Case
from ftplan.launcher import demo
from ftplan.profiles.models import load_hf_config

DATASET: Final = "rows"
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Material:
    """A folder with the model and its tokenizer, and one with the rows and LLaMA-Factory's description of them."""

    model: Path
    data: Path

    @property
    def rows(self) -> Path:
        """The rows, in alpaca form."""
        return self.data / f"{DATASET}.jsonl"


def prepare(case: Case, folder: Path, *, steps: int, seed: int) -> Material:
    """Write what ``case`` trains with for ``steps`` steps."""
    material = Material(folder / "model", folder / "data")
    material.model.mkdir(parents=True)
    material.data.mkdir()
    config = shape_of(case)
    _write_weights(config, material.model)
    # The catalogue's own config.json takes the place of the one that the installed transformers has saved.
    (material.model / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copy(demo.model_path() / name, material.model / name)
    rows = filling_rows(case.global_batch * steps, case.seq_len, seed)
    material.rows.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    described = {DATASET: {"file_name": material.rows.name}}
    (material.data / "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")
    return material


def shape_of(case: Case) -> Mapping[str, Any]:
    """The config.json of the case's model."""
    return {**load_hf_config(case.model), **case.shape}


def filling_rows(count: int, seq_len: int, seed: int) -> Iterator[Mapping[str, str]]:
    """``count`` rows in alpaca form, each of at least ``seq_len`` tokens: both programs cut them to that length.

    A word is one token or more. Nearly all of a row is the answer, so that a program that leaves the prompt out of the
    loss saves nothing.
    """
    chosen = random.Random(seed)  # noqa: S311 - text that repeats, nothing secret
    words = demo.instructions_path().read_text(encoding="utf-8").replace('"', " ").split()
    for _ in range(count):
        yield {"instruction": "Go on.", "input": "", "output": " ".join(chosen.choices(words, k=seq_len))}


def _write_weights(config: Mapping[str, Any], folder: Path) -> None:
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    from ftplan.launcher.train.random_model import materialise

    fields = dict(config)
    shape = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    materialise(model, torch.device("cpu"), torch.bfloat16)
    model.tie_weights()
    model.save_pretrained(folder)
