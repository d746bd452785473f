"""What the loss is on, looked at in the labels: for every form of data, template and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftplan.errors import DataError, UnknownNameError
from ftplan.launcher import chat_templates, demo
from ftplan.launcher.bad_rows import BadRows, Place
from ftplan.launcher.data import TrainingData
from ftplan.launcher.data_forms import FORMS
from ftplan.launcher.train.chat import ChatFormat, chat_format
from ftplan.launcher.train.tokenizing import NO_LOSS, Tokenized, tokenized

TURNS = [("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."), ("assistant", "Goodbye.")]
SYSTEM = ("system", "Be brief.")
UNMARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def messages(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def rows_of(form: str, *rows: object) -> TrainingData:
    return of_shape(FORMS[form].shape, *[FORMS[form].normalise(row) for row in rows])


def of_shape(shape: Any, *rows: Any) -> TrainingData:
    return TrainingData(shape, rows, tuple(Place("a.json", line) for line in range(1, len(rows) + 1)), {})


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo.model_path())


@pytest.fixture
def bare(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.chat_template = None
    return tokenizer


def run(
    data: TrainingData, tokenizer: PreTrainedTokenizerBase, asked: str | None = None
) -> tuple[list[tuple[str, str]], BadRows]:
    """Each row as text, and the text that the loss is on."""
    chat, bad = chat_format(tokenizer, asked), BadRows()
    if data.shape == "messages":
        chat.adopt(tokenizer)
    return [shown(row, tokenizer) for row in tokenized(data, tokenizer, chat, bad)], bad


def shown(row: Tokenized, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    assert len(row.labels) == len(row.input_ids)
    assert all(label in (token, NO_LOSS) for token, label in zip(*row, strict=True))
    learnt = [token for token, label in zip(*row, strict=True) if label != NO_LOSS]
    return tokenizer.decode(row.input_ids), tokenizer.decode(learnt)


CONVERSATIONS = {
    "alpaca": {"instruction": "Bye.", "output": "Goodbye.", "history": [["Hi.", "Hello."]], "system": "Be brief."},
    "sharegpt": {"conversations": [{"from": role, "value": text} for role, text in (SYSTEM, *TURNS)]},
    "chat": messages(SYSTEM, *TURNS),
}


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_of_a_conversation_every_turn_of_the_assistant_is_learnt(form: str, tokenizer: PreTrainedTokenizerBase) -> None:
    (row,), bad = run(rows_of(form, CONVERSATIONS[form]), tokenizer)
    assert row == (
        "<|system|>Be brief.<|end|><|user|>Hi.<|end|><|assistant|>Hello.<|end|>"
        "<|user|>Bye.<|end|><|assistant|>Goodbye.<|end|>",
        "Hello.<|end|>Goodbye.<|end|>",
    )
    assert bad.count == 0


def test_a_template_without_marks_makes_a_row_of_each_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = UNMARKED
    rows, _ = run(of_shape("messages", messages(*TURNS)), tokenizer)
    first = "<|user|>Hi.<|end|><|assistant|>Hello.<|end|>"
    assert rows == [
        (first, "Hello.<|end|>"),
        (f"{first}<|user|>Bye.<|end|><|assistant|>Goodbye.<|end|>", "Goodbye.<|end|>"),
    ]
    assert "each of its turns becomes a row of its own" in chat_format(tokenizer, None).note


def test_the_assistant_may_speak_first(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = UNMARKED
    rows, _ = run(of_shape("messages", messages(("assistant", "Hello."))), tokenizer)
    assert rows == [("<|assistant|>Hello.<|end|>", "<|assistant|>Hello.<|end|>")]


def test_of_a_pair_the_completion_is_learnt_and_of_a_text_everything(tokenizer: PreTrainedTokenizerBase) -> None:
    pair = {"prompt": "Correct: she go. ", "completion": "She goes."}
    ended = {"prompt": "Hi. ", "completion": "Bye.<|end|>"}
    rows, _ = run(rows_of("prompt-completion", pair, ended), tokenizer)
    assert rows == [("Correct: she go. She goes.<|end|>", "She goes.<|end|>"), ("Hi. Bye.<|end|>", "Bye.<|end|>")]
    assert run(rows_of("text", {"text": "Once."}), tokenizer)[0] == [("Once.<|end|>", "Once.<|end|>")]


WRITTEN = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi.\n\n### Response:\nHello.<|end|>\n\n"
    "### Instruction:\nBye.\n\n### Response:\nGoodbye.<|end|>\n\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    "Hello.<|im_end|>\n<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\nGoodbye.<|im_end|>\n",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "Hello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nGoodbye.<|eot_id|>",
    "mistral": "[INST] Be brief.\n\nHi. [/INST] Hello.<|end|>[INST] Bye. [/INST] Goodbye.<|end|>",
    "plain": "Be brief.\nHi.\nHello.<|end|>\nBye.\nGoodbye.<|end|>\n",
}


@pytest.mark.parametrize("name", chat_templates.TEMPLATES)
def test_named_templates_mark_what_the_assistant_says(name: str, bare: PreTrainedTokenizerBase) -> None:
    named = chat_templates.TEMPLATES[name]
    bare.add_special_tokens({"additional_special_tokens": list(named.tokens)})
    ((text, learnt),), _ = run(of_shape("messages", messages(SYSTEM, *TURNS)), bare, name)
    assert text == WRITTEN[name]
    end = named.ends_turn or "<|end|>"
    assert learnt.replace(" ", "") == f"Hello.{end}Goodbye.{end}"
    # What a prompt for generation ends with is what the assistant's part follows in training.
    prompt = bare.apply_chat_template(
        messages(SYSTEM, *TURNS[:3])["messages"], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith(prompt)
    assert prompt.endswith(("### Response:\n", "assistant\n", "assistant<|end_header_id|>\n\n", "[/INST]", "Bye.\n"))
    assert bare.eos_token == end


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_where_its_tokens_lack_a_template_ends_turns_as_the_tokenizer_does(
    name: str, bare: PreTrainedTokenizerBase
) -> None:
    ((text, learnt),), _ = run(of_shape("messages", messages(*TURNS)), bare, name)
    assert learnt == "Hello.<|end|>Goodbye.<|end|>"
    assert text.count("<|end|>") == 4
    assert "the tokenizer has no token" in chat_format(bare, name).note
    assert bare.eos_token == "<|end|>"


def test_the_bos_token_comes_once(bare: PreTrainedTokenizerBase) -> None:
    bare.add_special_tokens({"bos_token": "<s>"})
    for name in ("alpaca", "llama3", "mistral", "plain"):
        ((text, _),), _ = run(of_shape("messages", messages(*TURNS)), bare, name)
        assert (text.startswith("<s>"), text.count("<s>")) == (True, 1)


def test_the_template_is_saved_with_the_tokenizer(tmp_path: Path, bare: PreTrainedTokenizerBase) -> None:
    run(of_shape("messages", messages(*TURNS)), bare)
    bare.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == chat_templates.template("alpaca").text


def test_which_template_is_used_is_said(tokenizer: PreTrainedTokenizerBase) -> None:
    assert chat_format(tokenizer, None) == ChatFormat(None, tokenizer.chat_template, marks_assistant=True, note="")
    assert "takes the place of the tokenizer's own" in chat_format(tokenizer, "plain").note
    tokenizer.chat_template = {"default": UNMARKED, "tool_use": "x"}
    assert chat_format(tokenizer, None).text == UNMARKED
    tokenizer.chat_template = None
    assert "has no chat template: conversations are written by 'alpaca'" in chat_format(tokenizer, None).note
    assert chat_format(tokenizer, "plain").note == "conversations are written by the chat template 'plain', as told"
    with pytest.raises(UnknownNameError, match="unknown chat template 'vicuna'") as caught:
        chat_format(tokenizer, "vicuna")
    assert "alpaca, chatml, llama3, mistral, plain" in caught.value.hint


def test_a_template_that_leaves_the_end_of_a_turn_unlearnt_is_told(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>"
    )
    assert "without the '<|end|>' after it" in chat_format(tokenizer, None).note


@pytest.mark.parametrize("marked", [True, False])
def test_what_the_template_refuses_is_a_bad_row(marked: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    template = tokenizer.chat_template if marked else UNMARKED
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + template
    good, worse = messages(*TURNS[:2]), messages(SYSTEM, *TURNS[:2])
    rows, bad = run(of_shape("messages", good, worse, good), tokenizer)
    assert [learnt for _, learnt in rows] == ["Hello.<|end|>"] * 2
    assert (bad.count, bad.shown) == (1, ["a.json, line 2: the chat template refuses it: no system"])


def test_a_row_of_which_nothing_is_marked_is_a_bad_row(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("'assistant' %}<", "'robot' %}<")
    rows, bad = run(of_shape("messages", messages(*TURNS)), tokenizer)
    assert (rows, bad.count) == ([], 1)


@pytest.mark.parametrize("shape", ["text", "messages"])
def test_a_tokenizer_without_an_end_of_sequence(shape: str, bare: PreTrainedTokenizerBase) -> None:
    bare.eos_token = None
    row = {"text": "Once."} if shape == "text" else messages(*TURNS)
    with pytest.raises(DataError, match="no end-of-sequence token"):
        run(of_shape(shape, row), bare)


def test_a_template_with_an_end_of_its_own_needs_no_end_of_sequence(bare: PreTrainedTokenizerBase) -> None:
    bare.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    bare.eos_token = None
    chat = chat_format(bare, "chatml")
    (row,) = tokenized(of_shape("messages", messages(*TURNS)), bare, chat, BadRows())
    assert shown(row, bare)[1].replace(" ", "") == "Hello.<|im_end|>Goodbye.<|im_end|>"
    # What is saved with the result stops there, too.
    chat.adopt(bare)
    assert bare.eos_token == "<|im_end|>"


def test_what_is_left_to_learn_from_after_a_cut() -> None:
    row = Tokenized([1, 2, 3], [NO_LOSS, NO_LOSS, 3])
    assert [row.learns(cutoff) for cutoff in (1, 2, 3, 4)] == [False, False, True, True]
