"""``python -m ftplan.launcher.train.predict JOB.json EVENTS.jsonl``: the predictions of a `PredictJob`."""

from __future__ import annotations

from ftplan.launcher.predict_job import PredictJob, to_line
from ftplan.launcher.train import task


def work(job: bytes, write: task.Write) -> None:
    """Predict as ``job`` says."""
    # Imported here: the guard must be in place first, and a failing import must be told, too.
    from ftplan.launcher.train.predicting import predict

    predict(PredictJob.model_validate_json(job), lambda event: write(to_line(event)))


if __name__ == "__main__":
    task.main(work, to_line)
