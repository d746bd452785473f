"""Trains the demo's tokenizer on its packaged instructions: ``python scripts/build_demo.py``.

The result is committed; run this again only when the instructions or the vocabulary size change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ftplan.launcher import demo

SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

# The generation marks tell TRL which tokens the assistant says; the end of its turn is among them.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def texts() -> Iterator[str]:
    """Every string of the packaged instructions."""
    for line in demo.instructions_path().read_text(encoding="utf-8").splitlines():
        yield from json.loads(line).values()


def build() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of the demo model's vocabulary size."""
    config = json.loads((demo.model_path() / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config["vocab_size"],
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        chat_template=CHAT_TEMPLATE,
        model_max_length=config["max_position_embeddings"],
    )


if __name__ == "__main__":
    build().save_pretrained(demo.model_path())
