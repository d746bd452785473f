"""What surrounds the layers: embedding, final norm, head and loss, as programs."""

from __future__ import annotations

from collections.abc import Callable

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.graph import Leaf, Parameter, Tensor
from ftplan.estimators.tape.machine import Tape
from ftplan.estimators.tape.modules import Norm, Options
from ftplan.estimators.tape.operations import FP32
from ftplan.estimators.tape.sizes import GRADIENTS, Rule, Size
from ftplan.profiles.model_schema import ModelProfile

INDEX: int = 8
"""Bytes of a token id, label or position."""


class Outside:
    """Embedding and head of a model, tied or not."""

    def __init__(self, model: ModelProfile, options: Options) -> None:
        self.model = model
        self.options = options
        trains = options.trains_all
        uses = max(1, options.loss_chunks) + (1 if model.tied else 0)
        own = uses if model.tied else 1
        self.embedding_weight = Parameter(model.embedding_params, options.unquantized, trains=trains, uses=own)
        self.head_weight = (
            self.embedding_weight
            if model.tied
            else Parameter(model.embedding_params, options.unquantized, trains=trains, uses=max(1, options.loss_chunks))
        )
        self.head_bias = Parameter(model.vocab_size, options.unquantized, trains=trains) if model.head_bias else None
        self.norms = [Norm(each, options) for each in model.outer_norms]
        self.hidden = Size(tokens=model.hidden_size)
        self.at_logits_backward: Callable[[], None] = lambda: None

    def embed(self, tape: Tape) -> Tensor:
        """Token ids to hidden states; a leaf that requires gradients where adapters need them from the start."""
        options, weight = self.options, self.embedding_weight
        with tape.named("input"):
            rows, width = self.model.vocab_size, self.model.hidden_size

            def backward(_: Tensor) -> tuple[Tensor]:
                return (self._embedding_gradient(tape, rows, width),)

            hidden = tape.operation((weight,), backward, lambda: tape.empty(self.hidden, weight.element))
            if not options.trains_all and options.inputs_require_gradients:
                hidden.node = Leaf(hidden)
            if self.model.embedding_scale:
                hidden = ops.times_constant(tape, hidden)
            if self.model.position_params:
                hidden = self._positioned(tape, hidden)
            for norm in self.norms[:-1]:
                hidden = norm(tape, hidden)
            return ops.dropout(tape, hidden, options.embedding_dropout)

    def _positioned(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Learned positions, looked up and added."""
        params, element = self.model.position_params, self.options.unquantized
        weight = Parameter(params, element, trains=self.options.trains_all)
        positions = tape.operation(
            (weight,),
            lambda _: (tape.empty(Size(fixed=params), element, name=GRADIENTS),),
            lambda: tape.empty(self.hidden, element),
        )
        return ops.add(tape, hidden, positions)

    def _embedding_gradient(self, tape: Tape, rows: int, width: int) -> Tensor:
        """Rows of V x H; the kernel sorts the ids and sums in fp32."""
        made = tape.empty(Size(fixed=rows * width), self.embedding_weight.element, name=GRADIENTS)
        tape.by_rule(Rule("embedding", rows, width), "scratch")
        return made

    def logits(self, tape: Tape, hidden: Tensor, *, parts: int = 1, first_back: bool = True) -> Tensor:
        """The head's product, soft-capped where the model has it, or that of one of ``parts`` of the tokens.

        ``first_back``: its backward is the head's first.
        """
        options = self.options
        size = Size(tokens=self.model.vocab_size / parts)
        logits = ops.linear(tape, hidden, self.head_weight, size, bias=self.head_bias, autocast=options.autocast)
        if first_back:
            logits = ops.watched(tape, logits, self.at_logits_backward)
        if self.model.logits_softcap:
            logits = ops.times_constant(tape, logits)
            logits = ops.unary(tape, logits, saves=False, saves_output=True)
            logits = ops.times_constant(tape, logits)
        return logits

    def loss(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Final norm, head and cross entropy, by the loss path; with accelerate's conversion of the outputs."""
        if self.norms:
            hidden = self.norms[-1](tape, hidden)
        path = self.options.loss_path
        if path == "full" or (path == "liger" and not tape.training):  # Liger's models evaluate on whole logits
            return self._full(tape, hidden)
        if path == "chunked":
            return self._in_parts(tape, hidden) if self.options.loss_chunks else self._tiled(tape, hidden)
        return self._fused(tape, hidden)

    def _full(self, tape: Tape, hidden: Tensor) -> Tensor:
        """transformers' loss over all logits in fp32."""
        logits = self.logits(tape, hidden)
        del hidden
        loss = _cross_entropy(tape, ops.to(tape, logits, FP32))
        tape.caches.clear()
        if self.options.casts_outputs and logits.element != FP32:
            converted = ops.like(tape, logits, FP32)
            del logits
            del converted
        return loss

    def _in_parts(self, tape: Tape, hidden: Tensor) -> Tensor:
        """torchtune's linear cross entropy: a part of the tokens at a time (0.7, modules/loss/cross_entropy_loss.py).

        Logits go with their part, the logarithms of probabilities in fp32 stay for the backward. All tokens are taken
        to have labels.
        """
        parts, size, element = self.options.loss_chunks, self.hidden, hidden.element
        rows = tape.operation((hidden,), lambda _: (tape.empty(size, element),), lambda: tape.empty(size, element))
        del hidden
        total: Tensor | None = None
        for number in range(parts):
            part = _slice(tape, rows, size.times(1 / parts))
            logits = self.logits(tape, part, parts=parts, first_back=number == parts - 1)
            loss = _cross_entropy(tape, ops.to(tape, logits, FP32))
            del logits, part
            total = loss if total is None else _sum(tape, total, loss)
        tape.caches.clear()
        assert total is not None
        return total

    def _tiled(self, tape: Tape, hidden: Tensor) -> Tensor:
        """TRL's fused head: a tile of logits at a time, made again in the backward (trl 1.16, chunked_logprob.py).

        The gradients of hidden states and head are summed in fp32 and converted.
        """
        options, model = self.options, self.model
        weight = ops.cast_weight(tape, self.head_weight, options.compute)
        hidden = ops.to(tape, hidden, options.compute)
        trains, element, size = self.head_weight.trains, options.compute, self.hidden
        # Rows with labels are gathered first.
        rows = tape.operation(
            (hidden,),
            lambda gradient: _scattered(tape, gradient),
            lambda: tape.empty(size, element),
        )
        del hidden
        tile = Rule("tile", element)

        begun = self.at_logits_backward

        def backward(_: Tensor, *__: object) -> tuple[Tensor | None, ...]:
            begun()
            by_hidden = tape.empty(size, FP32)
            by_head = tape.empty(Size(fixed=model.embedding_params), FP32, name=GRADIENTS) if trains else None
            held = tape.by_rule(tile)
            tape.multiplied()
            if element == FP32:
                return by_hidden, by_head
            made = tape.empty(size, element)
            head = tape.empty(Size(fixed=model.embedding_params), element, name=GRADIENTS) if trains else None
            del by_hidden, by_head, held
            return made, head

        def make() -> Tensor:
            tape.by_rule(tile)
            return Tensor(Size(tokens=1), FP32, None)

        out = tape.operation((rows, weight), backward, make, saved=(rows,))
        tape.caches.clear()
        return out

    def _fused(self, tape: Tape, hidden: Tensor) -> Tensor:
        """Liger's fused linear cross entropy: chunks of rows, whose gradients the forward makes."""
        options, model = self.options, self.model
        weight = ops.cast_weight(tape, self.head_weight, options.autocast) if options.autocast else self.head_weight
        trains = self.head_weight.trains
        by_hidden = ops.like(tape, hidden)
        head = Size(fixed=model.embedding_params)
        by_head = tape.empty(head, options.compute, name=GRADIENTS) if trains else None
        chunk = tape.by_rule(Rule("liger", model.vocab_size, model.hidden_size))
        tape.multiplied()
        del chunk
        if trains:
            made = tape.empty(head, options.compute)
            wide = tape.empty(head, FP32)
            del made, wide
        kept = [by_hidden] if by_head is None else [by_hidden, by_head]
        del by_hidden, by_head

        begun = self.at_logits_backward

        def backward(_: Tensor, own: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
            begun()
            return own, (rest[0] if rest else None)

        out = tape.operation((hidden, weight), backward, lambda: Tensor(Size(tokens=1), FP32, None), saved=kept)
        tape.caches.clear()
        return out


def _slice(tape: Tape, rows: Tensor, size: Size) -> Tensor:
    """A view of some rows; its gradient is one of all rows."""
    whole, element = rows.size, rows.element
    return tape.operation(
        (rows,),
        lambda _: (tape.empty(whole, element),),
        lambda: Tensor(size, element, rows.storage, view=True),
    )


def _sum(tape: Tape, first: Tensor, second: Tensor) -> Tensor:
    return tape.operation(
        (first, second), lambda gradient: (gradient, gradient), lambda: Tensor(Size(tokens=1), FP32, None)
    )


def _scattered(tape: Tape, gradient: Tensor) -> tuple[Tensor]:
    zeros = ops.like(tape, gradient)
    placed = ops.like(tape, gradient)
    del zeros
    made = ops.like(tape, gradient)
    del placed
    return (made,)


def _cross_entropy(tape: Tape, logits: Tensor) -> Tensor:
    """log_softmax keeps its result; the backward makes two gradients of its size."""

    def of_softmax(gradient: Tensor, _: object) -> tuple[Tensor]:
        return (ops.like(tape, gradient),)

    size = logits.size
    scores = tape.operation((logits,), of_softmax, lambda: tape.empty(size, FP32), saves_output=True)
    del logits

    def of_loss(_: Tensor) -> tuple[Tensor]:
        return (tape.empty(size, FP32),)

    return tape.operation((scores,), of_loss, lambda: Tensor(Size(tokens=1), FP32, None))
