"""The parameters of a model in the order in which a micro-batch's modules use them, as ZeRO-3 sees it.

Parameters up to stage3_param_persistence_threshold are gathered once a step, by the optimizer's, and are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from ftplan.estimators.targets import expert_targets_named, layer_targets_named
from ftplan.profiles.model_schema import LayerProfile, ModelProfile

PERSISTS: Final = 10
"""Times H elements: stage3_param_persistence_threshold as transformers fills in "auto"."""

PREFETCH: Final = 0.9
"""Of H² elements: stage3_prefetch_bucket_size as transformers fills in "auto"."""

Kind: TypeAlias = Literal["embedding", "forward", "head", "head backward", "recompute", "backward", "end"]


class Weight(NamedTuple):
    """A parameter: its elements, bytes of one as it is gathered, and whether it trains."""

    elements: int
    element: int
    trains: bool


class Section(NamedTuple):
    """Modules that run one after the other in a part of the model, each with the numbers of its own parameters.

    One without any is there because DeepSpeed prefetches a bucket more at every module.
    """

    kind: Kind
    place: int
    modules: tuple[tuple[int, ...], ...]


class Order(NamedTuple):
    """All parameters that are gathered in turn, and the sections of a micro-batch.

    ``kept`` are gathered from begin to end, ``persistent_bytes`` from step to step.
    """

    weights: tuple[Weight, ...]
    sections: tuple[Section, ...]
    kept: frozenset[int]
    persistent_bytes: int


class _Module(NamedTuple):
    """A module with the numbers of its own parameters, and those in it as they run."""

    weights: tuple[int, ...] = ()
    children: tuple[_Module, ...] = ()

    def forward(self) -> Iterator[tuple[int, ...]]:
        yield self.weights
        for child in self.children:
            yield from child.forward()

    def backward(self) -> Iterator[tuple[int, ...]]:
        yield self.weights
        for child in reversed(self.children):
            yield from child.backward()


@dataclass(frozen=True)
class Fetching:
    """What decides which parameters are whole.

    ``targets`` and ``rank`` of the adapters (0 without), bytes of an ``element`` and of an ``adapter_element``.
    ``copies``: shards lie on the host and are copied to the device first. ``holds_frozen``: what a recomputation
    gathers of frozen parameters stays to the end of the backward, not of the layer's. ``external_head``: the loss reads
    the head's weight without calling its module. ``lingers``: what was copied from the host to be sent stays until the
    gathered parameter is used, as it does where NCCL's watchdog, which looks every tenth of a second, does not see to
    it before: two H200 held 0 to 0.6 GB so, another amount in every step. ``prefetch`` and ``persists``: elements that
    are gathered ahead, and up to which a parameter stays whole; None: what transformers makes of "auto".
    """

    model: ModelProfile
    targets: str
    rank: int
    element: int
    adapter_element: int
    checkpointing: bool
    ranks: int
    copies: bool
    holds_frozen: bool
    external_head: bool
    lingers: bool = True
    prefetch: int | None = None
    persists: int | None = None

    @property
    def prefetch_elements(self) -> int:
        """stage3_prefetch_bucket_size."""
        return int(PREFETCH * self.model.hidden_size**2) if self.prefetch is None else self.prefetch

    @property
    def persistent_elements(self) -> int:
        """stage3_param_persistence_threshold."""
        return PERSISTS * self.model.hidden_size if self.persists is None else self.persists


@lru_cache(maxsize=64)
def order_of(fetching: Fetching) -> Order:
    """The order in which a micro-batch uses parameters; layers are places 1, 2, …, what surrounds them is 0."""
    model, found = fetching.model, _Weights(fetching)
    base = found.only(model.embedding_params)
    head = base if model.tied else found.only(model.embedding_params)
    layers = [_layer(found, layer, fetching) for layer in model.layers]
    places = range(1, len(layers) + 1)
    # An external weight counts as the causal model's own; around that are peft's two, in it the decoder.
    around: tuple[tuple[int, ...], ...] = ((),) * (2 if fetching.rank else 0)
    around += (head, ()) if fetching.external_head else ((), ())
    heads = () if fetching.external_head else (head,)
    sections = [Section("embedding", 0, (*around, base, ()))]
    sections += [Section("forward", place, tuple(layers[place - 1].forward())) for place in places]
    sections += [Section("head", 0, ((), *heads)), Section("head backward", 0, (*around[:-1], *heads, (), ()))]
    for place in reversed(places):
        layer = layers[place - 1]
        if fetching.checkpointing:
            sections.append(Section("recompute", place, tuple(layer.forward())[1:]))
        sections.append(Section("backward", place, tuple(layer.backward())))
    sections.append(Section("end", 0, (base,)))
    kept = frozenset(head if fetching.external_head else ())
    return Order(tuple(found.weights), tuple(sections), kept, found.persistent_bytes)


def _layer(found: _Weights, layer: LayerProfile, fetching: Fetching) -> _Module:
    """A decoder layer: norms, attention and MLP, with experts and adapters."""
    adapted = {each.path for each in layer_targets_named(layer, fetching.targets)} if fetching.rank else set()
    parts: dict[str, list[_Module]] = {}
    for linear in layer.linears:
        part = parts.setdefault(linear.part, [_Module()])  # a norm before it
        if linear.path in adapted:
            part.append(found.adapted(linear.weight_params, linear.in_features, linear.out_features))
        else:
            part.append(_Module(found.only(linear.weight_params)))
    if "mlp" in parts:
        parts["mlp"].insert(2, _Module())  # the activation
    experts = layer.mlp.experts
    if experts:
        mixture = parts.setdefault("mlp", [_Module()])
        mixture += [_Module(found.only(experts.router_params)), _Module(found.only(experts.params))]
        for each in expert_targets_named(layer, fetching.targets) if fetching.rank else ():
            mixture.append(_Module(found.only(each.params_per_rank * fetching.rank, adapts=True)))
    children: list[_Module] = []
    for norm, *modules in parts.values():
        children += [norm, _Module((), tuple(modules))]
    return _Module((), tuple(children))


class _Weights:
    """Numbers parameters, but those that stay gathered."""

    def __init__(self, fetching: Fetching) -> None:
        self._fetching = fetching
        self._stays = fetching.persistent_elements
        self.weights: list[Weight] = []
        self.persistent_bytes = 0

    def adapted(self, elements: int, inputs: int, outputs: int) -> _Module:
        """peft's wrapper around a projection: the projection, dropout, A and B."""
        rank = self._fetching.rank
        first, second = (_Module(self.only(rank * each, adapts=True)) for each in (inputs, outputs))
        return _Module((), (_Module(self.only(elements)), _Module(), first, second))

    def only(self, elements: int, *, adapts: bool = False) -> tuple[int, ...]:
        """The number of a new parameter, if it does not stay."""
        fetching = self._fetching
        element = fetching.adapter_element if adapts else fetching.element
        if elements <= self._stays:
            self.persistent_bytes += elements * element
            return ()
        self.weights.append(Weight(elements, element, adapts or not fetching.rank))
        return (len(self.weights) - 1,)
