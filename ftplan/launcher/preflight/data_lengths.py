"""Measures the rows of a job in tokens, in a process that may import the tokenizer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from ftplan.errors import DataError
from ftplan.launcher import lengths
from ftplan.launcher.job import TrainJob
from ftplan.launcher.process import Child

LIMIT_SECONDS: Final = 600.0


def measured(job: TrainJob) -> lengths.LengthReport:
    """Lengths of the rows of ``job``; raises DataError where they cannot be read or tokenized."""
    with tempfile.TemporaryDirectory(prefix="ftplan-doctor-") as folder:
        file, log = Path(folder, "job.json"), Path(folder, "log.txt")
        file.write_text(job.absolute().model_dump_json(), encoding="utf-8")
        with Child(lengths.argv(str(file)), {}, log) as child:
            outcome = child.wait(LIMIT_SECONDS)
        told = log.read_text("utf-8", errors="replace").splitlines()
    documents = [line for line in told if line.startswith("{")]
    if documents:
        return lengths.parse(documents[-1])
    why = f"it took longer than {LIMIT_SECONDS:.0f} s" if outcome is None else (told or ["it said nothing"])[-1]
    raise DataError("the lengths of the rows could not be measured", hint=why, field="data")
