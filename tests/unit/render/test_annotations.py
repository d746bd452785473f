import json

import pytest

from ftplan.render.annotations import github_lines, sarif, text_of
from ftplan.verdicts import Change, Check, Fix, Place, Problem, Severity, Verdict


def check(*problems, verdict=Verdict.FITS, files=("train.yaml",), fixes=()):
    return Check("llamafactory", "0.9", files, "1x24GB", 1, 8, None, None, verdict, (), problems, fixes)


def problem(message="too large", **fields):
    return Problem(**{"kind": "memory", "severity": Severity.ERROR, "message": message, **fields})


AWKWARD = problem("50% of a: b,\nc\r", place=Place("a,b:c%.yaml", 7), hint="none")


def test_each_problem_is_a_line_and_the_verdict_the_last():
    lines = list(github_lines(check(problem(), problem(severity=Severity.WARNING), problem(severity=Severity.NOTE))))
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::notice", "::error"]
    assert lines[-1].startswith("::error file=train.yaml,title=ftplan%3A fits::fits on 1x24GB")


def test_what_is_sound_is_a_notice():
    (line,) = github_lines(check())
    assert line.startswith("::notice ")


def test_percent_newlines_colons_and_commas_are_escaped_as_github_reads_them():
    line = next(github_lines(check(AWKWARD)))
    assert line == ("::error file=a%2Cb%3Ac%25.yaml,line=7,title=ftplan%3A memory::50%25 of a: b,%0Ac\\r (hint: none)")
    assert "\n" not in line


def test_a_problem_without_a_place_is_told_at_the_first_file():
    assert next(github_lines(check(problem()))).startswith("::error file=train.yaml,title=")


def test_a_command_line_has_no_file():
    lines = list(github_lines(check(problem(), files=())))
    assert lines[0] == "::error title=ftplan%3A memory::too large"
    assert lines[1].startswith("::error title=")


def test_text_tells_what_is_needed_and_the_way_out():
    told = text_of(problem(needed_bytes=2 * 2**30, available_bytes=2**30, hint="smaller"))
    assert told == "too large: needs 2.00 GiB of 1.00 GiB (hint: smaller)"


def log_of(*problems, **fields):
    return json.loads(sarif(check(*problems, **fields)))


def test_sarif_has_the_documented_shape():
    log = log_of(AWKWARD, problem(severity=Severity.NOTE, kind="inefficiency"), verdict=Verdict.OOM)
    assert log["$schema"].endswith("sarif-2.1.0.json")
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "ftplan"
    assert driver["version"]
    rules = {rule["id"] for rule in driver["rules"]}
    assert rules == {"memory", "inefficiency", "verdict"}
    assert all(rule["shortDescription"]["text"] for rule in driver["rules"])
    assert [result["level"] for result in run["results"]] == ["error", "note", "error"]
    for result in run["results"]:
        assert set(result) == {"ruleId", "level", "message", "locations"}
        assert result["ruleId"] in rules
        assert result["message"]["text"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]


def test_sarif_names_the_line():
    place = log_of(AWKWARD)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "a%2Cb%3Ac%25.yaml"}, "region": {"startLine": 7}}


@pytest.mark.parametrize("verdict", [Verdict.FITS, Verdict.TIGHT])
def test_what_fits_is_no_result(verdict):
    assert log_of(verdict=verdict)["runs"][0]["results"] == []


def test_without_files_there_is_no_location():
    assert "locations" not in log_of(problem(), files=())["runs"][0]["results"][0]


def test_fixes_are_told_with_the_verdict_in_one_line():
    changes = (Change("train.yaml", "cutoff_len", 2048, 1024), Change("train.yaml", "packing", None, True))
    fix = Fix("shorter", {"seq_len": 1024}, changes, None, None, 1.5, False)
    line = list(github_lines(check(fixes=(fix,))))[-1]
    assert line.endswith(
        "%0Afix: shorter (1.50 times the speed): train.yaml: cutoff_len: 2048 -> 1024; train.yaml: + packing: true"
    )
