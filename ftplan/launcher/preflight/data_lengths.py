"""Measures the rows of a job in tokens, in a process that may import the tokenizer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from ftplan.errors import DataError
from ftplan.launcher import diagnosis, lengths
from ftplan.launcher.job import TrainJob
from ftplan.launcher.process import Child

LIMIT_SECONDS: Final = 600.0


def measured(job: TrainJob) -> lengths.LengthReport:
    """Lengths of the rows of ``job``; raises DataError where they cannot be read or tokenized."""
    with tempfile.TemporaryDirectory(prefix="ftplan-doctor-") as folder:
        file, log, answer = (Path(folder, name) for name in ("job.json", "log.txt", "answer.json"))
        file.write_text(job.absolute().model_dump_json(), encoding="utf-8")
        with Child(lengths.argv(str(file)), {}, log, answer) as child:
            outcome = child.wait(LIMIT_SECONDS)
        try:
            return lengths.parse(answer.read_bytes())
        except ValueError as error:
            late = f"it took longer than {LIMIT_SECONDS:.0f} s" if outcome is None else ""
            why = late or diagnosis.last_line(log) or "its process said nothing"
            raise DataError("the lengths of the rows could not be measured", hint=why, field="data") from error
