"""A check for code review: GitHub's annotations, and SARIF."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from ftplan import __version__
from ftplan.render.checks import change_line
from ftplan.render.console import plain, size
from ftplan.verdicts import Check, Fix, Problem, Severity, Verdict

GITHUB: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
SARIF: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}
SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def github_lines(check: Check) -> Iterator[str]:
    """Workflow commands, an annotation a problem, and the verdict as the last."""
    for problem in check.problems:
        place = _properties(problem, check)
        yield f"::{GITHUB[problem.severity]} {place}::{_escaped(text_of(problem))}"
    level = "notice" if check.is_sound else "error"
    title = _escaped_property(f"ftplan: {check.verdict}")
    file = f"file={_escaped_property(check.files[0])}," if check.files else ""
    message = _escaped("\n".join([verdict_text(check), *(_fix_text(each) for each in check.fixes)]))
    yield f"::{level} {file}title={title}::{message}"


def _properties(problem: Problem, check: Check) -> str:
    file = problem.place.file or (check.files[0] if check.files else "")
    named = [f"file={_escaped_property(file)}"] if file else []
    if problem.place.line:
        named.append(f"line={problem.place.line}")
    return ",".join([*named, f"title={_escaped_property(f'ftplan: {problem.kind}')}"])


def text_of(problem: Problem) -> str:
    """A problem in plain words."""
    needs = ""
    if problem.needed_bytes is not None and problem.available_bytes is not None:
        needs = f": needs {size(problem.needed_bytes)} of {size(problem.available_bytes)}"
    return plain(f"{problem.message}{needs}" + (f" (hint: {problem.hint})" if problem.hint else ""))


def verdict_text(check: Check) -> str:
    """The verdict in one sentence."""
    if check.estimate is None:
        return f"{check.verdict} on {check.inventory}"
    told = check.estimate
    return f"{check.verdict} on {check.inventory}: needs {size(told.needed_bytes)} of {size(told.capacity_bytes)}"


def _fix_text(fix: Fix) -> str:
    changes = "; ".join(change_line(change) for change in fix.changes)
    return plain(f"fix: {fix.what} ({fix.speed_ratio:.2f} times the speed)" + (f": {changes}" if changes else ""))


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def sarif(check: Check) -> str:
    """One SARIF 2.1.0 log with a result for each problem, and the verdict where it is not that it fits."""
    results = [_result(problem, check) for problem in check.problems]
    if check.verdict not in (Verdict.FITS, Verdict.TIGHT):
        results.append(_sarif_result("verdict", "error", verdict_text(check), check.files[0] if check.files else "", 0))
    rules = sorted({result["ruleId"] for result in results})
    driver = {
        "name": "ftplan",
        "version": __version__,
        "rules": [{"id": rule, "shortDescription": {"text": rule}} for rule in rules],
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(log, indent=2, ensure_ascii=False)


def _result(problem: Problem, check: Check) -> dict[str, Any]:
    file = problem.place.file or (check.files[0] if check.files else "")
    return _sarif_result(problem.kind, SARIF[problem.severity], text_of(problem), file, problem.place.line)


def _sarif_result(rule: str, level: str, text: str, file: str, line: int) -> dict[str, Any]:
    result: dict[str, Any] = {"ruleId": rule, "level": level, "message": {"text": text}}
    if file:
        physical: dict[str, Any] = {"artifactLocation": {"uri": quote(file.replace("\\", "/"))}}
        if line:
            physical["region"] = {"startLine": line}
        result["locations"] = [{"physicalLocation": physical}]
    return result
