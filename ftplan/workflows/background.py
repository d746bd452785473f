"""Runs in the background, for a page that starts, watches and stops them: each is an ``ftplan run`` of its own.

It outlives the page, and everything about it is in its folder, so that a page that is opened later finds it there.

::

    RUNS/.launches/ID.txt         what ``ftplan run`` said
    RUNS/.launches/ID.plan.json   the plan that it was given
    RUNS/.launches/…-NAME         data that was dropped into the page
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.files import write_atomic
from ftplan.launcher import engine, records
from ftplan.launcher.process import start_detached
from ftplan.launcher.records import RunDir
from ftplan.results import Plan, to_json
from ftplan.workflows import resuming

LAUNCHES: Final = ".launches"
SAID_CHARACTERS: Final = 20_000
"""The end of a log that is shown."""
OPTIONS: Final = ("epochs", "max_steps", "learning_rate", "save_steps")
"""Options of ``ftplan run`` that a page offers beside data."""


@dataclass(frozen=True)
class Launched:
    """A run that was started here: its folder, what it says, and the process, for as long as this one lives."""

    folder: Path
    output: Path
    process: Popen[bytes]

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()


def start_demo(runs: Path) -> Launched:
    """Start the demo in a new folder of ``runs``."""
    return _start(runs, records.new_run_id(), ["run", "--demo"])


def start(runs: Path, chosen: Plan, data: str, options: Mapping[str, Any], *, rehearse: bool = False) -> Launched:
    """Start ``chosen`` on ``data`` in a new folder of ``runs``, or rehearse it, which needs no data.

    Raises InputError for a plan without a configuration, and where there is no data.
    """
    if chosen.config is None:
        raise InputError("there is no plan to launch", hint="change the plan until something fits", field="plan")
    if not data and not rehearse:
        hint = "name a file or a hub id, drop a file, or rehearse"
        raise InputError("no data", hint=hint, field="data")
    run_id = records.new_run_id()
    plan_file = runs / LAUNCHES / f"{run_id}.plan.json"
    _written(plan_file, to_json(chosen))
    given = ["--rehearse"] if rehearse else [f"--data={data}"]
    return _start(runs, run_id, ["run", str(plan_file), *given, *_options(options)])


def resume(folder: Path, gpus: str = "") -> Launched:
    """Go on with a run that stopped, on the devices ``gpus`` where they are given; raises InputError if it cannot."""
    if not records.resumable(RunDir(folder)):
        hint = "it runs, is finished, or has no complete checkpoint"
        raise InputError(f"the run in {folder} cannot go on", hint=hint, field="run")
    if gpus:
        resuming.resumed_on(folder, gpus)  # says now what would be wrong with them
    arguments = ["run", "--resume", f"--run-dir={folder}", *([f"--gpus={gpus}"] if gpus else [])]
    return _launch(folder, folder.parent / LAUNCHES / f"{folder.name}.txt", arguments)


def stop(folder: Path) -> None:
    """Ask a run to save after its step and stop; to ask again changes nothing.

    Raises InputError if nobody runs it, and for what another engine runs, which hears signals alone.
    """
    run = RunDir(folder)
    state = records.read_state(run)
    if state is None or state.status != "running" or records.is_abandoned(run, state):
        raise InputError("this run is not running", hint="it can be resumed, if it saved anything", field="run")
    if engine.load_job(run).engine_env:
        raise InputError("LLaMA-Factory runs this", hint=f"stop it by Ctrl-C on {state.host}", field="run")
    try:
        run.stop_request.touch()
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}", hint="stop it by Ctrl-C", field="run"
        ) from error


def is_stopping(folder: Path) -> bool:
    """Whether a run was asked to stop, and has not begun anew since."""
    return RunDir(folder).stop_request.exists()


def kept_data(runs: Path, dropped: Path) -> Path:
    """A file that was dropped into a page, copied to where a resumed run finds it again."""
    safe = "".join(char if char.isalnum() or char in "._-" else "_" for char in dropped.name)[-80:]
    file = runs / LAUNCHES / f"{records.new_run_id()}-{safe}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dropped, file)
    except OSError as error:
        hint = "drop it again, or name its path"
        raise InputError(f"cannot keep {dropped.name}: {error.strerror}", hint=hint, field="data") from error
    return file


def said(file: Path) -> str:
    """The end of what a process wrote, as text; empty where it wrote nothing."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - SAID_CHARACTERS))
            text = log.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    # A progress bar writes over its own line.
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n"))


def _options(given: Mapping[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={given[name]}" for name in OPTIONS if given.get(name) not in (None, "", 0)]


def _start(runs: Path, run_id: str, arguments: list[str]) -> Launched:
    folder = runs / run_id
    return _launch(folder, runs / LAUNCHES / f"{run_id}.txt", [*arguments, f"--run-dir={folder}"])


def _launch(folder: Path, output: Path, arguments: list[str]) -> Launched:
    try:
        process = start_detached([sys.executable, "-P", "-m", "ftplan", *arguments], output)
    except OSError as error:
        raise InputError(
            f"cannot start in {folder.parent}: {error.strerror}", hint="--runs names another folder"
        ) from error
    return Launched(folder, output, process)


def _written(file: Path, content: str) -> None:
    try:
        write_atomic(file, content)
    except OSError as error:
        hint = "--runs names another folder"
        raise InputError(f"cannot write to {file.parent}: {error.strerror}", hint=hint, field="runs") from error
