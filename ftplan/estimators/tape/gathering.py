"""FSDP2's gathered parameters in a step: buffers of collectives, whole parameters while a group runs, prefetching.

As in torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py: going forward, the buffer of one group's all-gather
stays until the next group's has been copied out; going backward, a group's gather is started before the group before it
runs. The groups are accelerate's (utils/fsdp_utils.py, fsdp2_prepare_model): each layer; the embedding; final norm and
head, with the embedding where they are tied, which stay gathered from forward to backward; what is left, which stays.
"""

from __future__ import annotations

from typing import NamedTuple

from ftplan.estimators.tape.graph import Tensor
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.sizes import Size

GATHERED = "gathered parameters"
BUFFER = "communication"


class Groups(NamedTuple):
    """Bytes of each group's whole parameters; ``layers`` by kind of layer. ``reshards``: freed after the forward."""

    embedding: int
    tail: int
    rest: int
    layers: tuple[int, ...]
    tied: bool
    reshards: bool


class Gathering:
    """Gathers and frees the groups of one step; does nothing without ``groups``.

    ``places`` maps a part of the model to the size of its group; `then` says which group follows in the backward.
    """

    def __init__(self, tape: Tape, groups: Groups | None) -> None:
        self._tape = tape
        self._groups = groups
        self._whole: dict[str | int, Tensor] = {}
        self._forward_buffer: Tensor | None = None
        self._prefetched: dict[str | int, Tensor] = {}
        self._sizes: dict[str | int, int] = {}
        self._order: list[str | int] = []

    def begin(self) -> None:
        """What stays gathered throughout, and the embedding."""
        groups = self._groups
        if groups is None:
            return
        self._forward("rest", groups.rest)
        if groups.tied:
            self._forward("tail", groups.tail)
        else:
            self._forward("embedding", groups.embedding)
            self._order.append("embedding")

    def embedded(self) -> None:
        """The embedding has run."""
        if self._groups is not None and self._groups.reshards:
            self._whole.pop("embedding", None)

    def enter(self, place: int, kind: int) -> None:
        """A layer's forward begins."""
        if self._groups is not None:
            self._forward(place, self._groups.layers[kind])
            self._order.append(place)

    def leave(self, place: int) -> None:
        """A layer's forward has ended."""
        if self._groups is not None and self._groups.reshards:
            self._whole.pop(place, None)

    def at_loss(self, *, tiled: bool) -> None:
        """The tail's forward begins; a ``tiled`` loss takes the head's weight without a buffer beside it (traced)."""
        groups = self._groups
        if groups is None or groups.tied:
            return
        if tiled:
            self._forward_buffer = None
            self._whole["tail"] = self._named(GATHERED, groups.tail)
        else:
            self._forward("tail", groups.tail)

    def turn(self) -> None:
        """The backward begins: the last forward buffer is given up."""
        self._forward_buffer = None

    def at_logits_backward(self) -> None:
        """The tail's backward begins: the last layer's gather is started."""
        if self._groups is not None and self._order:
            self._prefetch(self._order[-1])

    def backward(self, place: int, *, repeats: bool) -> None:
        """A layer's backward begins; ``repeats``: the layer before it is of the same kind."""
        if self._groups is None:
            return
        if not self._groups.tied:
            self._whole.pop("tail", None)
        for other in [each for each in self._whole if isinstance(each, int) and each > place]:
            del self._whole[other]
        if place not in self._whole:
            if "repeated" in self._prefetched:
                self._prefetched[place] = self._prefetched.pop("repeated")
            self._prefetch(place)
            self._forward_buffer = None
            self._whole[place] = self._named(GATHERED, self._sizes[place])
            self._prefetched.pop(place)
        index = self._order.index(place)
        if repeats:
            self._prefetch("repeated", self._sizes[place])
        elif index:
            self._prefetch(self._order[index - 1])

    def backward_outside(self) -> None:
        """The embedding's backward begins: the layers are sharded again."""
        for place in [each for each in self._whole if isinstance(each, int)]:
            del self._whole[place]
        self._prefetched.pop("repeated", None)

    def finish(self) -> None:
        """The backward has ended: everything is sharded again."""
        self._whole.clear()
        self._prefetched.clear()
        self._forward_buffer = None
        self._order.clear()

    def _forward(self, key: str | int, size: int) -> None:
        if not size:
            return
        self._sizes[key] = size
        buffer = self._named(BUFFER, size)
        kept = self._groups is not None and not self._groups.reshards
        self._whole[key] = self._named(GATHERED, size, key if kept and isinstance(key, int) else 0)
        self._forward_buffer = buffer

    def _prefetch(self, key: str | int, size: int = 0) -> None:
        size = size or self._sizes.get(key, 0)
        if size and key not in self._prefetched and key not in self._whole:
            self._prefetched[key] = self._named(BUFFER, size)

    def _named(self, name: str, size: int, place: int = 0) -> Tensor:
        """Memory that belongs to no layer, unless each keeps its own."""
        tape = self._tape
        before, tape.place = tape.place, place
        made = tape.empty(Size(fixed=size), 1, name=name)
        tape.place = before
        return made
