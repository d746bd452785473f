"""Chat templates by name, for tokenizers without one of their own.

They are Jinja, as ``apply_chat_template`` takes it, and mark what the assistant says, its end of turn included, with
``{% generation %}``: the loss is on that part only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ftplan.errors import UnknownNameError

_FOLDER: Final = Path(__file__).parent / "chat_template_data"

FALLBACK: Final = "alpaca"
"""What conversations are written in for a tokenizer that has no template, where no other is asked for."""


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """A template, the special tokens it is written with, and the one that ends a turn.

    Without one (None) a turn of the assistant ends with the tokenizer's end of sequence.
    """

    name: str
    tokens: tuple[str, ...] = ()
    ends_turn: str | None = None

    @property
    def text(self) -> str:
        """The Jinja source."""
        return (_FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8").rstrip("\n")

    def text_for(self, vocabulary: Collection[str]) -> str:
        """The Jinja source for a tokenizer with that ``vocabulary``.

        Where it lacks the token that ends a turn, its end of sequence does: letters would not stop a model.
        """
        if self.ends_turn is None or self.ends_turn in vocabulary:
            return self.text
        return self.text.replace(f"end_of_turn = '{self.ends_turn}'", "end_of_turn = eos_token", 1)


TEMPLATES: Final[Mapping[str, NamedTemplate]] = {
    template.name: template
    for template in (
        NamedTemplate("alpaca"),
        NamedTemplate("chatml", tokens=("<|im_start|>", "<|im_end|>"), ends_turn="<|im_end|>"),
        NamedTemplate("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ends_turn="<|eot_id|>"),
        NamedTemplate("mistral"),
        NamedTemplate("plain"),
    )
}


def template(name: str) -> NamedTemplate:
    """The template of that name; raises UnknownNameError with the valid ones."""
    if name not in TEMPLATES:
        hint = f"valid: {', '.join(TEMPLATES)}; without one the tokenizer's own is used"
        raise UnknownNameError("chat template", name, TEMPLATES, field="chat_template", hint=hint)
    return TEMPLATES[name]
