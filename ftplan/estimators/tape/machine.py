"""A small autograd over sizes: tensors that are only their bytes, a graph of operations, and its backward.

What lives when follows from the same rules as in PyTorch: a storage lives as long as a variable, a node of the graph or
a gradient buffer holds it, here as there by reference count. So the programs of `decoder` are transcriptions of
transformers' modelling code, and nothing has to say when a tensor is freed.

Sizes are linear in what a micro-batch brings: a tensor has so many bytes for each token, for each entry of a score
matrix [B, S, S], for each entry of one sample's [S, S], and so many fixed. One run of a program therefore answers for
every micro-batch and sequence length.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ftplan.estimators.tape.graph import (
    Backward,
    Edge,
    Frame,
    Gradients,
    Leaf,
    Node,
    Parameter,
    Place,
    Storage,
    Tensor,
    detached,
    edge_of,
)
from ftplan.estimators.tape.sizes import (
    BACKWARD,
    COMPLETE,
    GRADIENTS,
    IN_FLIGHT,
    LEFT,
    NOTHING,
    PRODUCT,
    RECOMPUTED,
    SCRATCH,
    WITH_BIAS,
    Event,
    Mark,
    Rule,
    Size,
)


class Reduction(NamedTuple):
    """How ranks reduce gradients: not here (``by`` none), a part of the model at a time, or each tensor as it comes.

    One of ``shards`` parts of the result stays, of ``element`` bytes (0 where it lies elsewhere); ``buffer_element`` is
    what is sent. ``tied``: head and embedding are reduced together, at the end. ``above``: of a tensor of no more
    elements nothing stays.
    """

    by: str = "none"
    shards: float = 1
    element: int = 4
    buffer_element: int = 2
    tied: bool = False
    above: int = 0


class _Enough(Exception):  # noqa: N818 - it ends a recomputation, and is no error
    """The recomputation has made all that the backward needs."""


class Tape:
    """Records allocations and releases of a program, and runs its backward.

    ``place`` labels events with the part of the model that runs, ``name`` names what is allocated. ``caches`` holds
    autocast's copies of weights until it is left, ``returned`` what a layer's modules return beside their result and
    the layer drops. ``in_backward``: the engine runs; ``entered`` is told when it enters another part of the model.
    ``accumulates``: gradients are added to ones that lie elsewhere. ``training`` is off in an evaluation.
    ``keeps_linear_inputs``: linear modules save their inputs even where their weights do not train.
    """

    def __init__(
        self, *, autocast: bool = False, accumulates: bool = False, reduction: Reduction | None = None
    ) -> None:
        self.events: list[Event | Mark] = []
        self.autocast = autocast
        self.accumulates = accumulates
        self.reduction = reduction or Reduction()
        self.training = True
        self.keeps_linear_inputs = False
        self._gradients: list[Parameter] = []
        self._shards: list[Tensor] = []
        self._outside: list[Parameter] = []
        self._in_flight: Tensor | None = None
        self.place = 0
        self.name = "activations"
        self.graph = True
        self._keys = 0
        self._sequence = 0
        self._frame: Frame | None = None
        self._remade: dict[int, Tensor | Parameter] | None = None
        self._wanted = 0
        self.caches: dict[Parameter, Tensor] = {}
        self.returned: list[Tensor] = []
        self.in_backward = False
        self._multiplied: set[Mark] = set()
        self.entered: Callable[[int], None] = lambda _: None

    # ------------------------------------------------------------------ memory

    def allocated(self, size: Size, name: str, rule: Rule | None) -> int:
        """Record an allocation; returns its key."""
        self._keys += 1
        self.events.append(Event(self._keys, size, name, self.place, rule))
        return self._keys

    def released(self, key: int) -> None:
        """Record a release."""
        self.events.append(Event(key, None, "", self.place))

    def mark(self, phase: str) -> None:
        """Begin a phase."""
        self.events.append(Mark(phase))

    def empty(self, size: Size, element: int, *, head_major: bool = False, name: str = "") -> Tensor:
        """A new tensor."""
        return Tensor(size, element, Storage(self, size.times(element), name or self.name), head_major=head_major)

    def scratch(self, size: Size) -> None:
        """Memory that a kernel takes while it runs."""
        Storage(self, size, SCRATCH)

    def by_rule(self, rule: Rule, name: str = "") -> Storage:
        """Memory of a size that a rule knows."""
        return Storage(self, NOTHING, name or self.name, rule)

    def multiplied(self, *, with_bias: bool = False) -> None:
        """Note a thread's first matrix product: cuBLAS takes a workspace for it, cuBLASLt one where it has a bias."""
        mark = Mark(WITH_BIAS if with_bias else PRODUCT, 2 if self.in_backward else 1)
        if mark not in self._multiplied:
            self._multiplied.add(mark)
            self.events.append(mark)

    def summed(self, columns: int, element: int) -> None:
        """Scratch memory of a sum over rows."""
        Storage(self, NOTHING, SCRATCH, Rule("sum", columns, element))

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Name what is allocated inside; recomputation and backward have names of their own."""
        before = self.name
        if before not in (RECOMPUTED, BACKWARD):
            self.name = name
        try:
            yield
        finally:
            self.name = before

    @contextmanager
    def without_graph(self) -> Iterator[None]:
        """``torch.no_grad()``."""
        before, self.graph = self.graph, False
        try:
            yield
        finally:
            self.graph = before

    # ------------------------------------------------------------------ graph

    def operation(
        self,
        inputs: Sequence[Tensor | Parameter | None],
        backward: Backward,
        make: Callable[[], Tensor],
        *,
        saved: Sequence[Tensor | Parameter] = (),
        saves_output: bool = False,
    ) -> Tensor:
        """Run an operation: save what its backward needs of ``inputs``, ``make`` the result, put it into the graph.

        ``saves_output``: its backward needs the result too, as the last thing saved.
        """
        if not self.graph or not any(edge_of(each) for each in inputs):
            return make()
        kept = [self._keep(each) for each in saved]
        out = make()
        if saves_output:
            kept.append(self._keep(out))
        self._sequence += 1
        edges = tuple(edge_of(each) for each in inputs)
        elements = tuple(0 if each is None else each.element for each in inputs)
        out.node = Node(
            self._sequence, edges, elements, () if self._remade is not None else tuple(kept), backward, self.place
        )
        return out

    def parts(
        self, whole: Tensor, sizes: Sequence[Size], backward: Callable[..., Gradients], *, head_major: bool
    ) -> list[Tensor]:
        """Views of parts of ``whole`` from one operation with several results, whose gradients come together."""
        views = [Tensor(size, whole.element, whole.storage, view=True, head_major=head_major) for size in sizes]
        edge = edge_of(whole)
        if self.graph and edge is not None:
            self._sequence += 1
            node = Node(self._sequence, (edge,), (whole.element,), (), backward, self.place)
            node.outputs = len(views)
            for index, view in enumerate(views):
                view.node, view.index = node, index
        return views

    def _keep(self, value: Tensor | Parameter) -> Tensor | Parameter | Place:
        """What a node holds of a saved tensor."""
        if self._remade is not None:
            self._remade[len(self._remade)] = detached(value)
            if len(self._remade) == self._wanted:
                raise _Enough
        return detached(value) if self._frame is None else self._frame.place()

    def checkpoint(self, run: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """Run ``run`` so that of all that it saves only its input is kept."""
        if not self.graph or not hidden.requires_grad:
            return run(hidden)
        frame = Frame(lambda: run(hidden))
        self._frame = frame
        try:
            return run(hidden)
        finally:
            self._frame = None

    def checkpoint_reentrant(self, run: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """The older way: a forward without a graph, and in its backward a forward and a backward of their own."""
        if not self.graph or not hidden.requires_grad:
            return run(hidden)

        def make() -> Tensor:
            with self.without_graph():
                return run(hidden)

        def backward(gradient: Tensor, kept: Tensor) -> Gradients:
            leaf = Leaf(kept)
            value = Tensor(kept.size, kept.element, kept.storage)
            value.node = leaf
            before = self.name, self.graph, self.caches
            self.name, self.graph, self.caches = RECOMPUTED, True, {}
            out = run(value)
            self.name, self.graph, self.caches = before
            del value, kept
            self.backward(out, gradient)
            return (leaf.gradient,)

        return self.operation((hidden,), backward, make, saved=(hidden,))

    def _remake(self, place: Place) -> Tensor | Parameter:
        frame = place.frame
        if frame.made is None:
            assert frame.run is not None
            self._remade, self._wanted = {}, frame.count
            before = self.name, self.graph, self.caches
            self.name, self.graph, self.caches = RECOMPUTED, True, {}
            with suppress(_Enough):
                frame.run()
            self.returned.clear()
            frame.made, self._remade = self._remade, None
            self.name, self.graph, self.caches = before
        return frame.made.pop(place.index)

    # ------------------------------------------------------------------ backward

    def backward(self, root: Tensor, gradient: Tensor) -> None:
        """Run the graph behind ``root`` backward, its nodes from the last made to the first."""
        assert isinstance(root.node, Node)
        before = self.name, self.graph, self.in_backward
        self.name, self.graph, self.in_backward = BACKWARD, False, True
        buffers: dict[Node, list[Tensor | None]] = {}
        queue: list[tuple[int, Node]] = []
        self._arrive((root.node, root.index), gradient, buffers, queue)
        root.node = None
        del root, gradient
        while queue:
            _, node = heapq.heappop(queue)
            self._run(node, buffers, queue)
            del node
        self.name, self.graph, self.in_backward = before

    def leave(self, place: int, *, final: bool = False) -> None:
        """The backward of a part of the model has ended: its gradients are reduced to shards, where ranks share them.

        FSDP2 copies them into one buffer, which stays until the next part is reduced (torch/distributed/fsdp/
        _fully_shard/_fsdp_collectives.py, foreach_reduce).
        """
        self.events.append(Mark(LEFT, place))
        if self.reduction.tied and not place and not final:
            self._outside, self._gradients = self._gradients, []
            return
        if self.reduction.tied and not place:
            self._gradients += self._outside
        if self.reduction.by == "part" and self._gradients:
            whole = sum(each.gradient.size.fixed for each in self._gradients if each.gradient is not None)
            element = self.reduction.buffer_element
            self._in_flight = None
            self._in_flight = self.empty(Size(fixed=whole), element, name=IN_FLIGHT)
            for parameter in self._gradients:
                parameter.gradient = None
            self._gradients.clear()
            shard = self._shard(whole, place)
            if not self.accumulates:  # else it is added to what lies elsewhere
                self._shards.append(shard)

    def forget_gradients(self) -> None:
        """Set every gradient to None, as after the optimizer's step."""
        for parameter in self._gradients + self._outside:
            parameter.gradient = None
        self._gradients.clear()
        self._outside.clear()
        self._shards.clear()
        self._in_flight = None

    def _shard(self, elements: float, place: int) -> Tensor:
        before, self.place = self.place, place
        size = Size(fixed=-(-elements // self.reduction.shards))
        made = self.empty(size, self.reduction.element, name=GRADIENTS)
        self.place = before
        return made

    def _run(self, node: Node, buffers: dict[Node, list[Tensor | None]], queue: list[tuple[int, Node]]) -> None:
        if node.place != self.place:
            self.leave(self.place)
            self.place = node.place
            self.entered(node.place)
        saved, node.saved = node.saved, ()
        values = [self._remake(each) if isinstance(each, Place) else each for each in saved]
        del saved
        outputs = list(node.backward(*buffers.pop(node), *values))
        del values
        for index, element in enumerate(node.elements):
            # A gradient takes its input's shape and dtype (torch/csrc/autograd/engine.cpp, validate_outputs).
            value = outputs[index]
            if value is None or value.storage is None:
                continue
            if value.reduces is not None:
                if value.reduces.fixed:
                    self.summed(round(value.reduces.fixed), value.element)
                outputs[index] = self.empty(value.reduces, element)
            elif value.element != element:
                outputs[index] = self.empty(value.size, element, head_major=value.head_major)
            del value
        edges, node.edges = node.edges, ()
        outputs.reverse()
        for edge in edges:
            value = outputs.pop()
            if edge is not None and value is not None:
                self._arrive(edge, value, buffers, queue)
            del value

    def _arrive(
        self, edge: Edge, value: Tensor, buffers: dict[Node, list[Tensor | None]], queue: list[tuple[int, Node]]
    ) -> None:
        target, index = edge
        if isinstance(target, Parameter):
            self._arrive_at_weight(target, value)
            return
        if target not in buffers:
            buffers[target] = [None] * target.outputs
            heapq.heappush(queue, (-target.sequence, target))
        first = buffers[target][index]
        if first is None:
            buffers[target][index] = value
        elif first.view:  # a view is not summed into (torch/csrc/autograd/input_buffer.cpp)
            buffers[target][index] = self.empty(value.size, value.element)

    def _arrive_at_weight(self, target: Parameter, value: Tensor) -> None:
        target.arrived += 1
        if isinstance(target, Leaf):
            target.gradient = value
            return
        if target.gradient is not None:
            if target.gradient.view:
                target.gradient = self.empty(value.size, value.element, name=GRADIENTS)
        else:
            target.gradient = value
            if not self.accumulates or self.reduction.by == "part":
                self._gradients.append(target)
        if self.reduction.by == "tensor" and target.arrived == target.uses:
            self.events.append(Mark(COMPLETE, target.elements))
            stays = target.elements > self.reduction.above
            target.gradient = self._shard(target.elements if stays else 0, self.place)
        if self.accumulates and self.reduction.by != "part" and target.arrived == target.uses:
            target.gradient = None  # added to what lies elsewhere
