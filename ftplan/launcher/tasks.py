"""One worker process beside the training, such as one that merges or predicts: started, followed, ended."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from ftplan.errors import InputError, RunFailedError
from ftplan.launcher import artifacts, diagnosis, monitor
from ftplan.launcher.events import Failed
from ftplan.launcher.job import DeviceKind
from ftplan.launcher.process import Child
from ftplan.spec import Spec

POLL_SECONDS: Final = 0.1

_T = TypeVar("_T")


def run_task(
    module: str,
    job: Spec,
    *,
    device: DeviceKind,
    threads: int,
    offline: bool,
    parse: Callable[[bytes], _T],
    on_event: Callable[[_T], None],
) -> None:
    """Run ``module`` on the file of ``job`` and hand on each event that it tells.

    The worker gets the paths of two files: the job, and where to append its lines. Raises InputError or RunFailedError
    if it tells a failure or ends badly. Leaving by an exception, Ctrl-C too, ends the process first.
    """
    with tempfile.TemporaryDirectory(prefix="ftplan-task-") as folder:
        file, told, log = Path(folder, "job.json"), Path(folder, "events.jsonl"), Path(folder, "log.txt")
        file.write_text(job.model_dump_json(), encoding="utf-8")
        argv = [*artifacts.command(module, str(file), ranks=None), str(told)]
        environment = {
            **artifacts.worker_environment(threads),
            **(artifacts.OFFLINE if offline else {}),
            **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}),
        }
        reader = monitor.LineReader(told)
        failures: list[Failed] = []

        def take() -> None:
            for line in filter(None, reader.read()):
                event: Any = parse(line)
                if isinstance(event, Failed):
                    failures.append(event)
                else:
                    on_event(event)

        with Child(argv, environment, log) as child:
            while (outcome := child.wait(POLL_SECONDS)) is None:
                take()
            take()
        if failures:
            raise _failure(failures[0])
        if not outcome.ok:
            found = diagnosis.diagnose([], outcome, diagnosis.tail(log), ended="the worker")
            raise RunFailedError(found.message, hint=found.hint)


def _failure(failed: Failed) -> InputError | RunFailedError:
    kind = InputError if failed.kind == "input" else RunFailedError
    return kind(failed.message, hint=failed.hint)
