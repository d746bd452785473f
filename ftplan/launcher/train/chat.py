"""How conversations are written for a tokenizer: by its own chat template, or by one that ftplan has a name for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import jinja2
from transformers import PreTrainedTokenizerBase

from ftplan.launcher import chat_templates
from ftplan.launcher.chat_templates import NamedTemplate

_MARKERS: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatFormat:
    """The template of a tokenizer's conversations.

    ``named`` is the one that takes the place of the tokenizer's own. ``text`` is the Jinja that rows are written with;
    it differs from the tokenizer's where only a variant of that marks what the assistant says. ``marks_assistant``:
    whether the loss can go by such marks.
    """

    named: NamedTemplate | None
    text: str
    marks_assistant: bool
    note: str

    @property
    def needs_eos(self) -> bool:
        """Whether the named template ends turns with the tokenizer's end of sequence."""
        return self.named is not None and "eos_token" in self.text

    def adopt(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give ``tokenizer`` the named template, to be saved with it, and what ends a turn as its end of sequence."""
        if self.named is None:
            return
        tokenizer.chat_template = self.text
        if self.named.ends_turn is not None and self.named.ends_turn in tokenizer.get_vocab():
            tokenizer.eos_token = self.named.ends_turn


def chat_format(tokenizer: PreTrainedTokenizerBase, asked: str | None) -> ChatFormat:
    """The format for ``tokenizer``: the template ``asked`` for by name, its own, or `chat_templates.FALLBACK`.

    Raises UnknownNameError for a name that is none.
    """
    own = _own_template(tokenizer)
    if asked is None and own is not None:
        return _own_format(tokenizer, own)
    named = chat_templates.template(asked or chat_templates.FALLBACK)
    text = named.text_for(tokenizer.get_vocab())
    # Marks are found by the characters of a token, which only the fast tokenizers tell.
    return ChatFormat(named, text, bool(tokenizer.is_fast), _note(tokenizer, named, asked=asked, own=own))


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template; of several by name, the default."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template or None


def _own_format(tokenizer: PreTrainedTokenizerBase, own: str) -> ChatFormat:
    marked = (own if _MARKERS.search(own) else _training_variant(tokenizer)) if tokenizer.is_fast else None
    if marked is not None:
        return ChatFormat(None, marked, marks_assistant=True, note=_unlearnt_end(tokenizer, marked))
    note = "the chat template does not mark the assistant's part: each of its turns becomes a row of its own"
    return ChatFormat(None, own, marks_assistant=False, note=note)


def _training_variant(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """TRL's variant with marks of a well-known template, None if it knows none."""
    from trl.chat_template_utils import get_training_chat_template  # seconds to import, and seldom needed

    try:
        variant: str | None = get_training_chat_template(tokenizer)
    except ValueError:
        return None
    return variant if variant is not None and _MARKERS.search(variant) else None


def _unlearnt_end(tokenizer: PreTrainedTokenizerBase, marked: str) -> str:
    """A note if what follows the assistant's turn stands outside of its marks."""
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        written = tokenizer.apply_chat_template(
            probe, chat_template=marked, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except jinja2.TemplateError:
        return ""  # the rows will tell
    ids, mask = written["input_ids"], written["assistant_masks"]
    end = tokenizer.decode(ids[len(mask) - mask[::-1].index(1) :]).strip() if 1 in mask else ""
    if not end:
        return ""
    return (
        f"the chat template marks what the assistant says without the {end!r} after it: a model may not learn to stop"
    )


def _note(tokenizer: PreTrainedTokenizerBase, named: NamedTemplate, *, asked: str | None, own: str | None) -> str:
    if asked is None:
        others = ", ".join(name for name in chat_templates.TEMPLATES if name != named.name)
        note = (
            f"the tokenizer has no chat template: conversations are written by {named.name!r} (or name one: {others})"
        )
    elif own is not None:
        note = f"the chat template {named.name!r} takes the place of the tokenizer's own, as told"
    else:
        note = f"conversations are written by the chat template {named.name!r}, as told"
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in named.tokens if token not in vocabulary]
    if lacking:
        note += f"; the tokenizer has no token {', '.join(lacking)}"
    if named.ends_turn in lacking:
        note += f": a turn ends with {tokenizer.eos_token}"
    return note
