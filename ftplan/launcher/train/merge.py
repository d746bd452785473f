"""``python -m ftplan.launcher.train.merge JOB.json EVENTS.jsonl``: the merge of a `MergeJob`."""

from __future__ import annotations

from ftplan.launcher.merge_job import MergeJob, to_line
from ftplan.launcher.train import task


def work(job: bytes, write: task.Write) -> None:
    """Merge as ``job`` says."""
    # Imported here: the guard must be in place first, and a failing import must be told, too.
    from ftplan.launcher.train.merging import merge

    merge(MergeJob.model_validate_json(job), lambda event: write(to_line(event)))


if __name__ == "__main__":
    task.main(work, to_line)
