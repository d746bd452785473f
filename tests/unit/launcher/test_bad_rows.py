"""Every row that cannot be used is found, counted, and skipped only if told so."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftplan.errors import DataError
from ftplan.launcher import data
from ftplan.launcher.bad_rows import SHOWN, BadRows, Place
from ftplan.launcher.job import DataSource

GOOD = '{"text": "fine"}'
BAD = {
    '{"txt": "x"}': "not a row in text form: 'text' is missing",
    '{"text": 5}': "not a row in text form: 'text' must be a string, not int",
    '{"text": " "}': "not a row in text form: 'text' is empty",
    '{"text": "half": }': "malformed JSON, column",
    "oops": "malformed JSON, column 1",
    "[1]": "not a row in text form: an object is needed, not list",
    '{"text": "\\ud83d"}': "holds '\\ud83d', which is no character",
    "[" * 100_000: "JSON that cannot be read",
    '{"text": %s}' % ("9" * 5000): "JSON that cannot be read",
}


def source(*paths: Path, **settings: Any) -> DataSource:
    return DataSource(paths=tuple(str(path) for path in paths), **settings)


def lines(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("row", "why"), BAD.items(), ids=[text[:20] for text in BAD])
def test_why_a_row_is_bad(tmp_path: Path, row: str, why: str) -> None:
    path = lines(tmp_path / "a.jsonl", GOOD, row, GOOD)
    with pytest.raises(DataError) as caught:
        data.load(source(path))
    assert caught.value.message.startswith(f"{path}, line 2: ")
    assert why in caught.value.message
    assert "--skip-bad-rows" in caught.value.hint
    loaded = data.load(source(path, skip_bad_rows=True))
    assert [place.line for place in loaded.places] == [1, 3]
    assert loaded.note.startswith("skipped, as told: ")


def test_a_line_that_is_no_text_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8 text, byte 11 of the line"):
        data.load(source(path))


def test_all_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    one = lines(tmp_path / "a.jsonl", GOOD, *["oops"] * SHOWN)
    two = lines(tmp_path / "b.jsonl", "{}", GOOD)
    with pytest.raises(DataError) as caught:
        data.load(source(one, two))
    first, *shown, last = caught.value.message.splitlines()
    assert first == f"{SHOWN + 1} of {SHOWN + 3} rows cannot be used:"
    assert [line.split(":")[0].strip() for line in shown] == [f"{one}, line {n}" for n in range(2, SHOWN + 2)]
    assert last.strip() == "… and 1 more"


@pytest.mark.parametrize("form", ["auto", "text"])
def test_not_all_rows_are_skipped(tmp_path: Path, form: str) -> None:
    path = lines(tmp_path / "a.jsonl", "{}", "{}")
    with pytest.raises(DataError) as caught:
        data.load(source(path, form=form, skip_bad_rows=True))
    assert "--skip-bad-rows" not in caught.value.hint
    assert str(path) in caught.value.message


def test_the_form_is_that_of_the_first_row_that_has_one(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", "oops", "{}", GOOD)
    loaded = data.load(source(path, skip_bad_rows=True))
    assert loaded.forms == {str(path): "text"}
    assert "2 of 3 rows cannot be used" in loaded.note


def test_an_array_that_is_malformed_cannot_be_skipped_over(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n {"text": },\n {"text": "b"}]')
    with pytest.raises(DataError, match="line 2: malformed JSON"):
        data.load(source(path, skip_bad_rows=True))


def test_a_single_bad_row_of_one_row(tmp_path: Path) -> None:
    bad = BadRows()
    bad.add(Place("a.jsonl", 1), "why")
    assert bad.told(1) == "1 of 1 rows cannot be used:\n  a.jsonl, line 1: why"
    assert bad.told(2) == "a.jsonl, line 1: why"


# What a file begins with decides what it is: "[" makes it an array, "{" lines.
ROWS = st.sampled_from([GOOD, *(row for row in BAD if row[0] != "[" and len(row) < 100)])


@settings(max_examples=40)
@given(st.lists(ROWS, min_size=1, max_size=20).filter(lambda rows: rows[0].startswith("{")))
def test_good_and_bad_rows_are_all_of_them(rows: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = lines(Path(folder) / "a.jsonl", *rows)
        good = [number for number, row in enumerate(rows, start=1) if row == GOOD]
        if len(good) == len(rows):
            assert data.check(source(path)) == ""
            return
        with pytest.raises(DataError) as caught:
            data.load(source(path, form="text"))
        shown = min(SHOWN, len(rows) - len(good))
        assert caught.value.message.count(f"{path}, line ") == shown
        if good:
            loaded = data.load(source(path, skip_bad_rows=True))
            assert [place.line for place in loaded.places] == good
            assert loaded.note == f"skipped, as told: {caught.value.message}"


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4)


@settings(max_examples=30)
@given(TURNS, st.booleans())
def test_every_form_of_a_conversation_becomes_the_same_messages(turns: list[tuple[str, str]], as_array: bool) -> None:
    *history, (asked, answered) = turns
    said = [(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    names = {"user": "human", "assistant": "gpt"}
    forms: dict[str, dict[str, Any]] = {
        "alpaca": {"instruction": asked, "output": answered, "history": [list(pair) for pair in history]},
        "sharegpt": {"conversations": [{"from": names[role], "value": text} for role, text in said]},
        "chat": {"messages": [{"role": role, "content": text} for role, text in said]},
    }
    expected = ({"messages": [{"role": role, "content": text} for role, text in said]},)
    with tempfile.TemporaryDirectory() as folder:
        for name, row in forms.items():
            path = Path(folder) / name
            path.write_text(json.dumps([row] if as_array else row))
            loaded = data.load(source(path))
            assert loaded.forms == {str(path): name}
            assert loaded.rows == expected
