"""The autograd over sizes: when a storage lives, what a graph keeps, what checkpointing makes again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.estimators.tape import operations as ops
from ftplan.estimators.tape.graph import Parameter, Tensor
from ftplan.estimators.tape.machine import Reduction, Tape
from ftplan.estimators.tape.sizes import GRADIENTS, RECOMPUTED, Event, Size

ROW = Size(tokens=1)
FP32 = 4


def live(tape):
    """Sizes of what is allocated, by key."""
    found = {}
    for event in tape.events:
        if isinstance(event, Event):
            if event.size is None:
                del found[event.key]
            else:
                found[event.key] = event
    return list(found.values())


def names(tape):
    return [event.name for event in tape.events if isinstance(event, Event) and event.size is not None]


def trained(tape, elements=7):
    """A tensor through which a gradient flows to the parameter that made it."""
    parameter = Parameter(elements, FP32, trains=True)

    def backward(_):
        return (tape.empty(Size(fixed=elements), FP32, name=GRADIENTS),)

    return parameter, tape.operation((parameter,), backward, lambda: tape.empty(ROW, FP32))


def run_backward(tape, value):
    tape.backward(value, Tensor(ROW, FP32, None))


def test_a_storage_lives_as_long_as_one_of_its_views():
    tape = Tape()
    whole = tape.empty(ROW, FP32)
    view = ops.viewed(whole)
    del whole
    assert [event.size for event in live(tape)] == [Size(tokens=4)]
    del view
    assert live(tape) == []


def test_an_operation_keeps_what_it_saves_until_its_backward_ran():
    tape = Tape()
    _, value = trained(tape)
    result = ops.unary(tape, value)
    del value
    assert len(live(tape)) == 2
    run_backward(tape, result)
    del result
    assert names(tape)[-1] == GRADIENTS
    assert [event.name for event in live(tape)] == [GRADIENTS]


def test_an_operation_that_saves_nothing_keeps_nothing():
    tape = Tape()
    _, value = trained(tape)
    result = ops.unary(tape, value, saves=False)
    del value
    assert len(live(tape)) == 1
    assert result.requires_grad


def test_without_a_graph_nothing_is_kept():
    tape = Tape()
    _, value = trained(tape)
    with tape.without_graph():
        result = ops.unary(tape, value)
    del value
    assert not result.requires_grad
    assert len(live(tape)) == 1


def test_what_needs_no_gradient_is_not_in_the_graph():
    tape = Tape()
    result = ops.unary(tape, tape.empty(ROW, FP32))
    assert not result.requires_grad
    assert len(live(tape)) == 1


def backward_allocations(tape, value):
    before = len(tape.events)
    run_backward(tape, value)
    return [event.name for event in tape.events[before:] if isinstance(event, Event) and event.size is not None]


def test_gradients_of_two_branches_are_summed_into_the_first_if_it_is_nobody_else_s():
    tape = Tape()
    _, value = trained(tape)
    both = ops.add(tape, ops.unary(tape, value), ops.unary(tape, value))
    assert len(backward_allocations(tape, both)) == 2 + 1


def test_gradients_of_two_branches_need_a_third_tensor_where_the_first_is_a_view():
    tape = Tape()
    _, value = trained(tape)
    twice = ops.join(tape, [value, value])
    assert len(backward_allocations(tape, twice)) == 1 + 1


def test_a_gradient_stays_with_its_parameter():
    tape = Tape()
    parameter, value = trained(tape, elements=11)
    run_backward(tape, ops.unary(tape, value))
    del value
    assert parameter.gradient is not None
    assert [event.size for event in live(tape)] == [Size(fixed=44)]
    tape.forget_gradients()
    assert live(tape) == []


def test_an_accumulated_gradient_lies_elsewhere():
    tape = Tape(accumulates=True)
    _, value = trained(tape)
    run_backward(tape, ops.unary(tape, value))
    del value
    assert live(tape) == []


def three(tape, value):
    for _ in range(3):
        value = ops.unary(tape, value)
    return value


def recomputed(keep):
    """How many results a backward makes again; before it the input alone is held, after it the gradient."""
    tape = Tape()
    _, value = trained(tape)
    result = keep(tape, lambda hidden: three(tape, hidden), value)
    del value
    assert len(live(tape)) == 2
    run_backward(tape, result)
    del result
    assert [event.name for event in live(tape)] == [GRADIENTS]
    return names(tape).count(RECOMPUTED)


def test_checkpointing_keeps_the_input_only_and_runs_again_up_to_the_last_tensor_that_was_saved():
    assert recomputed(Tape.checkpoint) == 2  # the third result is saved by nothing


def test_the_older_checkpointing_runs_all_of_it_again():
    assert recomputed(Tape.checkpoint_reentrant) == 3


@pytest.mark.parametrize(("shards", "element", "size"), [(4, 4, 12), (1, 4, 44), (4, 0, 0)])
def test_reduced_gradients_become_shards(shards, element, size):
    tape = Tape(reduction=Reduction("part", shards, element))
    parameter, value = trained(tape, elements=11)
    run_backward(tape, ops.unary(tape, value))
    tape.leave(0, final=True)
    del value
    assert parameter.gradient is None
    assert [event.size.fixed for event in live(tape) if event.name == GRADIENTS] == [size]


STEPS = st.lists(st.sampled_from(("unary", "keeps", "branch", "join", "constant", "cast", "checkpoint")), max_size=12)


@given(STEPS, st.booleans())
def test_a_program_leaves_only_gradients(steps, reentrant):
    """Whatever it consists of, a backward gives back all that the forward kept."""
    tape = Tape()
    _, value = trained(tape)
    for step in steps:
        if step == "unary":
            value = ops.unary(tape, value)
        elif step == "keeps":
            value = ops.unary(tape, value, saves=False, saves_output=True)
        elif step == "branch":
            value = ops.multiply(tape, value, ops.unary(tape, value))
        elif step == "join":
            value = ops.add(tape, ops.times_constant(tape, value), value)
        elif step == "constant":
            value = ops.times_constant(tape, value)
        elif step == "cast":
            value = ops.to(tape, value, 2 if value.element == FP32 else FP32)
        else:
            keep = tape.checkpoint_reentrant if reentrant else tape.checkpoint
            value = keep(lambda hidden: three(tape, hidden), value)
    tape.backward(value, Tensor(ROW, value.element, None))
    del value
    assert {event.name for event in live(tape)} == {GRADIENTS}
    assert len(live(tape)) == 1
