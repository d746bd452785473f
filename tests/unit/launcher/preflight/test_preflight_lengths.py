import json

import pytest

from ftplan.errors import DataError
from ftplan.launcher import lengths
from ftplan.launcher.lengths import LengthReport
from ftplan.launcher.preflight import data_lengths
from ftplan.launcher.preflight.data_checks import check_lengths
from ftplan.launcher.preflight.findings import Status
from ftplan.results import to_json
from ftplan.workflows import running


def report(**changes):
    fields = {
        "rows": 100, "tokens": 30_000, "mean_tokens": 300.0, "longest": 900, "cutoff": 1024, "truncated_rows": 0,
        "lost_tokens": 0, "empty_rows": 0, "buckets": ((32, 10), (1024, 90)),
    }  # fmt: skip
    return LengthReport(**(fields | changes))


def found(**changes):
    return [(finding.check, finding.status) for finding in check_lengths(report(**changes))]


def test_rows_that_fit():
    assert found() == [("data", Status.OK), ("lengths", Status.OK)]


def test_a_few_rows_that_are_cut_are_no_matter():
    assert found(truncated_rows=5, lost_tokens=1_500)[1] == ("lengths", Status.OK)


def test_many_rows_or_tokens_that_are_cut_are_a_warning():
    assert found(truncated_rows=6, lost_tokens=10)[1] == ("lengths", Status.WARNING)
    assert found(truncated_rows=1, lost_tokens=1_501)[1] == ("lengths", Status.WARNING)
    _, cut = check_lengths(report(truncated_rows=60, lost_tokens=15_000, longest=4000))
    assert cut.message == "60 of 100 rows are cut at 1024 tokens, with 50.0% of all tokens; the longest has 4000"
    assert "--seq-len 4000" in cut.fix


def test_rows_without_anything_to_learn_from():
    assert found(empty_rows=1)[0] == ("data", Status.WARNING)
    assert found(empty_rows=100)[0] == ("data", Status.ERROR)


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Put a program that prints a text in the place of the one that tokenizes."""

    def tell(answer, log=""):
        (tmp_path / "teller.py").write_text(f"import sys; print({log!r}, file=sys.stderr); print({answer!r})")
        monkeypatch.setattr(lengths, "MODULE", "teller")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        plan = running.demo_plan()
        return data_lengths.measured(running.ready(plan, running.demo_settings(running.RunSettings())).job)

    return tell


def test_a_process_of_its_own_tells_the_lengths(told):
    assert told(to_json(report()), "a warning of a library") == report()


def test_data_it_cannot_use_are_an_error(told):
    with pytest.raises(DataError, match="line 2: no") as caught:
        told(json.dumps({"error": {"message": "line 2: no", "hint": "mend it", "field": "data"}}))
    assert caught.value.hint == "mend it"


def test_a_process_that_dies_tells_its_last_words(told):
    with pytest.raises(DataError) as caught:
        told("", "MemoryError\n")
    assert caught.value.hint == "MemoryError"
