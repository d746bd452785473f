from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftplan.errors import DataError
from ftplan.launcher import data
from ftplan.launcher.job import DataSource

ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PAIR = {"prompt": "one two", "completion": " three"}
TEXT = {"text": "Once upon a time."}
HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def source(path: Path, form: str = "auto") -> DataSource:
    return DataSource.model_validate({"paths": [str(path)], "form": form}, strict=False)


def lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "form", "shape", "first"),
    [
        (
            ALPACA,
            "alpaca",
            "messages",
            {
                "messages": [
                    {"role": "user", "content": "Add.\n\n1 and 2"},
                    {"role": "assistant", "content": "3"},
                ]
            },
        ),
        (SHAREGPT, "sharegpt", "messages", {"messages": HELLO}),
        (CHAT, "chat", "messages", {"messages": HELLO}),
        (PAIR, "prompt-completion", "prompt-completion", PAIR),
        (TEXT, "text", "text", TEXT),
    ],
)
@pytest.mark.parametrize("as_array", [True, False])
def test_each_form_is_told_and_brought_to_its_shape(
    tmp_path: Path, row: dict[str, object], form: str, shape: str, first: object, as_array: bool
) -> None:
    path = tmp_path / "data.any"
    path.write_text(json.dumps([row, row], indent=2) if as_array else f"{json.dumps(row)}\n\n{json.dumps(row)}\n")
    loaded = data.load(source(path))
    assert loaded.forms == {str(path): form}
    assert loaded.shape == shape
    assert loaded.rows == (first, first)


def test_optional_parts_of_a_row(tmp_path: Path) -> None:
    row = {
        "instruction": "And you?",
        "input": None,
        "output": "Fine.",
        "system": "Be brief.",
        "history": [["Hi", "Hello"]],
    }
    (loaded,) = data.load(source(lines(tmp_path / "a.json", row))).rows
    assert [message["role"] for message in loaded["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert loaded["messages"][-2]["content"] == "And you?"


def test_turns_of_a_conversation_may_be_written_like_a_chat(tmp_path: Path) -> None:
    row = {"conversations": CHAT["messages"]}
    assert data.load(source(lines(tmp_path / "a.json", row))).rows == ({"messages": HELLO},)


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([TEXT]).encode())
    assert data.load(source(path)).rows == (TEXT,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("  \n \n", "holds no rows"),
        ("[]", "holds no rows"),
        ("plain words", "line 1: 'p' does not start JSON"),
        ('{"text": "a"}\n{"text": \n', "line 2: malformed JSON, column"),
        ('[{"text": "a"},\n {"text": }]', "line 2: malformed JSON, column 11"),
        ('[{"text": "a"}\n {"text": "b"}]', "line 2: malformed JSON, column 2: expected ',' and a row, or ']'"),
        ('[{"text": "a"},]', "expected ',' and a row"),
        ('[{"text": "a"}', "the array is not closed"),
        ('[{"text": "a"}] x', "more text after the array"),
        ('{"text": "a"}\n3\n', "line 2: not a row in text form: an object is needed, not int"),
        ('{"text": "a"}\n{"txt": "b"}\n', "line 2: not a row in text form: 'text' is missing"),
        ('{"text": "a"}\n{"text": 5}\n', "line 2: not a row in text form: 'text' must be a string, not int"),
        ('{"text": "a"}\n{"text": "  "}\n', "line 2: not a row in text form: 'text' is empty"),
        ('{"question": "a", "answer": "b"}', "line 1: a row with question, answer is in none of the known forms"),
        ('{"messages": []}', "line 1: not a row in chat form: 'messages' must be a list with at least one turn"),
        ('{"messages": [{"role": "user"}]}', "turn 1: 'content' is missing"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "turn 1: unknown role 'robot'"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no turn of the assistant"),
        ('{"instruction": "a", "output": " "}', "what the assistant says is empty"),
        ('{"prompt": "a", "completion": ""}', "'completion' is empty"),
        ('{"instruction": "a", "output": "b", "history": [["x"]]}', "'history' must be a list"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        data.load(source(path))
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_the_line_of_a_row_in_an_array_is_where_it_starts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([TEXT, TEXT, {"text": None}], indent=1))
    with pytest.raises(DataError, match="line 8, row 3: not a row in text form: 'text' is missing"):
        data.load(source(path))


def test_a_row_in_another_form_is_told_as_such(tmp_path: Path) -> None:
    path = lines(tmp_path / "mixed.jsonl", ALPACA, ALPACA, CHAT)
    with pytest.raises(DataError, match=r"line 3: .*'instruction' is missing \(it looks like chat: one file holds one"):
        data.load(source(path))


def test_files_of_different_shapes_do_not_mix(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "a.jsonl", TEXT), lines(tmp_path / "b.jsonl", CHAT)
    with pytest.raises(DataError, match=r"mix forms: .*a.jsonl is text, .*b.jsonl is chat"):
        data.load(DataSource(paths=(str(one), str(two))))


def test_files_of_one_shape_go_together(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "a.jsonl", SHAREGPT), lines(tmp_path / "b.jsonl", CHAT)
    loaded = data.load(DataSource(paths=(str(one), str(two))))
    assert loaded.rows == ({"messages": HELLO}, {"messages": HELLO})
    assert loaded.characters == 2 * len("HiHello")


def test_a_form_that_is_stated_is_demanded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: not a row in alpaca form: 'instruction' is missing"):
        data.load(source(lines(tmp_path / "a.jsonl", TEXT), form="alpaca"))


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*missing.json: No such file"):
        data.load(source(tmp_path / "missing.json"))
    with pytest.raises(DataError, match="Is a directory"):
        data.load(source(tmp_path))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1\xff\xfe\x00")
    with pytest.raises(DataError, match=r"is not UTF-8 text"):
        data.load(source(path))
