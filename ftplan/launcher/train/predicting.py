"""Rows predicted before and after the training: scores of both, and the texts themselves."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ftplan.errors import InputError
from ftplan.files import write_atomic
from ftplan.launcher import data
from ftplan.launcher.events import Noted
from ftplan.launcher.predict_job import Metric, Predicted, PredictEvent, PredictJob, PredictProgressed, Scores, Side
from ftplan.launcher.train.chat import chat_format
from ftplan.launcher.train.predict_models import ask_each
from ftplan.launcher.train.predict_rows import Example, count_examples, examples
from ftplan.launcher.train.scoring import Examinee, generations, losses
from ftplan.launcher.train.text_metrics import counts_words, exact_match, rouge
from ftplan.launcher.train.tokenizer import load_tokenizer

PROGRESS_SECONDS: Final = 0.2
FEW_WORDS: Final = 0.5
"""Below this part of references with words that ROUGE counts, its scores say little."""

Tell = Callable[[PredictEvent], None]


@dataclass(frozen=True)
class Answers:
    """One model's summed loss of each example and its texts, None for what was not asked for; where it ran, and how."""

    losses: Sequence[float] | None
    texts: Sequence[str] | None
    device: str
    dtype: str


def predict(job: PredictJob, tell: Tell) -> None:
    """Write the job's file and tell the scores; raises InputError for what cannot be predicted."""
    tokenizer = load_tokenizer(job.tokenizer)
    given = data.load(job.data)
    chat = chat_format(tokenizer, _asked_template(job))
    if given.shape == "messages":
        chat.adopt(tokenizer)
    rows = examples(given, tokenizer, chat, limit=job.limit, max_length=job.max_length)
    wanted = _possible(job.metrics, given.shape, tell)
    _warn(rows, job, wanted, tell)

    def ask(side: Side, model: Any) -> Answers:
        return _answers(Examinee(model, tokenizer, job.batch_size), rows, wanted, job, side, tell)

    answers = ask_each(job, ask)
    scores = {side: _scores(rows, answered, wanted) for side, answered in answers.items()}
    write_atomic(Path(job.out), "".join(_line(index, row, answers) for index, row in enumerate(rows)))
    after = answers["after"]
    tell(Predicted(len(rows), count_examples(given), scores.get("before"), scores["after"], after.device, after.dtype))


def _asked_template(job: PredictJob) -> str | None:
    """The template that a run was told to use, where its tokenizer is not the one it saved, which has it."""
    run = job.training
    return run.chat_template if run is not None and run.tokenizer == job.tokenizer else None


def _possible(metrics: Sequence[Metric], shape: str, tell: Tell) -> frozenset[Metric]:
    """The metrics that have a meaning on data of ``shape``."""
    if shape != "text":
        return frozenset(metrics)
    if "loss" not in metrics:
        raise InputError(
            "rows of plain text have no prompt to go on from: only their loss can be told", hint="--metrics loss"
        )
    if set(metrics) != {"loss"}:
        tell(Noted("rows of plain text have no prompt to go on from: only their loss is told"))
    return frozenset({"loss"})


def _warn(rows: Sequence[Example], job: PredictJob, wanted: frozenset[Metric], tell: Tell) -> None:
    unscored = sum(row.scored_tokens == 0 for row in rows)
    if "loss" in wanted and unscored == len(rows):
        raise InputError(
            f"no completion begins within {job.max_length} tokens", hint="a larger --seq-len", field="seq_len"
        )
    if unscored:
        tell(Noted(f"{unscored} rows have no completion within {job.max_length} tokens: they do not count in the loss"))
    worded = sum(counts_words(row.reference) for row in rows) / len(rows)
    if "rouge" in wanted and worded < FEW_WORDS:
        tell(Noted("ROUGE counts words of Latin letters and digits only, and most references have none"))


def _answers(
    examinee: Examinee, rows: Sequence[Example], wanted: frozenset[Metric], job: PredictJob, side: Side, tell: Tell
) -> Answers:
    def progress(what: Literal["loss", "predictions"]) -> Callable[[int], None]:
        last = [0.0]

        def told(done: int) -> None:
            if time.monotonic() - last[0] >= PROGRESS_SECONDS or done == len(rows):
                last[0] = time.monotonic()
                tell(PredictProgressed(side, what, done, len(rows)))

        return told

    return Answers(
        losses(examinee, rows, progress("loss")) if "loss" in wanted else None,
        generations(examinee, rows, job.max_new_tokens, progress("predictions")) if wanted - {"loss"} else None,
        examinee.device.type,
        str(examinee.model.dtype).removeprefix("torch."),
    )


def _scores(rows: Sequence[Example], answers: Answers, wanted: frozenset[Metric]) -> Scores:
    references = [row.reference for row in rows]
    loss = perplexity = exact = None
    rouges: tuple[float | None, float | None, float | None] = (None, None, None)
    tokens = sum(row.scored_tokens for row in rows)
    if answers.losses is not None:
        loss = math.fsum(answers.losses) / tokens
        perplexity = math.exp(loss) if loss < math.log(1e300) else None
    if answers.texts is not None and "exact_match" in wanted:
        exact = exact_match(answers.texts, references)
    if answers.texts is not None and "rouge" in wanted:
        rouges = rouge(answers.texts, references)
    return Scores(loss, perplexity, tokens, exact, *rouges)


def _line(index: int, row: Example, answers: dict[Side, Answers]) -> str:
    document: dict[str, Any] = {"prompt": row.prompt, "reference": row.reference}
    for side, answered in answers.items():
        if answered.texts is not None:
            document[side] = answered.texts[index]
        if answered.losses is not None and row.scored_tokens:
            document[f"loss_{side}"] = answered.losses[index] / row.scored_tokens
    return json.dumps(document, ensure_ascii=False) + "\n"
