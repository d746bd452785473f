"""Expansion of hand-made streams: copies between the middle units, references across the gap, and what is refused."""

import pytest

from ftplan.estimators.trace.expand import NotExpandableError, expand
from ftplan.estimators.trace.record import NO_LAYER, Allocation, Recording
from ftplan.estimators.trace.replay import replay
from ftplan.estimators.trace.stream import Event, Kind
from ftplan.results import Phase

MIB = 1 << 20


class Script:
    """A recording written by hand: what each unit allocates and frees, by name."""

    def __init__(self) -> None:
        self.recording = Recording()
        self.names: dict[str, int] = {}

    def alloc(self, name: str, unit: int, size: int = MIB, *, loose: bool = False) -> None:
        self.names[name] = key = len(self.recording.allocations)
        self.recording.allocations.append(Allocation(size, "aten::empty", "", Phase.FORWARD, unit, 0))
        self._event(Event(Kind.ALLOC, key, size), unit, loose=loose)

    def free(self, name: str, unit: int, *, loose: bool = False) -> None:
        self._event(Event(Kind.FREE, self.names[name]), unit, loose=loose)

    def _event(self, event: Event, unit: int, *, loose: bool) -> None:
        self.recording.events.append(event)
        self.recording.labels.append(unit)
        self.recording.loose.append(loose)


def residual_stream(layers: int) -> Recording:
    """Every layer keeps something and frees the output of the layer below; then all is freed backwards."""
    script = Script()
    script.alloc("input", NO_LAYER)
    below = "input"
    for unit in range(layers):
        script.alloc(f"saved{unit}", unit, 3 * MIB)
        script.alloc(f"output{unit}", unit)
        script.free(below, unit)
        below = f"output{unit}"
    script.alloc("loss", NO_LAYER, 5 * MIB)
    for unit in reversed(range(layers)):
        script.alloc(f"gradient{unit}", unit, 2 * MIB)
        script.free(f"saved{unit}", unit)
    script.free("loss", NO_LAYER)
    return script.recording


def shape(recording: Recording) -> list[tuple[Kind, int]]:
    return [
        (event.kind, event.size or recording.allocations[event.key].size if event.kind is Kind.FREE else event.size)
        for event in recording.events
    ]


@pytest.mark.parametrize("layers", [5, 9, 32])
def test_the_expansion_is_the_whole_stream(layers):
    expanded, whole = expand(residual_stream(4), layers - 4), residual_stream(layers)
    assert shape(expanded) == shape(whole)
    assert expanded.labels == whole.labels
    assert replay(expanded.events) == replay(whole.events)


def test_nothing_left_out_is_the_same_recording():
    recording = residual_stream(4)
    assert expand(recording, 0) is recording


def test_releases_in_no_order_are_put_in_order():
    """Autocast's cache drops its casts as a hash table has them."""
    script = Script()
    for unit in range(4):
        for number in range(2):
            script.alloc(f"cast{unit}.{number}", unit)
    for unit, number in [(2, 1), (0, 0), (3, 1), (1, 0), (1, 1), (2, 0), (0, 1), (3, 0)]:
        script.free(f"cast{unit}.{number}", unit, loose=True)
    expanded = expand(script.recording, 3)
    assert replay(expanded.events).end_allocated_bytes == 0
    assert len(expanded.events) == 2 * 2 * 7


def test_layers_that_differ_are_refused():
    script = Script()
    for unit in range(4):
        script.alloc(f"saved{unit}", unit, MIB * (2 if unit == 2 else 1))
    with pytest.raises(NotExpandableError, match="differ"):
        expand(script.recording, 1)


def test_a_middle_layer_by_itself_is_refused():
    script = Script()
    for unit in range(4):
        script.alloc(f"saved{unit}", unit)
        script.alloc(f"between{unit}", NO_LAYER)
    with pytest.raises(NotExpandableError, match="do not meet"):
        expand(script.recording, 1)


def test_the_work_of_a_middle_layer_is_repeated():
    recording = residual_stream(4)
    for unit in range(4):
        recording.costs[unit, Phase.FORWARD].kernels = 10
    expanded = expand(recording, 6)
    assert sum(cost.kernels for cost in expanded.costs.values()) == 100
