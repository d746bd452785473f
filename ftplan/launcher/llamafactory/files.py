"""A `TrainJob` in LLaMA-Factory's files: its settings, its data with dataset_info.json, and the command."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ftplan.errors import CannotExpressError, InputError
from ftplan.launcher import data
from ftplan.launcher.artifacts import cache_variables, device_environment, explained, worker_environment
from ftplan.launcher.data import TrainingData
from ftplan.launcher.environment import settled
from ftplan.launcher.formats.given import Emitted, Target
from ftplan.launcher.formats.llamafactory import FORMAT
from ftplan.launcher.formats.rendering import settings_files, written
from ftplan.launcher.job import TrainJob
from ftplan.launcher.llamafactory.environment import FactoryEnvironment

DATASET: Final = "ftplan"
DATA_FOLDER: Final = "data"
ROWS_FILE: Final = "rows.jsonl"
INFO_FILE: Final = "dataset_info.json"
_CHAT: Final[Mapping[str, Any]] = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}
_PAIRS: Final[Mapping[str, Any]] = {"columns": {"prompt": "prompt", "response": "completion"}}


@dataclass(frozen=True, slots=True)
class Launch:
    """What starts the run, and the files that it needs, by name inside the run's folder.

    ``notes`` say what of the user's environment is replaced.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """The data as LLaMA-Factory reads it: files by name inside the run's folder, and how many rows they have.

    ``notes`` tell of rows that are skipped or left out.
    """

    files: Mapping[str, str]
    count: int
    notes: tuple[str, ...] = ()


def check(job: TrainJob) -> None:
    """Raise InputError for what LLaMA-Factory is not started with from here."""
    if job.nodes > 1:
        hint = "ftplan plan --format llamafactory,slurm writes a job for several"
        raise InputError("--engine llamafactory starts the processes of one machine", hint=hint, field="engine")
    if job.tokenizer.location != job.model.location:
        raise InputError(
            "LLaMA-Factory takes the tokenizer from the model's folder", hint="leave --tokenizer out", field="tokenizer"
        )
    for field, asked, what in (
        ("chat_template", job.chat_template is not None, "chat templates: it has templates of its own"),
        ("track", bool(job.trackers), "trackers: its log is followed from here"),
        ("count_flops", job.count_flops, "counting of FLOPs"),
        ("profile", job.profile, "profiles"),
    ):
        if asked:
            option = f"--{field.replace('_', '-')}"
            hint = f"leave {option} out, or train with ftplan's own loop: leave --engine out"
            raise InputError(f"--engine llamafactory takes no {what}", hint=hint, field=field)


def can_say(job: TrainJob) -> bool:
    """Whether LLaMA-Factory has words for the configuration of ``job``."""
    try:
        launch(job)
    except CannotExpressError:
        return False
    return True


def launch(job: TrainJob, *, resume_from: Path | None = None) -> Launch:
    """The command and every file but the data; raises CannotExpressError for a configuration it has no words for."""
    assert job.engine_env is not None, "a job for LLaMA-Factory names its environment"
    environment = FactoryEnvironment(Path(job.engine_env))
    release = environment.versions().get("llamafactory", "")
    target = Target(
        nodes=1,
        per_node=job.nproc_per_node,
        version=release,
        dataset=DATASET,
        output_dir=str(job.folder.checkpoints),
        learning_rate=job.learning_rate,
        epochs=job.epochs or 1.0,
    )
    emitted, _ = written(FORMAT, job.config, target)
    emitted = replace(emitted, main={**emitted.main, **_settings(job, emitted, resume_from)})
    files = settings_files(emitted, f"LLaMA-Factory {release}".strip())
    root = job.folder.root
    program, *words = emitted.command
    argv = (environment.program(program), *(str(root / word) if word in files else word for word in words))
    wanted = explained({**worker_environment(job.threads_per_process), **device_environment(job.config, job.device)})
    found = settled((*wanted, *cache_variables(job, os.environ)), os.environ)
    env = {
        **found.values,
        # The log then tells the peaks of memory (LLaMA-Factory, train/callbacks.py).
        "RECORD_VRAM": "1",
        **emitted.environment,
        **environment.variables(os.environ),
    }
    files["job.json"] = job.model_dump_json(indent=2) + "\n"
    files["launch.sh"] = _script(job, argv, env)
    return Launch(argv, env, files, found.notes)


def rows(job: TrainJob) -> Rows:
    """The data of ``job``.

    Every row is written anew: the forms that ftplan reads are more than LLaMA-Factory's. Raises InputError for plain
    text, which is another stage of training there.
    """
    if not job.data.paths:
        raise InputError("--engine llamafactory takes local files", hint="--data FILE.jsonl", field="data")
    given = data.load(job.data)
    if given.shape == "text":
        hint = "leave --engine out, or bring the data into the form of conversations"
        raise InputError("LLaMA-Factory trains on plain text in a stage of its own (pt)", hint=hint, field="data")
    form = _CHAT if given.shape == "messages" else _PAIRS
    info = {DATASET: {"file_name": ROWS_FILE, **form}}
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given.rows)
    files = {f"{DATA_FOLDER}/{INFO_FILE}": json.dumps(info, indent=2) + "\n", f"{DATA_FOLDER}/{ROWS_FILE}": lines}
    count, left_out = len(given.rows), sum(1 for _ in _left_out(given))
    odd = f"LLaMA-Factory leaves out {left_out} of {count} rows: their turns do not alternate" if left_out else ""
    return Rows(files, count, tuple(filter(None, (given.note, odd))))


def _left_out(given: TrainingData) -> Iterable[Mapping[str, Any]]:
    """Conversations in which user and assistant do not take turns (LLaMA-Factory, data/converter.py)."""
    if given.shape != "messages":
        return
    for row in given.rows:
        roles = [message["role"] for message in row["messages"]]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        expected = ["user", "assistant"] * (len(turns) // 2)
        if turns != expected:
            yield row


def _settings(job: TrainJob, emitted: Emitted, resume_from: Path | None) -> dict[str, Any]:
    """What a run says beside a configuration, in LLaMA-Factory's words."""
    root = job.folder.root
    found: dict[str, Any] = {
        "model_name_or_path": job.model.location,
        "dataset_dir": str(root / DATA_FOLDER),
        "lr_scheduler_type": job.lr_scheduler,
        "warmup_steps": job.warmup_steps,
        "weight_decay": job.weight_decay,
        "max_grad_norm": job.max_grad_norm,
        "seed": job.seed,
        "logging_steps": job.logging_steps,
        "save_steps": job.save_steps,
        "ddp_timeout": job.timeout_seconds,
        "report_to": "none",
        # The log then tells tokens, and the time that they took.
        "include_num_input_tokens_seen": True,
    }
    if job.max_steps is not None:
        found["max_steps"] = job.max_steps
    if job.model.kind == "config":
        found["train_from_scratch"] = True
    if job.data.eval_fraction:
        found |= {"val_size": job.data.eval_fraction, "eval_steps": job.save_steps}
    if job.device == "cpu":
        found["use_cpu"] = True
    if "deepspeed" in emitted.main:
        found["deepspeed"] = str(root / str(emitted.main["deepspeed"]))
    if resume_from is not None:
        found["resume_from_checkpoint"] = str(resume_from)
    return found


def _script(job: TrainJob, argv: Iterable[str], env: Mapping[str, str]) -> str:
    """The same launch by hand."""
    own = {name: value for name, value in env.items() if name != "PATH"}
    programs = FactoryEnvironment(Path(job.engine_env or "")).programs
    lines = [
        "#!/usr/bin/env bash",
        f"# Run {job.run_id} by LLaMA-Factory: {job.world_size} process(es), global batch {job.global_batch}.",
        "set -euo pipefail",
        f'export PATH={shlex.quote(str(programs))}:"$PATH"',
        *(f"export {name}={shlex.quote(value)}" for name, value in own.items()),
        f"exec {shlex.join(argv)}",
    ]
    return "\n".join(lines) + "\n"
