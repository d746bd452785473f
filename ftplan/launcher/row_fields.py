"""Reading what a row holds: strings, turns and conversations, with the reason where it does not hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]


class BadRowError(Exception):
    """A row that does not have the form it should; says what is missing."""


def mapping(row: object) -> Mapping[str, Any]:
    """``row`` as an object."""
    if not isinstance(row, Mapping):
        raise BadRowError(f"an object is needed, not {type(row).__name__}")
    return row


def string(row: object, key: str, default: str | None = None) -> str:
    """The string at ``key``, or ``default`` where there is none."""
    value = mapping(row).get(key, default)
    # Tables exported to JSON write an absent value as null.
    value = default if value is None else value
    if value is None:
        raise BadRowError(f"{key!r} is missing")
    return _text(value, key)


def turn_list(row: object, key: str) -> Sequence[Any]:
    """The list of turns at ``key``."""
    value = mapping(row).get(key)
    if value is None:
        raise BadRowError(f"{key!r} is missing")
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{key!r} must be a list with at least one turn")
    return value


def earlier_turns(row: object, key: str) -> list[Message]:
    """The turns of a history, which is a list of pairs of question and answer."""
    history = mapping(row).get(key)
    if history is None:
        return []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRowError(f"{key!r} must be a list of [question, answer] pairs")
    roles = ("user", "assistant")
    return [message(role, _text(text, key)) for pair in history for role, text in zip(roles, pair, strict=True)]


def conversation(messages: list[Message]) -> Mapping[str, Any]:
    """A row of ``messages``, in which the assistant must say something."""
    answers = [said["content"] for said in messages if said["role"] == "assistant"]
    if not answers:
        raise BadRowError("no turn of the assistant: there is nothing to learn from it")
    if not any(answer.strip() for answer in answers):
        raise BadRowError("what the assistant says is empty: there is nothing to learn from it")
    return {"messages": messages}


def message(role: str, content: str) -> Message:
    """One turn."""
    return {"role": role, "content": content}


def optional_system(row: object, key: str) -> list[Message]:
    """The turn of the system at ``key``, if it says anything."""
    text = string(row, key, "")
    return [message("system", text)] if text else []


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{key!r} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which no tokenizer takes.
        raise BadRowError(f"{key!r} holds {value[error.start]!a}, which is no character") from error
    return value
