"""What one source says of a run: some fields of a `RunConfig`, some of its devices, and problems on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.verdicts import Problem


@dataclass(frozen=True)
class Shape:
    """How many processes a launch starts: on each node and how many nodes; None where it does not say.

    ``total`` counts all processes where only that is stated. ``visible`` are the devices of a node that the processes
    see, by index or by name and in their order; ``hidden`` those that they do not see.
    """

    nodes: int | None = None
    per_node: int | None = None
    total: int | None = None
    visible: tuple[str, ...] | None = None
    hidden: tuple[str, ...] = ()

    def over(self, other: Shape) -> Shape:
        """The same, with ``other``'s numbers where it has none."""
        return Shape(
            self.nodes or other.nodes,
            self.per_node or other.per_node,
            self.total or other.total,
            self.visible if self.visible is not None else other.visible,
            self.hidden or other.hidden,
        )


ANY_SHAPE: Final = Shape()


@dataclass(frozen=True)
class Partial:
    """Fields by name, with the settings they came from; later sources are laid over earlier ones.

    ``beside`` holds what no field of a `RunConfig` says: ``eval_micro_batch``, ``learning_rate``.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Setting] = field(default_factory=dict)
    shape: Shape = ANY_SHAPE
    problems: tuple[Problem, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)

    def over(self, other: Partial) -> Partial:
        """Its own fields and shape over ``other``'s, and the problems of both."""
        return Partial(
            {**other.fields, **self.fields},
            {**other.origins, **self.origins},
            self.shape.over(other.shape),
            (*other.problems, *self.problems),
            {**other.beside, **self.beside},
        )

    def having(self, *problems: Problem) -> Partial:
        """The same with ``problems`` added."""
        return replace(self, problems=(*self.problems, *problems))


NOTHING: Final = Partial()


@dataclass(frozen=True)
class Taken:
    """Fields as they are taken from ``settings``, with the setting that each came from: without a value, a default."""

    settings: Settings
    fields: dict[str, Any]
    origins: dict[str, Setting] = field(default_factory=dict)

    def __call__(self, key: str, name: str, value: Any) -> None:
        """Take ``value`` for the field ``name``, from the setting ``key``."""
        self.fields[name] = value
        self.origins[name] = self.settings[key] if key in self.settings else Setting(key, None)
