# ruff: noqa: N802 (the names are NVML's)
import sys
from types import SimpleNamespace

import pytest
from test_detect import Card, FakeNvml

from ftplan.profiles.cards_now import NO_CARDS, CardProcess, cards_now
from ftplan.units import GIB, MIB


class BusyNvml(FakeNvml):
    """Cards with processes and modes, by index; what is not in ``modes`` the driver does not tell."""

    def __init__(self, cards, processes=(), **modes):
        super().__init__(cards)
        self.processes, self.modes = processes, modes

    def _told(self, name):
        if name not in self.modes:
            raise self.NVMLError("not supported")
        return self.modes[name]

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.processes]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.processes[:1]]

    def nvmlSystemGetProcessName(self, pid):
        if pid == 2:
            raise self.NVMLError("another namespace")
        return b"/usr/bin/python"

    def nvmlDeviceGetComputeMode(self, card):
        return self._told("compute_mode")

    def nvmlDeviceGetMigMode(self, card):
        return self._told("mig")


CARD = Card("NVIDIA H100 80GB HBM3", 81559, 40000)


@pytest.fixture
def nvml(monkeypatch):
    def install(*cards, **options):
        fake = BusyNvml(list(cards), **options)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


def test_free_memory_and_who_holds_the_rest(nvml):
    fake = nvml(CARD, processes=[(1, 20 * GIB), (2, None)])
    now = cards_now()
    assert (now.driver, now.installed) == ("580.65", 1)
    (card,) = now.cards
    assert (card.total_bytes, card.free_bytes) == (81559 * MIB, 40000 * MIB + 5)
    # A process may do both, computation and graphics; one of another namespace has no name.
    assert card.processes == (CardProcess(1, "python", 20 * GIB), CardProcess(2, "", None))
    assert fake.open == 0


def test_what_the_driver_does_not_tell_is_the_usual(nvml):
    nvml(CARD)
    (card,) = cards_now().cards
    assert (card.compute_mode, card.splits, card.processes) == ("default", False, ())


def test_modes(nvml):
    nvml(CARD, compute_mode=3, mig=(1, 1))
    (card,) = cards_now().cards
    assert (card.compute_mode, card.splits) == ("exclusive", True)


def test_cards_that_are_hidden_are_counted(nvml, monkeypatch):
    nvml(CARD, CARD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    now = cards_now()
    assert (now.installed, len(now.cards)) == (2, 1)


def test_a_card_whose_memory_is_not_told_is_left_out(nvml):
    nvml(CARD).memory = False
    assert cards_now().cards == ()


def test_no_driver(nvml):
    nvml(CARD).driver = False
    assert cards_now() == NO_CARDS
