"""A check as text: the verdict, memory by phase, what is wrong, and what would mend it."""

from __future__ import annotations

import json

from rich.text import Text

from ftplan.render.console import out, size, words
from ftplan.render.estimates import host_line, speed, summary
from ftplan.render.tables import Column, print_parts, print_table
from ftplan.verdicts import Change, Check, Fix, PhaseVerdict, Problem, Severity, Verdict

PHASES = (
    Column("phase", "name"),
    Column("needs", said="{}"),
    Column("of what is offered", "bar"),
    Column("", "value", said="{}"),
)
VERDICTS = {
    Verdict.FITS: ("fits", "bold green"),
    Verdict.TIGHT: ("tight", "bold yellow"),
    Verdict.OOM: ("out of memory", "bold red"),
    Verdict.UNKNOWN: ("unknown", "bold yellow"),
}
SEVERITIES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}
WHY_UNKNOWN = "something that is not modelled could change it"


def print_check(check: Check, *, brief: bool = False) -> None:
    """The answer of ``ftplan check``: verdict, problems and fixes first, then memory; or only the verdict."""
    console = out()
    if brief:
        _print_brief(check)
        return
    console.print(words((", ".join(check.files) or "command line", "bold"), f" · {check.framework} {check.version}"))
    console.print(_verdict(check))
    if check.estimate is not None:
        print_parts(speed(check.estimate, fits=check.verdict is not Verdict.OOM))
    _print_config(check)
    if check.problems:
        console.print()
        for problem in check.problems:
            console.print(_problem(problem))
            if problem.hint:
                console.print(words(("  hint: ", "cyan"), problem.hint))
    for advice in check.advice:
        console.print(words((f"{advice.topic.replace('_', ' ')}: ", "bold"), advice.text))
    if check.fixes:
        console.print()
        for number, fix in enumerate(check.fixes, start=1):
            _print_fix(number, fix)
    _print_memory(check)


def _print_brief(check: Check) -> None:
    """The verdict, and what is refused although it fits."""
    out().print(_verdict(check), soft_wrap=True)
    refused = next((problem for problem in check.problems if problem.severity is Severity.ERROR), None)
    if refused is not None and check.verdict in (Verdict.FITS, Verdict.TIGHT):
        out().print(_problem(refused), soft_wrap=True)


def _print_config(check: Check) -> None:
    """What was read, as fields."""
    if check.config is None:
        return
    config = check.config
    processes = f"{check.ranks} process{'es' if check.ranks > 1 else ''}"
    batch = f"global batch {check.global_batch}, {config.seq_len} tokens"
    out().print(words(f"{config.model} on {check.inventory}, {processes}, {batch}"))
    out().print(words(f"{summary(config)}, {config.optimizer}, {config.stack}"))


def _print_memory(check: Check) -> None:
    if check.phases or check.estimate is not None:
        out().print()
    if check.phases:
        _print_phases(check.phases, check.estimate.capacity_bytes if check.estimate is not None else 0)
    if check.estimate is not None:
        out().print(words(host_line(check.estimate)))


def _verdict(check: Check) -> Text:
    name, style = VERDICTS[check.verdict]
    return words((name, style), f": {need(check)}") if check.estimate is not None else words((name, style))


def need(check: Check) -> str:
    """What a check that has an estimate needs of what there is, and why that may not be all."""
    told = check.estimate
    assert told is not None
    highest = max(told.needed_bytes, *(phase.bytes for phase in check.phases))
    text = f"needs {size(highest)} of {size(told.capacity_bytes)} on the worst rank"
    if not told.host.fits:
        text = f"a host needs {size(told.host.needed_bytes)} of {size(told.host.capacity_bytes)} of RAM"
    return f"{text}; {WHY_UNKNOWN}" if check.verdict is Verdict.UNKNOWN else text


def _print_phases(phases: tuple[PhaseVerdict, ...], capacity_bytes: int) -> None:
    rows = []
    for each in phases:
        part = each.bytes / each.available_bytes if each.available_bytes else 1.0
        fits = ("", "") if each.fits else ("does not fit", "bold red")
        if not each.fits and each.bytes <= capacity_bytes:
            fits = ("leaves less than the margin", "bold yellow")
        rows.append((each.phase, size(each.bytes), part, Text(*fits)))
    print_table(PHASES, rows)


def _problem(problem: Problem) -> Text:
    needs = ""
    if problem.needed_bytes is not None and problem.available_bytes is not None:
        needs = f": needs {size(problem.needed_bytes)} of {size(problem.available_bytes)}"
    where = f" ({problem.place})" if str(problem.place) else ""
    kind = (f"{problem.severity}: ", SEVERITIES[problem.severity])
    return words(kind, f"[{problem.kind}] {problem.message}{needs}{where}".replace("\n", "?"))


def _print_fix(number: int, fix: Fix) -> None:
    console = out()
    speed = (
        f"{fix.speed_ratio:.2f} times the speed" if fix.speed_ratio < 0.995 or fix.speed_ratio > 1.005 else "as fast"
    )
    kept = "" if fix.keeps_result else ", changes what is trained"
    needs = f"needs {size(fix.estimate.needed_bytes)} of {size(fix.estimate.capacity_bytes)}"
    host = fix.estimate.host
    ram = "" if host.fits else f", and {size(host.needed_bytes)} of host RAM on a node"
    console.print(words((f"fix {number}: ", "bold green"), f"{fix.what}: {needs}{ram}, {speed}{kept}"))
    for change in fix.changes:
        console.print(words(f"  {change_line(change)}"), soft_wrap=True)
    for name in fix.new_files:
        console.print(words(f"  new file {name}"))
    if not fix.changes:
        told = ", ".join(f"{name} {value}" for name, value in fix.fields.items())
        console.print(words(f"  no key of these files says it; as fields: {told}"))


def change_line(change: Change) -> str:
    """An edit in one line: what goes, what comes."""
    if change.old is None:
        return f"{change.file}: + {change.key}: {_value(change.new)}"
    if change.new is None:
        return f"{change.file}: - {change.key}: {_value(change.old)}"
    return f"{change.file}: {change.key}: {_value(change.old)} -> {_value(change.new)}"


def _value(value: object) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
