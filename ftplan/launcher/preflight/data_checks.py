"""Checks of training data by the lengths of its rows: what the cutoff takes away, and what is left to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ftplan.launcher.preflight.findings import DATA, Finding, Status

if TYPE_CHECKING:
    from ftplan.launcher.lengths import LengthReport

LENGTHS: Final = "lengths"
LOST_PART: Final = 0.05
"""Part of the tokens, or of the rows, beyond which a cut is worth a warning."""


def check_lengths(report: LengthReport) -> Iterator[Finding]:
    """Whether there is something to learn from, and how much of it the cutoff takes."""
    figures = {
        "rows": report.rows,
        "tokens": report.tokens,
        "mean_tokens": report.mean_tokens,
        "longest": report.longest,
    }
    left = report.rows - report.empty_rows
    if not left:
        message = f"no row has a token to learn from within {report.cutoff} tokens"
        fix = "raise the sequence length, or shorten the prompts"
        yield Finding(DATA, Status.ERROR, message, fix, figures)
    elif report.empty_rows:
        message = f"{report.empty_rows} of {report.rows} rows have no token to learn from after the cut"
        yield Finding(DATA, Status.WARNING, message, "raise the sequence length, or leave these rows out", figures)
    else:
        yield Finding(DATA, Status.OK, f"{report.rows} rows, {report.tokens:,} tokens", "", figures)
    yield _cut(report)


def _cut(report: LengthReport) -> Finding:
    cut = {"cutoff": report.cutoff, "truncated_rows": report.truncated_rows, "lost_tokens": report.lost_tokens}
    if not report.truncated_rows:
        message = f"no row is cut: the longest has {report.longest} of {report.cutoff} tokens"
        return Finding(LENGTHS, Status.OK, message, "", cut)
    rows, tokens = report.truncated_rows / report.rows, report.lost_tokens / report.tokens
    message = (
        f"{report.truncated_rows} of {report.rows} rows are cut at {report.cutoff} tokens, "
        f"with {tokens:.1%} of all tokens; the longest has {report.longest}"
    )
    grave = rows > LOST_PART or tokens > LOST_PART
    fix = f"plan with --seq-len {report.longest}, or with --max-seq for the longest that fits" if grave else ""
    return Finding(LENGTHS, Status.WARNING if grave else Status.OK, message, fix, cut)
