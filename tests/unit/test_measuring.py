"""The measuring program's own logic; ``tests/integration/test_measuring_runs.py`` runs it."""

import json
import subprocess
import sys

import pytest

from benchmarks.measured_cases import DATA
from benchmarks.measuring import case as measuring
from benchmarks.measuring.case import Case, model_config_fields, read_cases

RECORDED = [
    json.loads(line)["case"]
    for name in ("spread.jsonl", "limits.jsonl", "unseen.jsonl")
    for line in (DATA / name).read_text().splitlines()
]


def test_every_recorded_case_comes_back_as_it_was():
    for recorded in RECORDED:
        without_unset = {name: value for name, value in recorded.items() if value or name not in measuring.FEATURES}
        assert Case.from_json(json.dumps(recorded)).as_row() == without_unset


def test_a_case_travels_as_a_line():
    case = Case("one", "tiny", packing=True, cap_gib=2.5, override={"num_hidden_layers": 3})
    assert Case.from_json(case.as_line()) == case


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="a case has no seq_len; it has id, model"):
        Case.from_json('{"id": "x", "model": "tiny", "seq_len": 3}')


def test_blank_lines_and_comments_are_passed_by(tmp_path):
    file = tmp_path / "cases.jsonl"
    file.write_text('# two\n{"id": "a", "model": "tiny"}\n\n{"id": "b", "model": "tiny", "tries": 1}\n')
    assert [(case.id, case.tries) for case in read_cases(file)] == [("a", 4), ("b", 1)]


def test_a_config_can_be_changed():
    fields = model_config_fields(Case("one", "tiny", override={"num_hidden_layers": 3}))
    assert (fields["model_type"], fields["num_hidden_layers"], fields["hidden_size"]) == ("llama", 3, 64)


def test_every_recorded_model_is_there():
    assert {case["model"] for case in RECORDED} <= set(json.loads(measuring.MODELS.read_text()))


def test_nothing_of_ftplan_is_imported():
    program = (
        "import sys; from benchmarks.measuring import caps, ranks, __main__;"
        "print([name for name in sys.modules if name.split('.')[0] in ('ftplan', 'pydantic', 'typer')])"
    )
    pytest.importorskip("transformers")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def caps(monkeypatch, tmp_path):
    """Bisect with a card on which the case survives from ``limit`` GiB on; returns what was told."""
    pytest.importorskip("transformers")
    from benchmarks.measuring import caps

    def bisect(limit, **fields):
        def fresh(case, out):
            return {"ok": case.cap_gib >= limit, "id": case.id}

        monkeypatch.setattr(caps, "alone", fresh)
        uncapped = {"peak_alloc": 8 * caps.GIB, "peak_reserved": 12 * caps.GIB}
        return caps.bisected(Case("one", "tiny", **fields), uncapped, tmp_path)

    return bisect


def test_caps_close_in_on_the_limit(caps):
    assert caps(9.2) == "10.000+ 9.000- 9.500+ 9.250+"
    assert caps(9.2, tries=2) == "10.000+ 9.000-"


def test_caps_end_where_the_limit_is_near_enough(caps):
    last, before = caps(8.0, tries=99).split()[-1:-3:-1]
    assert float(before.rstrip("+")) - float(last.rstrip("+")) < 0.004 * 2 * 8
