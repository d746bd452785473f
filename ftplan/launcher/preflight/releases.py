"""Releases of packages, compared by their numbers: enough for what is asked of them here, without a library for it."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Final

_NUMBERS: Final = re.compile(r"\d+(?:\.\d+)*")
_CLAUSE: Final = re.compile(r"(>=|<=|==|!=|~=|<|>)\s*([0-9][0-9A-Za-z.*+-]*)")


def numbers(version: str) -> tuple[int, ...]:
    """The numbers a release begins with: ``2.13.0+cpu`` is (2, 13, 0); empty for what begins with none."""
    match = _NUMBERS.match(version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def compared(one: str, other: str) -> int:
    """Below, equal to or above 0 as ``one`` is older than, the same as or newer than ``other``."""
    for mine, theirs in zip_longest(numbers(one), numbers(other), fillvalue=0):
        if mine != theirs:
            return mine - theirs
    return 0


def is_before(version: str, other: str) -> bool:
    """Whether ``version`` is an older release than ``other``."""
    return compared(version, other) < 0


def satisfies(version: str, specifier: str) -> bool:
    """Whether ``version`` is among the releases of ``specifier``, such as ``>=2.1,<3``."""
    return all(_holds(version, sign, bound) for sign, bound in _CLAUSE.findall(specifier))


def _holds(version: str, sign: str, bound: str) -> bool:
    order = compared(version, bound)
    if sign == "~=":
        return order >= 0 and numbers(version)[: len(numbers(bound)) - 1] == numbers(bound)[:-1]
    if bound.endswith(".*"):
        same = numbers(version)[: len(numbers(bound))] == numbers(bound)
        return same if sign == "==" else not same
    return {">=": order >= 0, "<=": order <= 0, "==": order == 0, "!=": order != 0, "<": order < 0, ">": order > 0}[
        sign
    ]
