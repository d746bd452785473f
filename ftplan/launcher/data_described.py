"""Rows of a data set that LLaMA-Factory's ``dataset_info.json`` describes, read as LLaMA-Factory reads them.

Semantics: its ``data/converter.py`` (0.9.6.dev0). Rows that it would drop with a warning are bad rows here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ftplan.launcher.data_forms import Form, text_at
from ftplan.launcher.job import DescribedSet
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


def described_form(described: DescribedSet) -> Form:
    """How a row of the set is read."""
    name = f"{described.formatting} ({described.name})"
    if described.formatting != "alpaca":
        keys = f"{described.messages}: [{{{described.role_tag}, {described.content_tag}}}, …]"
        return Form(name, keys, (), "messages", partial(_turns, described))
    if described.response is None:
        # LLaMA-Factory's way to say that a column is text to continue.
        assert described.prompt is not None, "dataset_info refuses sets without either"
        return Form(name, described.prompt, (), "text", partial(_text, described.prompt))
    keys = ", ".join(key for key in (described.prompt, described.query, described.response) if key)
    return Form(name, keys, (), "messages", partial(_instruction, described))


def _text(key: str, row: object) -> Mapping[str, Any]:
    return text_at(row, key)


def _instruction(described: DescribedSet, row: object) -> Mapping[str, Any]:
    asked = [text for key in (described.prompt, described.query) if key and (text := string(row, key, ""))]
    if not asked:
        keys = " and ".join(repr(key) for key in (described.prompt, described.query) if key)
        raise BadRowError(f"nothing is asked: {keys} are empty or missing")
    answer = string(row, str(described.response))
    system = optional_system(row, described.system) if described.system else []
    earlier = earlier_turns(row, described.history) if described.history else []
    return conversation([*system, *earlier, message("user", "\n".join(asked)), message("assistant", answer)])


def _turns(described: DescribedSet, row: object) -> Mapping[str, Any]:
    turns = [
        _turn(described, turn, index) for index, turn in enumerate(turn_list(row, str(described.messages)), start=1)
    ]
    if turns[0]["role"] == "system":
        system, turns = turns[:1], turns[1:]
    else:
        system = optional_system(row, described.system) if described.system else []
    for index, turn in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if turn["role"] != expected:
            raise BadRowError(f"turns must alternate: turn {index + 1} after the system's is the {turn['role']}'s")
    if len(turns) % 2:
        raise BadRowError("the last turn is not the assistant's")
    return conversation([*system, *turns])


def _turn(described: DescribedSet, turn: object, index: int) -> Message:
    roles = {described.user_tag: "user", described.assistant_tag: "assistant", described.system_tag: "system"}
    try:
        tag, text = string(turn, described.role_tag), string(turn, described.content_tag)
    except BadRowError as error:
        raise BadRowError(f"turn {index}: {error}") from error
    if tag not in roles:
        valid = ", ".join(role for role in roles if role)
        raise BadRowError(f"turn {index}: {tag!r} is no role of the description ({valid}), calls of tools included")
    return message(roles[tag], text)
