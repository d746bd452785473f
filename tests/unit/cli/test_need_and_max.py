"""``ftplan need`` and ``ftplan max`` as they are typed and read."""

import pytest

from ftplan.render import console

NEED = ("need", "--model", "gpt2", "--seq-len", "256")
MAX = ("max", "--model", "gpt2", "--seq-len", "256", "--kernels", "none", "--gradient-checkpointing")


@pytest.fixture
def on(monkeypatch):
    """Set how many columns the page has."""

    def set_columns(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        console.out.cache_clear()

    return set_columns


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((*NEED, "--cards", "8GB,T4", "--method", "lora"), 0),
        ((*NEED, "--cards", "8GB", "--json"), 0),
        (("need", "--model", "Qwen2.5-7B", "--cards", "1GB", "--method", "lora", "--max-devices", "1"), 1),
        (("need", "--model", "Qwen2.5-7B", "--cards", "1GB", "--max-devices", "1", "--json"), 1),
        (("need",), 2),
        (("need", "--model", "nope"), 2),
        ((*NEED, "--cards", "RTX4900"), 2),
        ((*NEED, "--cards", "2x24GB"), 2),
        ((*NEED, "--cards", "24GB", "--micro-batch", "5"), 2),
        ((*NEED, "--max-devices", "0"), 2),
        ((*NEED, "--method", "dora"), 2),
        ((*NEED, "--cards", "8GB", "--sharding", "zero4"), 2),
        ((*MAX, "--gpus", "1x4GB", "--method", "lora"), 0),
        (("max", "--model", "Qwen2.5-7B", "--gpus", "1x1GB"), 1),
        (("max", "--model", "Qwen2.5-7B", "--gpus", "1x1GB", "--json"), 1),
        (("max", "--model", "gpt2"), 2),
        (("max", "--gpus", "1x4GB"), 2),
        ((*MAX, "--gpus", "1xRTX4900"), 2),
        ((*MAX, "--gpus", "2x4GB", "--global-batch", "7"), 2),
        ((*MAX, "--gpus", "1x4GB", "--rank", "0"), 2),
        ((*MAX, "--gpus", "1x4GB", "--optimizer", "adam"), 2),
    ],
)
def test_exit_codes(cli, arguments, code):
    answer = cli(*arguments)
    assert answer.code == code
    assert "Traceback" not in answer.err
    if code == 2:
        assert answer.out == ""
        assert answer.err.startswith("error: ")
        assert "hint: " in answer.err
    if code == 0:
        assert answer.err == ""


def test_needs_as_json_have_a_row_for_each_method_and_card(cli):
    document = cli(*NEED, "--cards", "T4,8GB", "--max-devices", "2", "--json").document
    assert {name: document[name] for name in ("model", "global_batch", "seq_len")} == {
        "model": "gpt2",
        "global_batch": 32,
        "seq_len": 256,
    }
    rows = document["needs"]
    assert [(row["method"], row["card"]) for row in rows] == [
        (method, card) for method in ("lora", "qlora", "full") for card in ("T4", "8GB")
    ]
    for row in rows:
        assert row["inventory"] == f"1x{row['card']}"
        assert row["devices"] == 1
        assert row["candidate"]["config"]["method"] == row["method"]
        assert row["nearest"] is None
        assert (
            (row["dollars_per_hour"] is None) == (row["card"] == "8GB") == (row["dollars_per_million_tokens"] is None)
        )


def test_needs_that_nothing_meets_as_json_name_the_nearest_miss(cli):
    answer = cli("need", "--model", "Qwen2.5-7B", "--cards", "1GB", "--method", "lora", "--max-devices", "1", "--json")
    (row,) = answer.document["needs"]
    assert (row["inventory"], row["devices"], row["candidate"]) == (None, 0, None)
    rejection = row["nearest"]["rejection"]
    assert rejection["needed_bytes"] > rejection["available_bytes"]


def test_needs_as_text(cli, on):
    on(110)
    lines = cli(*NEED, "--cards", "T4,8GB", "--method", "lora").out.splitlines()
    assert lines[0] == "gpt2, global batch 32, 256 tokens: the fewest cards that suffice"
    head, *rows = [line.split() for line in lines[2:] if not line.startswith(" ")]
    assert head[:2] == ["lora", "needs"]
    assert [row[0] for row in rows] == ["1xT4", "1x8GB"]
    assert "$/M" in head
    assert 0 < float(rows[0][5]) < 0.01


def test_cards_that_do_not_suffice_are_named_together(cli):
    text = cli("need", "--model", "Qwen2.5-7B", "--cards", "1GB,2GB", "--method", "full", "--max-devices", "1").out
    assert text.splitlines()[-1] == "full: no number of 1GB, 2GB that was tried suffices"


def test_limits_as_json(cli):
    document = cli(*MAX, "--gpus", "1x4GB", "--json").document
    assert set(document) == {"request", "limits", "refused"}
    assert document["refused"] == []
    assert [one["method"] for one in document["limits"]] == ["lora", "qlora", "full"]
    for one in document["limits"]:
        fields = [limit["field"] for limit in one["limits"]]
        assert fields == ["seq_len", "micro_batch", "lora_rank"][: 2 if one["method"] == "full" else 3]
        for limit in one["limits"]:
            assert limit["candidate"]["config"][limit["field"]] == limit["value"] > 0
    assert document["limits"][0]["limits"][0]["value"] == 1024


def test_limits_as_text(cli, on):
    on(110)
    lines = cli(*MAX, "--gpus", "1x4GB", "--method", "lora").out.splitlines()
    assert lines[0] == "gpt2 on 1x4GB, 256 tokens, global batch 32"
    assert lines[2] == "lora: 16-bit base weights"
    assert [line.split("  ")[0] for line in lines[3:-1] if not line.startswith(" ")] == [
        "longest sequence",
        "largest micro-batch",
        "highest rank",
    ]
    assert "1,024 tokens" in lines[3]


def test_methods_that_do_not_fit_are_named_beside_those_that_do(cli):
    small = ("--gpus", "1xRTX4090:9GB", "--offload", "none", "--seq-len", "128", "--rank", "16", "--micro-batch", "1")
    text = cli("max", "--model", "Qwen2.5-7B", *small).out
    assert "qlora: 4-bit base weights" in text
    assert "full: does not fit at any length" in text
    assert "because 16-bit LoRA does not fit" not in text


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 300])
@pytest.mark.parametrize(
    "arguments",
    [(*NEED, "--cards", "T4,RTX4090,8GB"), (*MAX, "--gpus", "1x4GB", "--method", "lora")],
    ids=lambda a: a[0],
)
def test_every_width_is_respected_and_nothing_cut_off(cli, on, arguments, columns):
    on(columns)
    text = cli(*arguments).out
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text
