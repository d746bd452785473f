"""``python -m ftplan.launcher.train.lengths JOB.json``: the `LengthReport` of a job's rows, as one JSON document.

It goes to stdout; a user's mistake goes there as ``{"error": …}``, with exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ftplan.errors import FtplanError
from ftplan.launcher import lengths
from ftplan.launcher.bad_rows import BadRows
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.chat import chat_format
from ftplan.launcher.train.reading import read
from ftplan.launcher.train.tokenizer import load_tokenizer
from ftplan.launcher.train.tokenizing import tokenized
from ftplan.results import to_json


def measured(job: TrainJob) -> lengths.LengthReport:
    """The lengths of the rows of ``job``, training and held-out ones together, beside its cutoff."""
    tokenizer = load_tokenizer(job.tokenizer)
    chat = chat_format(tokenizer, job.chat_template)
    data, bad, cutoff = read(job), BadRows(), job.config.seq_len
    rows = ((len(row.input_ids), row.learns(cutoff)) for row in tokenized(data, tokenizer, chat, bad))
    found = lengths.report(rows, cutoff)
    bad.refuse(len(data.rows), skip=job.data.skip_bad_rows, hint="--chat-template names another template")
    return found


def main(arguments: list[str]) -> int:
    """Write the report of the job in the file named by the only argument; returns the exit code."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    code = 0
    try:
        answer.write(to_json(measured(TrainJob.model_validate_json(Path(arguments[0]).read_bytes()))))
    except FtplanError as error:
        answer.write(json.dumps({"error": {"message": error.message, "hint": error.hint, "field": error.field}}))
        code = error.exit_code
    answer.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
