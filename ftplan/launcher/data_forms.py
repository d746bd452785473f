"""The forms rows come in: what a row of each holds, and how it becomes messages, a pair, or text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ftplan.launcher.job import DataForm

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


class BadRowError(Exception):
    """A row that does not have the form it should; says what is missing."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of data: the ``keys`` of a row as users are shown them, those that tell it, and the shape it becomes."""

    keys: str
    told_by: tuple[str, ...]
    shape: Literal["messages", "prompt-completion", "text"]
    normalise: Callable[[object], Mapping[str, Any]]


def detect(row: object) -> DataForm | None:
    """The form whose keys ``row`` has, or None."""
    if not isinstance(row, Mapping):
        return None
    return next((name for name, form in FORMS.items() if all(key in row for key in form.told_by)), None)


def _alpaca(row: object) -> Mapping[str, Any]:
    instruction, output = _string(row, "instruction"), _string(row, "output")
    given = _string(row, "input", "")
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    earlier = [
        message
        for pair in _pairs(_mapping(row).get("history"))
        for message in (_message("user", pair[0]), _message("assistant", pair[1]))
    ]
    return {"messages": [*_system(row), *earlier, _message("user", question), _message("assistant", output)]}


def _sharegpt(row: object) -> Mapping[str, Any]:
    return {"messages": _conversation([*_system(row), *_turns(row, "conversations", "from", "value")])}


def _chat(row: object) -> Mapping[str, Any]:
    return {"messages": _conversation(_turns(row, "messages", "role", "content"))}


def _pair(row: object) -> Mapping[str, Any]:
    return {"prompt": _string(row, "prompt"), "completion": _string(row, "completion")}


def _text(row: object) -> Mapping[str, Any]:
    text = _string(row, "text")
    if not text.strip():
        raise BadRowError("'text' is empty")
    return {"text": text}


FORMS: Final[Mapping[DataForm, Form]] = {
    "alpaca": Form("instruction, input (may be left out), output", ("instruction", "output"), "messages", _alpaca),
    "sharegpt": Form("conversations: [{from, value}, …]", ("conversations",), "messages", _sharegpt),
    "chat": Form("messages: [{role, content}, …]", ("messages",), "messages", _chat),
    "prompt-completion": Form("prompt, completion", ("prompt", "completion"), "prompt-completion", _pair),
    "text": Form("text", ("text",), "text", _text),
}
"""Every form, in the order they are looked for."""


def _mapping(row: object) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise BadRowError(f"an object is needed, not {type(row).__name__}")
    return row


def _string(row: object, key: str, default: str | None = None) -> str:
    value = _mapping(row).get(key, default)
    # Tables exported to JSON write an absent value as null.
    value = default if value is None else value
    if value is None:
        raise BadRowError(f"{key!r} is missing")
    if not isinstance(value, str):
        raise BadRowError(f"{key!r} must be a string, not {type(value).__name__}")
    return value


def _list(row: object, key: str) -> Sequence[Any]:
    value = _mapping(row).get(key)
    if value is None:
        raise BadRowError(f"{key!r} is missing")
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{key!r} must be a list with at least one turn")
    return value


def _turns(row: object, key: str, role_key: str, text_key: str) -> list[dict[str, str]]:
    return [_turn(turn, index, role_key, text_key) for index, turn in enumerate(_list(row, key), start=1)]


def _turn(turn: object, index: int, role_key: str, text_key: str) -> dict[str, str]:
    if isinstance(turn, Mapping) and "role" in turn and "content" in turn:
        # Many sets named like sharegpt write their turns like chats.
        role_key, text_key = "role", "content"
    try:
        role, text = _string(turn, role_key), _string(turn, text_key)
    except BadRowError as error:
        raise BadRowError(f"turn {index}: {error}") from error
    if role not in ROLES:
        raise BadRowError(f"turn {index}: unknown role {role!r} (valid: {', '.join(ROLES)})")
    return _message(ROLES[role], text)


def _conversation(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    if all(message["role"] != "assistant" for message in messages):
        raise BadRowError("no turn of the assistant: there is nothing to learn from it")
    return messages


def _system(row: object) -> list[dict[str, str]]:
    text = _string(row, "system", "")
    return [_message("system", text)] if text else []


def _pairs(history: object) -> Sequence[Sequence[str]]:
    if history is None:
        return ()
    well_formed = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    )
    if not well_formed or not isinstance(history, list):
        raise BadRowError("'history' must be a list of [question, answer] pairs")
    return history


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
