"""Tensors that are only their bytes, and the graph of operations that made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from ftplan.estimators.tape.sizes import Rule, Size


class Memory(Protocol):
    """Where storages are: told of each allocation and release."""

    def allocated(self, size: Size, name: str, rule: Rule | None) -> int:
        """Note an allocation; returns its key."""
        ...

    def released(self, key: int) -> None:
        """Note a release."""
        ...


class Storage:
    """Memory on the device; it is released when nothing refers to it any more."""

    __slots__ = ("_memory", "key")

    def __init__(self, memory: Memory, size: Size, name: str, rule: Rule | None = None) -> None:
        self._memory = memory
        self.key = memory.allocated(size, name, rule)

    def __del__(self) -> None:
        self._memory.released(self.key)


class Parameter:
    """A weight: ``element`` bytes each; it lies elsewhere, its gradient here. ``trains``: backward makes that gradient.

    With several ``uses`` (a head tied to the embedding) their gradients are summed before they are accumulated.
    """

    __slots__ = ("arrived", "element", "elements", "gradient", "trains", "uses")

    def __init__(self, elements: int, element: int, *, trains: bool, uses: int = 1) -> None:
        self.elements = elements
        self.element = element
        self.trains = trains
        self.uses = uses
        self.arrived = 0
        self.gradient: Tensor | None = None


class Leaf(Parameter):
    """A tensor that requires a gradient of its own: where a graph ends that is no weight. The graph holds it."""

    __slots__ = ("held",)

    def __init__(self, held: Tensor) -> None:
        super().__init__(0, held.element, trains=True)
        self.held = held.storage


class Tensor:
    """A value of ``size`` elements of ``element`` bytes in a storage that views share.

    ``node`` is the operation that made it, if a gradient flows there. ``head_major``: it lies as [B, heads, S, D].
    ``reduces``: a gradient that is summed to that size before it goes on.
    """

    __slots__ = ("element", "head_major", "index", "node", "reduces", "size", "storage", "view")

    def __init__(
        self, size: Size, element: int, storage: Storage | None, *, view: bool = False, head_major: bool = False
    ) -> None:
        self.size = size
        self.element = element
        self.storage = storage
        self.view = view
        self.head_major = head_major
        self.node: Node | Parameter | None = None
        self.index = 0
        self.reduces: Size | None = None

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows through it."""
        return self.node is not None


Gradients = Sequence["Tensor | None"]


Backward = Callable[..., Gradients]
"""Gradients of an operation's inputs from that of its result (or results) and what it saved, in the order of saving."""


class Node:
    """One operation in the graph: where gradients go on, and what they are computed from."""

    __slots__ = ("backward", "edges", "elements", "outputs", "place", "saved", "sequence")

    def __init__(
        self,
        sequence: int,
        edges: tuple[Edge | None, ...],
        elements: tuple[int, ...],
        saved: Saved,
        backward: Backward,
        place: int,
    ) -> None:
        self.sequence = sequence
        self.place = place
        self.edges = edges
        self.elements = elements
        self.saved = saved
        self.backward = backward
        self.outputs = 1


Edge: TypeAlias = tuple["Node | Parameter", int]
Saved: TypeAlias = "tuple[Tensor | Parameter | Place, ...]"


class Place:
    """What a checkpointed forward saves in a tensor's stead: a place among those of its frame."""

    __slots__ = ("frame", "index")

    def __init__(self, frame: Frame, index: int) -> None:
        self.frame = frame
        self.index = index


class Frame:
    """One checkpointed call: what it saved the first time by number, and how to make it again.

    As torch.utils.checkpoint without reentry: the first tensor that the backward asks for runs the forward again, up to
    the last tensor that it saved.
    """

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.run: Callable[[], Tensor] | None = run
        self.count = 0
        self.made: dict[int, Tensor | Parameter] | None = None

    def place(self) -> Place:
        """The next place."""
        self.count += 1
        return Place(self, self.count - 1)


def edge_of(value: Tensor | Parameter | None) -> Edge | None:
    """Where the gradient of a value goes on; None where none flows."""
    if isinstance(value, Parameter):
        return (value, 0) if value.trains else None
    if value is None or value.node is None:
        return None
    return (value.node, value.index)


def detached(value: Tensor | Parameter) -> Tensor | Parameter:
    """The value without its place in the graph, as a saved variable holds it."""
    if isinstance(value, Parameter) or value.node is None:
        return value
    return Tensor(value.size, value.element, value.storage, view=value.view, head_major=value.head_major)
