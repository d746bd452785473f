"""How near predicted texts are to the references."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ftplan.errors import InputError


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Part of the predictions that are their reference, but for space around it."""
    pairs = zip(predictions, references, strict=True)
    return fmean(prediction.strip() == reference.strip() for prediction, reference in pairs)


def rouge(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, float, float]:
    """Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, as `rouge-score` counts them without stemming.

    Its words are Latin letters and digits: other scripts have none.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError("ROUGE needs the library rouge-score", hint="pip install 'ftplan[predict]'") from error
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(names))
    pairs = zip(references, predictions, strict=True)
    scores = [scorer.score(reference, prediction) for reference, prediction in pairs]
    first, second, longest = (fmean(score[name].fmeasure for score in scores) for name in names)
    return first, second, longest


def counts_words(text: str) -> bool:
    """Whether ROUGE finds a word in ``text``."""
    return any(letter.isascii() and letter.isalnum() for letter in text)
