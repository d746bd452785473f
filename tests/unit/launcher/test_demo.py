from __future__ import annotations

import json

from ftplan.launcher import data, demo


def test_the_instructions_are_many_varied_and_valid() -> None:
    loaded = data.load(demo.data())
    assert len(loaded.rows) >= 150
    assert loaded.shape == "messages"
    rows = [json.loads(line) for line in demo.instructions_path().read_text(encoding="utf-8").splitlines()]
    assert len({(row["instruction"], row["input"]) for row in rows}) == len(rows)
    assert len({row["instruction"] for row in rows}) >= 15


def test_the_model_and_its_tokenizer_fit_each_other() -> None:
    config = json.loads((demo.model_path() / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((demo.model_path() / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(tokenizer["model"]["vocab"]) == config["vocab_size"]
    assert tokenizer["model"]["vocab"]["<|end|>"] == config["eos_token_id"]
    assert config["max_position_embeddings"] >= demo.SEQ_LEN
    assert "{% generation %}" in (demo.model_path() / "chat_template.jinja").read_text(encoding="utf-8")
