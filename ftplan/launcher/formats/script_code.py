"""What a training script does beside literal arguments: named, so that a check can say that it is not modelled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

from ftplan.launcher.formats.python_values import called
from ftplan.launcher.formats.settings import Settings
from ftplan.verdicts import Problem, Severity

CODE: Final = "the script's own code"
"""Of a setting that stands for code: what is ``unresolved`` in it."""
STEPS: Final = frozenset({"compute_loss", "training_step"})
"""Methods of a trainer that decide what is held in a step."""
BRANCHES: Final = (ast.If, ast.For, ast.While, ast.Try, ast.IfExp)


def overrides(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Steps that subclasses of a trainer do in a way of their own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(called(base).endswith("Trainer") for base in node.bases):
            for inside in node.body:
                if isinstance(inside, ast.FunctionDef) and inside.name in STEPS:
                    yield f"{node.name}.{inside.name}", inside


def branched(tree: ast.Module) -> frozenset[int]:
    """Ids of the nodes that may never be reached, or often; what only a script started as such does is not meant."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, BRANCHES) and not _is_start(node):
            found.update(id(inside) for inside in ast.walk(node))
    return frozenset(found)


def _is_start(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and any(
        isinstance(name, ast.Name) and name.id == "__name__" for name in ast.walk(node.test)
    )


def own_code(settings: Settings) -> Iterator[Problem]:
    """What stands for code among ``settings``."""
    for key, each in settings.items():
        if each.unresolved != CODE:
            continue
        unpacks = "(**" in key
        yield Problem(
            "unresolved" if unpacks else "unmodelled",
            Severity.WARNING,
            f"{key} holds what only the script knows" if unpacks else f"{key} is the script's own, and not modelled",
            hint="give what matters with --set" if unpacks else "the verdict is unknown where this could change it",
            key=key,
            place=each.place,
            may_need_more=True,
            may_need_less=True,
        )


def stated(settings: Settings) -> Settings:
    """``settings`` without what stands for code."""
    return Settings({key: each for key, each in settings.items() if each.unresolved != CODE})
