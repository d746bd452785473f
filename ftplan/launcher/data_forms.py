"""The forms rows come in: what a row of each holds, and how it becomes messages, a pair, or text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ftplan.launcher.row_fields import (
    BadRowError,
    Message,
    conversation,
    earlier_turns,
    message,
    optional_system,
    string,
    turn_list,
)

Shape = Literal["messages", "prompt-completion", "text"]
"""What rows of any form become."""

ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
}
"""Names of roles in data, and the role of a chat template each is."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of data: its name, the ``keys`` of a row as users are shown them, those that tell it, and its shape."""

    name: str
    keys: str
    told_by: tuple[str, ...]
    shape: Shape
    normalise: Callable[[object], Mapping[str, Any]]


def detect(row: object) -> str | None:
    """The name of the form whose keys ``row`` has, or None."""
    if not isinstance(row, Mapping):
        return None
    return next((name for name, form in FORMS.items() if all(key in row for key in form.told_by)), None)


def text_at(row: object, key: str) -> Mapping[str, Any]:
    """The text at ``key`` as a row."""
    text = string(row, key)
    if not text.strip():
        raise BadRowError(f"{key!r} is empty")
    return {"text": text}


def _alpaca(row: object) -> Mapping[str, Any]:
    instruction, output = string(row, "instruction"), string(row, "output")
    given = string(row, "input", "")
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    before = [*optional_system(row, "system"), *earlier_turns(row, "history")]
    return conversation([*before, message("user", question), message("assistant", output)])


def _sharegpt(row: object) -> Mapping[str, Any]:
    return conversation([*optional_system(row, "system"), *_turns(row, "conversations", "from", "value")])


def _chat(row: object) -> Mapping[str, Any]:
    return conversation(_turns(row, "messages", "role", "content"))


def _pair(row: object) -> Mapping[str, Any]:
    prompt, completion = string(row, "prompt"), string(row, "completion")
    if not completion.strip():
        raise BadRowError("'completion' is empty: there is nothing to learn from it")
    return {"prompt": prompt, "completion": completion}


def _text(row: object) -> Mapping[str, Any]:
    return text_at(row, "text")


FORMS: Final[Mapping[str, Form]] = {
    form.name: form
    for form in (
        Form("alpaca", "instruction, input (may be left out), output", ("instruction", "output"), "messages", _alpaca),
        Form("sharegpt", "conversations: [{from, value}, …]", ("conversations",), "messages", _sharegpt),
        Form("chat", "messages: [{role, content}, …]", ("messages",), "messages", _chat),
        Form("prompt-completion", "prompt, completion", ("prompt", "completion"), "prompt-completion", _pair),
        Form("text", "text", ("text",), "text", _text),
    )
}
"""Every form, in the order they are looked for."""


def _turns(row: object, key: str, role_key: str, text_key: str) -> list[Message]:
    return [_turn(turn, index, role_key, text_key) for index, turn in enumerate(turn_list(row, key), start=1)]


def _turn(turn: object, index: int, role_key: str, text_key: str) -> Message:
    if isinstance(turn, Mapping) and "role" in turn and "content" in turn:
        # Many sets named like sharegpt write their turns like chats.
        role_key, text_key = "role", "content"
    try:
        role, text = string(turn, role_key), string(turn, text_key)
    except BadRowError as error:
        raise BadRowError(f"turn {index}: {error}") from error
    if role not in ROLES:
        raise BadRowError(f"turn {index}: unknown role {role!r} (valid: {', '.join(ROLES)})")
    return message(ROLES[role], text)
