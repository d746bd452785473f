"""What a preflight found, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from rich.text import Text

from ftplan.launcher.preflight.findings import Finding, Status
from ftplan.render.console import err, out, size, words
from ftplan.render.tables import Cell, Column, print_table

if TYPE_CHECKING:
    from ftplan.launcher.lengths import LengthReport
    from ftplan.workflows.examining import Examination

FINDINGS: Final = (Column("", "name"), Column("", "value", said="{}"), Column("", "text"))
HISTOGRAM: Final = (Column("tokens"), Column("rows", said="{} rows"), Column("", "bar"), Column("", "value", said="{}"))
MARKS: Final = {
    Status.OK: ("ok", "green"),
    Status.UNKNOWN: ("unknown", "yellow"),
    Status.WARNING: ("warning", "bold yellow"),
    Status.ERROR: ("ERROR", "bold red"),
}


def print_examination(examination: Examination, *, brief: bool = False) -> None:
    """The answer of ``ftplan doctor``; ``brief``: the verdict, and on stderr what is to be mended."""
    console = out()
    console.print(_verdict(examination.findings))
    if brief:
        print_notes(examination.findings, forced=False)
        return
    console.print()
    rows = [(Text(*MARKS[each.status]), each.check, _what(each)) for each in _worst_first(examination.findings)]
    print_table(FINDINGS, rows, has_head=False)
    if examination.lengths is not None:
        console.print()
        _print_histogram(examination.lengths)


def _worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """What is to be mended before what is well."""
    order = list(reversed(MARKS))
    return sorted(findings, key=lambda finding: order.index(finding.status))


def print_notes(findings: Sequence[Finding], *, forced: bool) -> None:
    """A line on stderr for each warning and error before a run; ``forced``: it starts in spite of the errors."""
    for finding in findings:
        if finding.status in (Status.WARNING, Status.ERROR):
            name, style = ("warning", "bold yellow") if forced else (str(finding.status), MARKS[finding.status][1])
            fix = f" ({finding.fix})" if finding.fix else ""
            line = words((f"{name}: ", style), f"{finding.check}: {finding.message}{_figures(finding.figures)}{fix}")
            err().print(line, soft_wrap=True)


def _what(finding: Finding) -> Text:
    told = words(f"{finding.message}{_figures(finding.figures)}")
    if finding.fix:
        told += words("\n", ("fix: ", "cyan"), finding.fix)
    return told


def _figures(figures: Mapping[str, float]) -> str:
    """Bytes among ``figures`` as people read them, the needed beside what there is."""
    parts = []
    if "checkpoint_bytes" in figures:
        parts.append(
            f"{figures['checkpoints']:.0f} x {size(figures['checkpoint_bytes'])} + {size(figures['final_bytes'])}"
        )
    there = next((name for name in ("free_bytes", "available_bytes", "limit_bytes") if name in figures), None)
    if there is None:
        return f": {'; '.join(parts)}" if parts else ""
    noun = {"free_bytes": "free", "available_bytes": "available", "limit_bytes": "at most"}[there]
    if "needed_bytes" in figures:
        parts.append(f"needs {size(figures['needed_bytes'])} of {size(figures[there])} {noun}")
    else:
        parts.append(f"{size(figures[there])} {noun}")
    return f": {'; '.join(parts)}"


def _print_histogram(lengths: LengthReport) -> None:
    rows: list[tuple[Cell, ...]] = []
    most = max((rows for _, rows in lengths.buckets), default=1) or 1
    below = -1
    for longest, count in lengths.buckets:
        cut = "cutoff" if below < lengths.cutoff <= longest else ""
        rows.append((f"{below + 1} to {longest}", str(count), count / most, cut))
        below = longest
    print_table(HISTOGRAM, rows)


def _verdict(findings: Sequence[Finding]) -> Text:
    counts = {status: sum(finding.status is status for finding in findings) for status in Status}
    if counts[Status.ERROR]:
        return words((f"{counts[Status.ERROR]} error(s)", "bold red"), f", {counts[Status.WARNING]} warning(s)")
    if counts[Status.WARNING]:
        return words((f"no errors, {counts[Status.WARNING]} warning(s)", "bold yellow"))
    return words(("no errors", "bold green"))
