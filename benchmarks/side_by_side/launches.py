"""The processes to start: ftplan's worker as its engine starts it, and LLaMA-Factory by files that ftplan writes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from benchmarks.side_by_side.cases import Case, llamafactory_config
from benchmarks.side_by_side.material import DATASET, Material
from ftplan.launcher import artifacts, engine
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import written
from ftplan.launcher.job import DataSource, DeviceKind, Source, TrainJob
from ftplan.launcher.records import RunDir
from ftplan.spec import RunConfig

LEARNING_RATE: Final = 1e-5
"""Small, because random weights must only stay numbers."""
LLAMAFACTORY_LOG: Final = "trainer_log.jsonl"


@dataclass(frozen=True)
class Launch:
    """A command whose process appends a line to ``progress`` after every step; ``loss_of`` reads it, None for others.

    ``config`` is what it trains, as data for the result.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    progress: Path
    log: Path
    loss_of: Callable[[bytes], float | None]
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What all launches of a case have in common."""

    case: Case
    material: Material
    device: DeviceKind
    steps: int
    seed: int


def native(training: Training, config: RunConfig, folder: Path) -> Launch:
    """ftplan's engine with ``config``: the files are written, and the command is what `engine.launch` would start."""
    prepared = engine.prepare(_job(training, config, folder))
    for path, text in prepared.files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    run = RunDir(folder)
    return Launch(prepared.argv, prepared.env, run.metrics, run.log, _native_loss, config.model_dump(mode="json"))


def _job(training: Training, config: RunConfig, folder: Path) -> TrainJob:
    source = Source(kind="folder", location=str(training.material.model))
    return TrainJob(
        run_id="side-by-side",
        run_dir=str(folder),
        config=config,
        inventory=f"1x{training.device}",
        global_batch=config.micro_batch * config.accumulation,
        world_size=1,
        nproc_per_node=1,
        device=training.device,
        model=source,
        tokenizer=source,
        data=DataSource(paths=(str(training.material.rows),), form="alpaca"),
        max_steps=training.steps,
        learning_rate=LEARNING_RATE,
        seed=training.seed,
        save_steps=None,
        threads_per_process=len(os.sched_getaffinity(0)),
        tensorboard=False,
    )


def _native_loss(line: bytes) -> float | None:
    told = json.loads(line)
    return float(told["loss"]) if told["event"] == "stepped" else None


def llamafactory(training: Training, site: Path, folder: Path) -> Launch:
    """LLaMA-Factory from the packages in ``site``, by the files of ``ftplan plan --format llamafactory``.

    What these do not say is said on its command line: where the data is, how long to train, and that nothing is saved
    on the way.
    """
    config = llamafactory_config(training.case, str(training.material.model))
    output = folder / "output"
    target = Target(
        version=releases(site)["llamafactory"],
        dataset=DATASET,
        output_dir=str(output),
        learning_rate=LEARNING_RATE,
    )
    emitted, files = written(FORMATS["llamafactory"], config, target)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "llamafactory.cli", "train", str(folder / emitted.main_name)]
    env = {
        **emitted.environment,
        **artifacts.OFFLINE,
        "PYTHONPATH": str(site),
        "PYTHONUNBUFFERED": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "CUDA_VISIBLE_DEVICES": "" if training.device == "cpu" else _first_card(),
    }
    return Launch(
        (*command, *stated(training)),
        env,
        output / LLAMAFACTORY_LOG,
        folder / "log.txt",
        _llamafactory_loss,
        config.model_dump(mode="json"),
    )


def releases(site: Path) -> dict[str, str]:
    """What is installed in ``site``, by name."""
    return {each.name: each.version for each in metadata.distributions(path=[str(site)])}


def stated(training: Training) -> tuple[str, ...]:
    """Settings of one run, as OmegaConf reads them: ``no`` needs quotes, or it is False."""
    stated = {
        "dataset_dir": str(training.material.data),
        "template": "empty",
        "max_steps": str(training.steps),
        "seed": str(training.seed),
        "logging_steps": "1",
        "save_strategy": "'no'",
        "report_to": "none",
        **({"use_cpu": "true"} if training.device == "cpu" else {}),
    }
    return tuple(f"{key}={value}" for key, value in stated.items())


def _llamafactory_loss(line: bytes) -> float | None:
    loss = json.loads(line).get("loss")
    return None if loss is None else float(loss)


def _first_card() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
