"""The embedded default: a tiny model with random weights, its tokenizer, and a small set of instructions.

They make a run possible without a network, a GPU or files of one's own. The hyperparameters here are what makes the
loss of so small a model fall within tens of steps; they are no advice for real ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ftplan.launcher.job import DataSource, Source

_DATA: Final = Path(__file__).parent / "demo_data"

SEQ_LEN: Final = 128
GLOBAL_BATCH: Final = 16
LEARNING: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "max_steps": 60,
        "learning_rate": 5e-3,
        "lr_scheduler": "cosine",
        "warmup_steps": 3,
        "save_steps": 20,
        "save_total_limit": 2,
        "logging_steps": 1,
    }
)
"""Arguments of the demo's `TrainJob`."""


def model_path() -> Path:
    """The folder with the demo model's config.json and tokenizer."""
    return _DATA / "model"


def instructions_path() -> Path:
    """The packaged instructions: JSON Lines in alpaca form."""
    return _DATA / "instructions.jsonl"


def model() -> Source:
    """The demo model, with random weights."""
    return Source(kind="config", location=str(model_path()))


def tokenizer() -> Source:
    """The demo model's tokenizer."""
    return Source(kind="folder", location=str(model_path()))


def data() -> DataSource:
    """The packaged instructions."""
    return DataSource(paths=(str(instructions_path()),), form="alpaca")
