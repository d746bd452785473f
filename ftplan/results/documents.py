"""Results as JSON, and back: the one place where pydantic looks at them."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, Final, TypeVar, cast

from pydantic import TypeAdapter

_T = TypeVar("_T")

_CONTROLS: Final = re.compile("[\x7f-\x9f]")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_jsonable(result: object) -> Any:
    """``result`` as JSON values: dicts, lists, strings, numbers."""
    return _adapter(cast("Any", type(result))).dump_python(result, mode="json")


def to_json(result: object) -> str:
    """``result`` as an indented JSON document with a final newline; control characters are spelled out."""
    text = json.dumps(to_jsonable(result), indent=2, ensure_ascii=False) + "\n"
    return _CONTROLS.sub(
        lambda found: f"\\u{ord(found[0]):04x}", text
    )  # json leaves DEL and those after it as they are


def from_json(kind: type[_T], document: str | bytes) -> _T:
    """The ``kind`` that `to_json` wrote; raises pydantic's ValidationError for anything else."""
    value: _T = _adapter(cast("Any", kind)).validate_json(document)
    return value
