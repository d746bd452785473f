"""Values in a script's source that can be told without running it: literals, names set once, declared defaults."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, Final

DTYPES: Final[Mapping[str, str]] = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
}
DEEPEST: Final = 4
"""How many names or mappings within one another are followed."""
UNKNOWN: Final = (False, None)
LARGEST: Final = 10**18
"""No integer of a training comes near it."""


class Values:
    """What names stand for in one module.

    ``declared`` are the arguments that its own parser takes: ``add_argument`` calls and fields of dataclasses, with
    their defaults where there are any.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.constants = _constants(tree)
        self.changed = _changed(tree)
        self.declared = {**_fields(tree), **_options(tree)}
        self._known: dict[tuple[str, int], tuple[bool, Any]] = {}

    def literal(self, value: ast.expr, depth: int = 0) -> tuple[bool, Any]:
        """Whether ``value`` is known, and what it is."""
        if depth >= DEEPEST:
            return UNKNOWN
        if isinstance(value, ast.Name) and value.id in self.constants:
            key = (value.id, depth)
            if key not in self._known:
                self._known[key] = self.literal(self.constants[value.id], depth + 1)
            return self._known[key]
        if isinstance(value, ast.Attribute):
            return self._attribute(value, depth)
        if isinstance(value, ast.Dict) or is_call_of(value, "dict"):
            return self._mapping(value, depth)
        try:
            plain = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError):
            return UNKNOWN
        if isinstance(plain, tuple | set):
            plain = sorted(plain, key=str) if isinstance(plain, set) else list(plain)
        return isinstance(plain, str | int | float | bool | list | None) and _is_usual(plain), plain

    def _attribute(self, value: ast.Attribute, depth: int) -> tuple[bool, Any]:
        if called(value).startswith("torch.") and value.attr in DTYPES:
            return True, DTYPES[value.attr]
        default = self.declared.get(self.argument(value))
        return UNKNOWN if default is None else self.literal(default, depth + 1)

    def _mapping(self, value: ast.expr, depth: int) -> tuple[bool, Any]:
        """A mapping by those of its items that are known."""
        found = {}
        for key, item in self.items(value):
            known, plain = self.literal(item, depth + 1)
            if known:
                found[key] = plain
        return True, found

    def items(self, value: ast.expr, depth: int = 0) -> Iterator[tuple[str, ast.expr]]:
        """The items of ``{...}`` or ``dict(...)``, or of a name that is set to one once."""
        if depth >= DEEPEST:
            return
        if isinstance(value, ast.Name) and value.id in self.constants:
            yield from self.items(self.constants[value.id], depth + 1)
        elif isinstance(value, ast.Dict):
            for key, item in zip(value.keys, value.values, strict=True):
                if key is None:
                    yield from self.items(item, depth + 1)
                elif isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, item
        elif isinstance(value, ast.Call) and is_call_of(value, "dict"):
            yield from self.keywords(value, depth + 1)

    def keywords(self, node: ast.Call, depth: int = 0) -> Iterator[tuple[str, ast.expr]]:
        """Keyword arguments, those unpacked from a literal mapping among them."""
        for keyword in node.keywords:
            if keyword.arg is not None:
                yield keyword.arg, keyword.value
            else:
                yield from self.items(keyword.value, depth)

    def opaque(self, node: ast.Call) -> Iterator[ast.expr]:
        """What ``node`` unpacks that is no literal mapping, or is one that the script changes."""
        for keyword in node.keywords:
            if keyword.arg is None and not self._is_literal_mapping(keyword.value):
                yield keyword.value

    def _is_literal_mapping(self, value: ast.expr, depth: int = 0) -> bool:
        if depth >= DEEPEST:
            return False
        if isinstance(value, ast.Name):
            inside = self.constants.get(value.id)
            return inside is not None and value.id not in self.changed and self._is_literal_mapping(inside, depth + 1)
        if isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            return all(
                isinstance(key, ast.Constant) or (key is None and self._is_literal_mapping(item, depth + 1))
                for key, item in pairs
            )
        return isinstance(value, ast.Call) and self._is_literal_call(value, depth)

    def _is_literal_call(self, value: ast.Call, depth: int) -> bool:
        unpacked = [keyword.value for keyword in value.keywords if keyword.arg is None]
        known = all(self._is_literal_mapping(each, depth + 1) for each in unpacked)
        return is_call_of(value, "dict") and not value.args and known

    def argument(self, value: ast.expr, depth: int = 0) -> str:
        """The command-line argument that ``args.name`` stands for, also by a name or before an ``if``."""
        if isinstance(value, ast.Name) and value.id in self.constants and depth < DEEPEST:
            return self.argument(self.constants[value.id], depth + 1)
        if isinstance(value, ast.IfExp):
            return self.argument(value.body, depth + 1)
        plain = isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name)
        return value.attr if isinstance(value, ast.Attribute) and plain else ""


def _is_usual(value: Any) -> bool:
    """Whether a literal can be printed and compared: 0xfff... may have as many digits as the file."""
    if isinstance(value, list | dict):
        return all(_is_usual(each) for each in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or abs(value) < LARGEST


def called(function: ast.expr) -> str:
    """A dotted name such as ``transformers.TrainingArguments``; empty for anything else."""
    parts = []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        return ".".join(reversed(parts))
    return ".".join(reversed([*parts, function.id]))


def is_call_of(value: ast.expr, name: str) -> bool:
    """Whether ``value`` calls ``name``."""
    return isinstance(value, ast.Call) and called(value.func) == name


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Names that are set once in the module, to anything."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            values.setdefault(node.target.id, []).append(node.value)
    return {name: each[0] for name, each in values.items() if len(each) == 1}


def _changed(tree: ast.Module) -> frozenset[str]:
    """Names of mappings that get items after they are made."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            found.add(node.value.id)
        elif isinstance(node, ast.Call) and called(node.func).endswith(".update"):
            found.add(called(node.func).removesuffix(".update"))
    return frozenset(found)


def _fields(tree: ast.Module) -> dict[str, ast.expr | None]:
    """Fields of classes: ``name: type = default`` or ``= field(default=...)``."""
    found: dict[str, ast.expr | None] = {}
    for node in ast.walk(tree):
        for inside in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inside, ast.AnnAssign) and isinstance(inside.target, ast.Name):
                found[inside.target.id] = _default(inside.value)
    return found


def _default(value: ast.expr | None) -> ast.expr | None:
    if isinstance(value, ast.Call):
        return next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    return value


def _options(tree: ast.Module) -> dict[str, ast.expr | None]:
    """Options of ``argparse``; a flag without value is false where it is not given."""
    found: dict[str, ast.expr | None] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not called(node.func).endswith("add_argument"):
            continue
        names = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        long = next((name for name in names if name.startswith("--")), "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        action = given.get("action")
        is_flag = isinstance(action, ast.Constant) and action.value == "store_true"
        if long:
            found[long[2:].replace("-", "_")] = given.get("default", ast.Constant(False) if is_flag else None)
    return found
