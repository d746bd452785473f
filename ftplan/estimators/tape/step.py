"""One step as a program: embedding, a layer of each kind, head and loss, and all of it backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.attention import is_eager, mask_kind
from ftplan.estimators.tape.decoder import layer_program
from ftplan.estimators.tape.gathering import Gathering
from ftplan.estimators.tape.graph import Tensor
from ftplan.estimators.tape.head import INDEX, Outside
from ftplan.estimators.tape.layer import Layer
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.modules import Options, Targets
from ftplan.estimators.tape.sizes import Event, Mark, Size
from ftplan.profiles.model_schema import LayerGroup, LayerProfile, ModelProfile

OUTSIDE = 0
FORWARD, LOSS, LOSS_BACKWARD, BACKWARD = "forward", "loss", "loss backward", "backward"
END, EVALUATION, EVALUATED = "end", "evaluation", "evaluated"


@dataclass(frozen=True)
class Part:
    """``count`` layers of a ``kind``, of which the program runs one; the storages of its input and its result."""

    kind: int
    count: int
    source: int
    result: int


@dataclass(frozen=True)
class Recorded:
    """The events of a step and the parts they belong to; place 0 is outside the layers, place n part n.

    ``order`` is the place of every layer of the model.
    """

    events: tuple[Event | Mark, ...]
    parts: tuple[Part, ...]
    order: tuple[int, ...]


def record(
    model: ModelProfile, options: Options, targets: dict[LayerProfile, Targets], *, whole: bool = False
) -> Recorded:
    """Run the program of a step of ``model``; ``targets`` are the adapted modules of each kind of layer.

    ``whole`` runs every layer, in order, instead of one of each kind. Where layers are gathered, the first and the last
    run too: what is gathered and reduced beside them is another.
    """
    tape = Tape(autocast=bool(options.autocast), accumulates=options.accumulates, reduction=options.reduction)
    tape.keeps_linear_inputs = options.keeps_linear_inputs
    outside = Outside(model, options)
    gathering = Gathering(tape, options.groups)
    tape.mark(FORWARD)
    gathering.begin()
    inputs = _inputs(tape, model, options)
    hidden = outside.embed(tape)
    gathering.embedded()
    parts: list[Part] = []
    for kind, group, repeats in _runs(model, whole=whole, ends=options.groups is not None):
        count = repeats
        while count:
            came_in = hidden.element, hidden.requires_grad
            source = _key(hidden)
            program = layer_program(model.model_type, group.layer, options, targets[group.layer])
            tape.place = len(parts) + 1
            tape.name = "layer outputs"
            gathering.enter(tape.place, kind)
            before, tape.returned = tape.returned, []
            hidden = _run(tape, program, hidden, options)
            del before
            gathering.leave(tape.place)
            # What comes in decides what runs: a first layer whose output differs stands for itself.
            same = (hidden.element, hidden.requires_grad) == came_in
            parts.append(Part(kind, count if same else 1, source, _key(hidden)))
            count -= parts[-1].count
    tape.place = OUTSIDE
    tape.returned.clear()
    tape.mark(LOSS)
    tape.name = "logits and loss"
    gathering.at_loss(tiled=options.loss_path == "chunked")
    outside.at_logits_backward = gathering.at_logits_backward
    tape.entered = lambda place: _enter(gathering, parts, place)
    loss = outside.loss(tape, hidden)
    del hidden
    if not options.checkpointing:
        inputs.clear()  # else what checkpointed layers are called with again
    tape.mark(LOSS_BACKWARD)
    gathering.turn()
    tape.backward(loss, Tensor(Size(tokens=1), 4, None))
    tape.leave(tape.place, final=True)
    gathering.finish()
    tape.mark(END)
    inputs.clear()
    _evaluate(tape, model, options, targets, outside)
    return Recorded(
        tuple(tape.events), tuple(parts), tuple(range(1, len(parts) + 1)) if whole else _order(model, parts)
    )


def _runs(model: ModelProfile, *, whole: bool, ends: bool) -> list[tuple[int, LayerGroup, int]]:
    """(number of the group, group, layers of it): each group once, or every layer by itself.

    ``ends``: the model's first and last layer stand for themselves.
    """
    kinds = _kinds(model)
    if whole:
        return [(kind, model.groups[kind], 1) for kind in kinds]
    left = [group.count for group in model.groups]
    first, last = (kinds[:1], kinds[-1:]) if ends and len(kinds) > 1 else ([], [])
    for kind in first + last:
        left[kind] -= 1
    between = [(kind, model.groups[kind], count) for kind, count in enumerate(left) if count]
    return [*((kind, model.groups[kind], 1) for kind in first), *between, *((k, model.groups[k], 1) for k in last)]


def _kinds(model: ModelProfile) -> list[int]:
    """The group of every layer."""
    kinds = [0] * model.layer_count
    done = 0
    for kind, group in enumerate(model.groups):
        for index in group.indices or range(done, done + group.count):
            kinds[index] = kind
        done += group.count
    return kinds


def _order(model: ModelProfile, parts: Sequence[Part]) -> tuple[int, ...]:
    """The place of each layer: parts of a group take its layers in turn."""
    waiting: list[list[int]] = [[] for _ in model.groups]
    for place, part in enumerate(parts, start=1):
        waiting[part.kind] += [place] * part.count
    taken = [iter(places) for places in waiting]
    return tuple(next(taken[kind]) for kind in _kinds(model))


def _key(value: Tensor) -> int:
    assert value.storage is not None
    return value.storage.key


def _inputs(tape: Tape, model: ModelProfile, options: Options) -> list[Tensor]:
    """Token ids and labels, rotary tables, and the masks that layers get: boolean for sdpa, additive for eager."""
    ids = 2 + options.padding + options.packing
    with tape.named("input"):
        made = [tape.empty(Size(tokens=ids), INDEX)]
        kinds: dict[tuple[tuple[Size, int] | None, object], None] = {}
        for group in model.groups:
            attention = group.layer.attention
            if attention.positions == "rope":
                made[1:2] = [tape.empty(Size(length=2 * attention.rotary_dim), options.compute)]
            window = attention.window is not None and options.seq_len >= attention.window
            kinds[mask_kind(group.layer, options), window or (is_eager(group.layer, options) and attention.window)] = (
                None
            )
        for kind, _ in kinds:
            if kind is not None:
                made.append(tape.empty(*kind))
    return made


def _evaluate(
    tape: Tape,
    model: ModelProfile,
    options: Options,
    targets: dict[LayerProfile, Targets],
    outside: Outside,
) -> None:
    """A forward without a graph: one layer of each kind, whose memory is free again after it."""
    tape.forget_gradients()
    tape.mark(EVALUATION)
    tape.place, tape.training = OUTSIDE, False
    gathering = Gathering(tape, options.groups)
    gathering.begin()
    with tape.without_graph():
        hidden = outside.embed(tape)
        gathering.embedded()
        for kind, group in enumerate(model.groups):
            gathering.enter(kind + 1, kind)
            program = layer_program(model.model_type, group.layer, options, targets[group.layer])
            tape.name = "evaluation"
            hidden = _called(tape, program, hidden, options)
            tape.returned.clear()
            gathering.leave(kind + 1)
        gathering.at_loss(tiled=options.loss_path == "chunked")
        tape.name = "logits and loss"
        outside.loss(tape, hidden)
    tape.mark(EVALUATED)
    gathering.finish()


def _enter(gathering: Gathering, parts: list[Part], place: int) -> None:
    if place:
        gathering.backward(place, repeats=parts[place - 1].count > 1)
    else:
        gathering.backward_outside()


def _run(tape: Tape, program: Layer, hidden: Tensor, options: Options) -> Tensor:
    if not options.checkpointing:
        return _called(tape, program, hidden, options)
    keep = tape.checkpoint_reentrant if options.reentrant else tape.checkpoint
    return keep(lambda value: _called(tape, program, value, options), hidden)


def _called(tape: Tape, program: Layer, hidden: Tensor, options: Options) -> Tensor:
    """Run a layer; under FSDP2's mixed precision its result takes the policy's output dtype."""
    out = program(tape, hidden)
    if tape.in_backward or not program.returns_scores:
        tape.returned.clear()
    casts = options.groups is not None and options.autocast
    return ops.to(tape, out, options.compute) if casts else out
