"""LLaMA-Factory's dataset_info.json: entries, and their rows as LLaMA-Factory reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftplan.errors import DataError, InputError, UnknownNameError
from ftplan.launcher import data
from ftplan.launcher.data_sources import data_source
from ftplan.launcher.job import DataSource

CHAT_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
CHAT = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": CHAT_TAGS}
ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello"}
TOLD = {"role": "system", "content": "Be brief."}


def folder_with(folder: Path, rows: list[Any], **entry: Any) -> Path:
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "rows.json"} | entry}))
    return folder


def source(folder: Path, *names: str, **settings: Any) -> DataSource:
    return data_source((str(folder),), names or ("mine",), **settings)


def messages(folder: Path, row: Any, **entry: Any) -> list[tuple[str, str]]:
    (loaded,) = data.load(source(folder_with(folder, [row], **entry))).rows
    return [(message["role"], message["content"]) for message in loaded["messages"]]


def test_by_default_it_is_alpaca_without_system_and_history(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "no", "history": [["a", "b"]]}
    assert messages(tmp_path, row) == [("user", "Add.\n1 and 2"), ("assistant", "3")]


def test_columns_have_the_names_that_the_description_gives(tmp_path: Path) -> None:
    columns = {"prompt": "q", "query": "more", "response": "a", "system": "sys", "history": "before"}
    row = {"q": "Why?", "more": "", "a": "So.", "sys": "Be brief.", "before": [["Hi", "Hello"]]}
    roles = ["system", "user", "assistant", "user", "assistant"]
    texts = ["Be brief.", "Hi", "Hello", "Why?", "So."]
    assert messages(tmp_path, row, columns=columns) == list(zip(roles, texts, strict=True))


def test_columns_left_out_are_absent_and_not_the_defaults(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    columns = {"prompt": "instruction", "response": "output"}
    assert messages(tmp_path, row, columns=columns) == [("user", "Add."), ("assistant", "3")]


def test_a_column_without_a_response_is_text(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [{"content": "Once."}], columns={"prompt": "content"})
    loaded = data.load(source(folder))
    assert (loaded.shape, loaded.rows) == ("text", ({"text": "Once."},))


def test_sharegpt_with_its_defaults_and_with_tags(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    said = [("system", "S"), ("user", "Hi"), ("assistant", "Hello")]
    assert messages(tmp_path, {"conversations": turns}, formatting="sharegpt") == said
    assert messages(tmp_path, {"messages": [ASKED, SAID]}, **CHAT) == said[1:]
    openai = CHAT | {"formatting": "openai", "tags": CHAT_TAGS | {"system_tag": "system"}}
    assert messages(tmp_path, {"messages": [TOLD, ASKED, SAID]}, **openai)[0] == ("system", "Be brief.")


def test_the_system_turn_goes_before_the_system_column(tmp_path: Path) -> None:
    entry = CHAT | {"columns": {"messages": "messages", "system": "sys"}, "tags": CHAT_TAGS | {"system_tag": "system"}}
    row = {"messages": [ASKED, SAID], "sys": "column"}
    assert messages(tmp_path, row, **entry)[0] == ("system", "column")
    assert messages(tmp_path, row | {"messages": [TOLD, ASKED, SAID]}, **entry)[0] == ("system", "Be brief.")


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([TOLD, ASKED, SAID], "turn 1: 'system' is no role of the description (user, assistant)"),
        ([ASKED, {"role": "function_call", "content": "{}"}], "calls of tools included"),
        ([SAID, ASKED], "turns must alternate: turn 1"),
        ([ASKED, SAID, ASKED], "the last turn is not the assistant's"),
        ([ASKED, {"role": "assistant"}], "turn 2: 'content' is missing"),
        ([], "'messages' must be a list with at least one turn"),
    ],
)
def test_rows_that_llamafactory_would_drop_are_bad_rows(tmp_path: Path, turns: list[Any], why: str) -> None:
    folder = folder_with(tmp_path, [{"messages": [ASKED, SAID]}, {"messages": turns}], **CHAT)
    with pytest.raises(DataError) as caught:
        data.load(source(folder))
    assert why in caught.value.message
    assert len(data.load(source(folder, skip_bad_rows=True)).rows) == 1


def test_a_question_that_asks_nothing_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is asked: 'instruction' and 'input' are empty or missing"):
        data.load(source(folder_with(tmp_path, [{"instruction": "", "output": "3"}])))


def test_a_described_row_is_not_told_to_look_like_another_form(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.load(source(folder_with(tmp_path, [{"instruction": "2 + 1", "output": ""}])))
    assert "what the assistant says is empty" in caught.value.message
    assert "looks like" not in caught.value.message


def test_a_number_of_rows_is_drawn_by_the_seed_and_repeats_where_there_are_fewer(tmp_path: Path) -> None:
    rows = [{"instruction": str(number), "output": "x"} for number in range(20)]

    def drawn(count: int, seed: int) -> list[str]:
        loaded = data.load(source(folder_with(tmp_path, rows, num_samples=count)), seed=seed)
        return [row["messages"][0]["content"] for row in loaded.rows]

    assert drawn(5, 1) == drawn(5, 1) != drawn(5, 2)
    assert len(set(drawn(5, 1))) == 5
    more = drawn(30, 1)
    assert sorted(set(more)) == sorted(str(number) for number in range(20))
    assert len(more) == 30


def test_none_are_drawn_where_no_row_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 1 rows"):
        data.load(source(folder_with(tmp_path, [{"instruction": 3}], num_samples=2)))


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("b", "a"):
        (tmp_path / "parts" / f"{name}.jsonl").write_text(json.dumps({"instruction": name, "output": "x"}))
    loaded = data.load(source(folder_with(tmp_path, [], file_name="parts")))
    assert [row["messages"][0]["content"] for row in loaded.rows] == ["a", "b"]


def test_several_sets_follow_one_another(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [{"instruction": "Hi", "output": "x"}])
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(
        json.dumps({"one": info["mine"], "two": info["mine"] | {"num_samples": 2}})
    )
    assert len(data.load(source(folder, "one", "two")).rows) == 3
    assert len(data.load(source(folder / "dataset_info.json", "two")).rows) == 2


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"ranking": True}, "it is ranked"),
        ({"columns": {"prompt": "p", "response": "r", "images": "images"}}, "a column for images: only text"),
        ({"columns": {"prompt": "p", "response": "r", "kto_tag": "tag"}}, "a column for kto_tag: it holds preferences"),
        ({"columns": {"messages": "m", "tools": "t"}, "formatting": "sharegpt"}, "calls of tools are not trained on"),
        ({"columns": {"promt": "p"}}, "unknown columns: promt"),
        ({"columns": {"response": "r"}}, "its columns name no prompt or query"),
        ({"columns": {"prompt": "p"}, "formatting": "sharegpt"}, "its columns name no messages"),
        ({"columns": []}, "columns is no object"),
        ({"formatting": "sharegpt", "tags": {"user_tag": "user"}}, "its tags name no role_tag"),
        ({"formatting": "parquet"}, "unknown formatting 'parquet'"),
        ({"colums": {}}, "unknown key 'colums'"),
        ({"split": "test"}, "split 'test': local files"),
        ({"num_samples": 0}, "num_samples: Input should be greater than 0"),
        ({"num_samples": "5"}, "num_samples: Input should be a valid integer"),
        ({"file_name": "missing.json"}, "missing.json does not exist"),
        ({"file_name": "."}, "is not read"),
        ({"file_name": 3}, "neither hf_hub_url nor file_name"),
        ({"ms_hub_url": "a/b"}, "ModelScope"),
        ({"script_url": "a"}, "runs no code that comes with data"),
        ({"cloud_file_name": "s3://a"}, "cloud storage"),
    ],
)
def test_entries_that_cannot_be_used(tmp_path: Path, entry: dict[str, Any], why: str) -> None:
    (tmp_path / "table.csv").touch()
    with pytest.raises(DataError) as caught:
        source(folder_with(tmp_path, [], **entry))
    assert "'mine'" in caught.value.message
    assert why in caught.value.message
    assert caught.value.hint


def test_a_key_that_nobody_knows_is_ignored(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "b"}
    assert messages(tmp_path, row, license="MIT") == [("user", "a"), ("assistant", "b")]


def test_a_name_that_is_not_described(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [])
    with pytest.raises(UnknownNameError, match="unknown data set 'yours'") as caught:
        source(folder, "yours")
    assert caught.value.hint == f"{folder / 'dataset_info.json'} describes: mine"
    with pytest.raises(UnknownNameError) as caught:
        source(folder, "min")
    assert caught.value.hint == "did you mean mine?"


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_file_that_describes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset_info\.json (is not JSON|holds no object)"):
        source(tmp_path)


def test_which_sets_has_to_be_said(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [])
    with pytest.raises(DataError, match="which of them") as caught:
        data_source((str(folder),))
    assert "mine" in caught.value.hint
    with pytest.raises(DataError, match=r"--dataset needs one dataset_info\.json"):
        data_source((str(folder / "rows.json"),), ("mine",))
    with pytest.raises(InputError, match="says the form of its sets itself"):
        source(folder, form="alpaca")
