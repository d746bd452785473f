"""What a prediction is asked and scored on: the tokens that training makes, and the loss where training has it."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftplan.errors import DataError
from ftplan.launcher import demo
from ftplan.launcher.bad_rows import BadRows, Place
from ftplan.launcher.data import TrainingData
from ftplan.launcher.train.chat import chat_format
from ftplan.launcher.train.predict_rows import Example, count_examples, examples
from ftplan.launcher.train.tokenizing import NO_LOSS, tokenized

TURNS = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."), ("assistant", "Goodbye.")]
UNMARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PAIRS: dict[str, dict[str, str]] = {
    "seam": {"prompt": "The cat lic", "completion": "ked its paw."},
    "ended": {"prompt": "Hi. ", "completion": "Bye.<|end|>"},
    "empty prompt": {"prompt": "", "completion": "Bye."},
    "empty": {"prompt": "", "completion": ""},
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo.model_path())


def data_of(shape: Any, *rows: Any) -> TrainingData:
    return TrainingData(shape, rows, tuple(Place("a.json", line) for line in range(1, len(rows) + 1)), {})


def conversation(*turns: tuple[str, str]) -> TrainingData:
    return data_of("messages", {"messages": [{"role": role, "content": text} for role, text in turns]})


def both(
    data: TrainingData, tokenizer: PreTrainedTokenizerBase, asked: str | None = None
) -> tuple[list[Example], list[tuple[tuple[int, ...], tuple[bool, ...]]]]:
    """The examples, and what training makes of the same rows: tokens, and which of them the loss is on."""
    chat = chat_format(tokenizer, asked)
    if data.shape == "messages":
        chat.adopt(tokenizer)
    trained = [
        (tuple(row.input_ids), tuple(index > 0 and label != NO_LOSS for index, label in enumerate(row.labels)))
        for row in tokenized(data, tokenizer, chat, BadRows())
    ]
    return examples(data, tokenizer, chat, limit=10, max_length=512), trained


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_is_scored_as_it_is_trained(pair: str, tokenizer: PreTrainedTokenizerBase) -> None:
    (example,), trained = both(data_of("prompt-completion", PAIRS[pair]), tokenizer)
    assert [(example.tokens, example.scored)] == trained
    assert example.tokens.count(tokenizer.eos_token_id) == 1
    assert (example.prompt, example.reference) == (PAIRS[pair]["prompt"], PAIRS[pair]["completion"])


def test_the_seam_of_the_pair_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Or the test above would show nothing."""
    (example,), _ = both(data_of("prompt-completion", PAIRS["seam"]), tokenizer)
    assert example.tokens[: len(example.prompt_tokens)] != example.prompt_tokens


def test_a_text_is_scored_as_it_is_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,), trained = both(data_of("text", {"text": "Once."}), tokenizer)
    assert [(example.tokens, example.scored)] == trained
    assert example.scored_tokens == len(example.tokens) - 1


@pytest.mark.parametrize("name", [None, "alpaca", "chatml", "mistral", "plain"])
def test_the_turns_of_a_conversation_share_what_is_trained(
    name: str | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    (first, second), ((tokens, learnt),) = both(conversation(*TURNS), tokenizer, name)
    assert second.tokens == tokens
    assert first.tokens == tokens[: len(first.tokens)]
    padded = first.scored + (False,) * (len(tokens) - len(first.tokens))
    assert tuple(a != b for a, b in zip(padded, second.scored, strict=True)) == learnt
    assert first.scored_tokens + second.scored_tokens == sum(learnt)
    assert tokenizer.decode(second.prompt_tokens).startswith(tokenizer.decode(first.prompt_tokens))
    assert (first.reference, second.reference) == ("Hello.", "Goodbye.")


def test_without_marks_each_turn_is_a_row_of_training(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = UNMARKED
    asked, trained = both(conversation(*TURNS), tokenizer)
    assert [(example.tokens, example.scored) for example in asked] == trained
    assert asked[0].prompt == "<|system|>Be brief.<|end|><|user|>Hi.<|end|><|assistant|>"


@pytest.mark.parametrize("marked", [True, False])
def test_the_assistant_may_speak_first(marked: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    if not marked:
        tokenizer.chat_template = UNMARKED
    (example,), trained = both(conversation(("assistant", "Hello.")), tokenizer)
    assert [(example.tokens, example.scored)] == trained
    assert example.prompt == "<|assistant|>"


def test_a_thought_that_only_the_prompt_has_is_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    thinking = "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% if add_generation_prompt %}<|assistant|>{% endif %}", thinking
    )
    first, _ = both(conversation(*TURNS), tokenizer)[0]
    assert first.prompt == "<|system|>Be brief.<|end|><|user|>Hi.<|end|><|assistant|>"


@pytest.mark.parametrize("marked", [True, False])
def test_what_the_template_refuses_is_told_with_its_place(marked: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    template = tokenizer.chat_template if marked else UNMARKED
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + template
    with pytest.raises(DataError, match=r"a\.json, line 1: the chat template refuses it: no system"):
        both(conversation(*TURNS), tokenizer)


def test_an_empty_prompt_is_the_token_that_a_text_begins_with(tokenizer: PreTrainedTokenizerBase) -> None:
    data = data_of("prompt-completion", PAIRS["empty prompt"])
    assert both(data, tokenizer)[0][0].prompt_tokens == (tokenizer.eos_token_id,)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert both(data, tokenizer)[0][0].prompt_tokens == (tokenizer.bos_token_id,)


def test_only_so_many_examples_and_tokens_are_taken(tokenizer: PreTrainedTokenizerBase) -> None:
    data, chat = conversation(*TURNS), chat_format(tokenizer, None)
    (example,) = examples(data, tokenizer, chat, limit=1, max_length=4)
    assert (len(example.tokens), len(example.scored), len(example.prompt_tokens)) == (4, 4, 4)
    assert example.scored_tokens == 0
    assert count_examples(data) == 2
