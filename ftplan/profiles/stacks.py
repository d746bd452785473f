"""Look-up of software stacks in ``data/stacks.json``."""

from __future__ import annotations

from functools import cache

from ftplan.errors import UnknownNameError
from ftplan.profiles.packaged import packaged_json
from ftplan.profiles.schema import StackProfile


def load_stack(name: str) -> StackProfile:
    """Return the stack called ``name`` (any case); raise `UnknownNameError` if there is none."""
    stack = _stacks().get(name.strip().lower())
    if stack is None:
        raise UnknownNameError("stack", name, list_stacks(), field="stack", hint="valid: " + ", ".join(list_stacks()))
    return stack


def list_stacks() -> tuple[str, ...]:
    """Return the names of all stacks."""
    return tuple(_stacks())


@cache
def _stacks() -> dict[str, StackProfile]:
    return {row["name"]: StackProfile(**row) for row in packaged_json("stacks.json")["stacks"]}
