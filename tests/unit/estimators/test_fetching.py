"""ZeRO-3's gathering, on the small model (see small.py) and on models that were measured."""

from dataclasses import replace

import pytest
from small import EMBEDDING, HIDDEN, LAYERS, SMALL, small_model

from ftplan.estimators.fetching import Coordinator, live
from ftplan.estimators.module_order import PERSISTS, Fetching, order_of
from ftplan.profiles.models import list_models, load_model
from ftplan.units import MIB

FULL = Fetching(
    model=SMALL,
    targets="",
    rank=0,
    element=2,
    adapter_element=4,
    checkpointing=True,
    ranks=2,
    copies=False,
    holds_frozen=False,
    external_head=False,
)
LORA = replace(FULL, targets="all-linear", rank=16)
PROJECTIONS = [4096, 2048, 2048, 4096, 16384, 16384, 16384]


class Memory:
    """Keeps what is gathered, and the most it held."""

    def __init__(self):
        self.sizes, self.left, self.among_kernels = [], set(), []
        self.now = self.peak = 0

    def allocate(self, size, *, among_kernels=False):
        self.sizes.append(size)
        self.left.add(len(self.sizes) - 1)
        self.among_kernels += [size] if among_kernels else []
        self.now += size
        self.peak = max(self.peak, self.now)
        return len(self.sizes) - 1

    def release(self, key):
        self.left.remove(key)
        self.now -= self.sizes[key]


def micro_batches(fetching, count=2):
    """Memory after each section of the first and later micro-batches."""
    memory = Memory()
    coordinator = Coordinator(fetching, memory)
    found = []
    for number in range(count):
        coordinator.begin(records=number == 0)
        for section in order_of(fetching).sections:
            memory.peak = memory.now
            coordinator.run(section)
            found.append((number, section.kind, section.place, memory.now, memory.peak))
    return memory, found


def gathered(fetching, section):
    weights = order_of(fetching).weights
    return [weights[each].elements for module in section.modules for each in module]


def test_layers_use_their_projections_in_order_and_backward_in_reverse():
    by_kind = {each.kind: each for each in order_of(FULL).sections if each.place in (0, 1)}
    assert gathered(FULL, by_kind["forward"]) == PROJECTIONS
    assert gathered(FULL, by_kind["recompute"]) == PROJECTIONS
    assert gathered(FULL, by_kind["backward"]) == PROJECTIONS[::-1]
    assert gathered(FULL, by_kind["head"]) == gathered(FULL, by_kind["embedding"]) == [EMBEDDING]


def test_a_layer_s_backward_comes_after_that_of_the_next():
    places = [each.place for each in order_of(FULL).sections if each.kind == "backward"]
    assert places == list(range(LAYERS, 0, -1))


def test_every_module_is_called_with_or_without_parameters():
    forward = next(each for each in order_of(FULL).sections if each.kind == "forward")
    assert len(forward.modules) == 13  # the layer, two norms, attention, four projections, MLP, three, the activation
    assert len(next(each for each in order_of(LORA).sections if each.kind == "forward").modules) == 13 + 7 * 4


def test_what_persists_is_not_gathered_in_turn():
    order = order_of(replace(LORA, rank=2))
    assert min(weight.elements for weight in order.weights) > PERSISTS * HIDDEN
    assert order.persistent_bytes == 4 * 4224 * 2


def test_adapters_are_gathered_after_what_they_adapt_in_their_own_dtype():
    fetching = replace(LORA, model=small_model(hidden_size=512, num_attention_heads=32, intermediate_size=65536))
    order = order_of(fetching)
    section = next(each for each in order.sections if each.kind == "forward")
    last = [order.weights[each] for module in section.modules for each in module][-3:]
    assert [(each.elements, each.element, each.trains) for each in last] == [
        (512 * 65536, 2, False),
        (16 * 65536, 4, True),
        (16 * 512, 4, True),
    ]  # down, its A and its B


@pytest.mark.parametrize("fetching", [FULL, LORA, replace(FULL, external_head=True), replace(FULL, copies=True)])
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_everything_is_released_in_the_end(fetching, ranks):
    memory, _ = micro_batches(replace(fetching, ranks=ranks), 3)
    assert not memory.left


def test_the_first_micro_batch_holds_one_parameter_at_a_time():
    _, found = micro_batches(FULL, 1)
    assert max(peak for *_, peak in found) == 2 * EMBEDDING
    assert max(peak for _, kind, _, _, peak in found if kind == "forward") == 2 * 16384


def test_a_small_model_stays_whole_once_the_order_is_known():
    _, found = micro_batches(FULL)
    at_loss = next(now for number, kind, _, now, _ in found if number == 1 and kind == "head")
    assert at_loss == 2 * (LAYERS * sum(PROJECTIONS) + 2 * EMBEDDING)


def test_a_weight_that_the_loss_reads_is_found_there_first_and_gathered_from_the_start_then():
    memory, found = micro_batches(replace(FULL, external_head=True))
    assert memory.among_kernels == [2 * EMBEDDING]
    first = next(now for number, kind, _, now, _ in found if number == 1 and kind == "embedding")
    assert first >= 2 * EMBEDDING


def test_recomputed_frozen_weights_stay_with_their_layer_or_to_the_end():
    model = load_model("llama-3.2-1b")
    lora = replace(LORA, model=model)
    _, found = micro_batches(lora, 1)
    _, held = micro_batches(replace(lora, holds_frozen=True), 1)

    def last(each):
        return next(peak for _, kind, place, _, peak in each if kind == "backward" and place == 1)

    layers = 2 * sum(linear.weight_params for layer in model.layers for linear in layer.linears)
    assert last(found) < layers / 10
    assert last(held) > layers


def test_copies_that_linger_only_add():
    copied = replace(FULL, model=load_model("tinyllama-1.1b"), copies=True)
    brief, lingering = live(replace(copied, lingers=False)), live(copied)
    assert all(one <= other for one, other in zip(brief, lingering, strict=True))
    assert brief.forward < lingering.forward


def test_one_rank_gathers_nothing_that_is_on_the_device():
    assert live(replace(FULL, ranks=1)) == (0, 0, 0)
    assert live(replace(FULL, ranks=1, copies=True)).loss > 0


@pytest.mark.parametrize(
    ("model", "fetching", "measured"),
    [
        ("llama-3.2-1b", LORA, (1957, 1932)),  # traced, and seen in the history of an H200's allocator
        ("tinyllama-1.1b", replace(FULL, copies=True, lingers=False), (None, 1911)),
    ],
)
def test_as_an_allocator_s_history_shows(model, fetching, measured):
    found = live(replace(fetching, model=load_model(model), external_head=True))
    for told, seen in zip(found, measured, strict=False):
        assert seen is None or told / MIB == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize("name", [each.id for each in list_models()][::7])
@pytest.mark.parametrize("fetching", [FULL, LORA], ids=["full", "lora"])
def test_no_model_has_more_whole_than_all_it_has(name, fetching):
    model = load_model(name)
    found = live(replace(fetching, model=model))
    adapters = order_of(replace(fetching, model=model))
    own = sum(weight.elements * weight.element for weight in adapters.weights) + adapters.persistent_bytes
    assert all(0 < each <= 2 * own for each in found)  # what was gathered together stands twice for a while
