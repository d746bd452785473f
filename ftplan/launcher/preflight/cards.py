"""Checks of the cards: driver, what is seen, modes that keep a process out, memory that is free now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ftplan.launcher.preflight.facts import Facts
from ftplan.launcher.preflight.findings import GPU_MEMORY, Finding, Status
from ftplan.launcher.preflight.needs import Needs
from ftplan.launcher.preflight.releases import is_before
from ftplan.profiles.cards_now import CardNow
from ftplan.profiles.packaged import packaged_json
from ftplan.units import MIB

NOTICED_BYTES: Final = 512 * MIB
"""What others may hold of a card before a word is said of it where no plan is given: a desktop takes less."""

PROCESSES_SHOWN: Final = 3


def check_driver(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """The driver must be there for a run on cards, and new enough for the CUDA that torch was built for."""
    driver, cuda = facts.cards.driver, facts.installed.torch_cuda
    if not driver:
        if needs is None or needs.on_gpus:
            yield Finding(
                "driver",
                Status.ERROR if needs else Status.WARNING,
                "no NVIDIA driver answers",
                "install the driver; in a container, start it with the cards (--gpus all)",
            )
        return
    least = _least_driver(facts)
    if not _is_too_old(facts):
        wanted = f", torch wants {least} or newer" if least else ""
        yield Finding("driver", Status.OK, f"NVIDIA driver {driver}{wanted}")
        return
    message = f"driver {driver} is older than {least}, which CUDA {cuda} of this torch asks for"
    if facts.torch is not None and facts.torch.devices:
        yield Finding("driver", Status.WARNING, f"{message}; a compatibility package makes up for it")
        return
    note = packaged_json("drivers.json")["forward_compatibility"]["note"]
    yield Finding("driver", Status.ERROR, message, f"a newer driver, or a torch for an older CUDA; {note}")


def _least_driver(facts: Facts) -> str:
    """The oldest driver for the CUDA of torch; empty where no source tells."""
    major = (facts.installed.torch_cuda or "").partition(".")[0]
    return str(packaged_json("drivers.json")["minimum"].get(major, ""))


def _is_too_old(facts: Facts) -> bool:
    least = _least_driver(facts)
    return bool(least) and is_before(facts.cards.driver, least)


def check_cards(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """As many visible cards as the run takes, and torch sees those that the driver sees."""
    if not facts.cards.driver or (needs is not None and not needs.on_gpus):
        return
    seen, wanted = len(facts.cards.cards), needs.ranks if needs else 0
    hidden = max(0, facts.cards.installed - seen)
    names = ", ".join(card.name for card in facts.cards.cards) or "none"
    figures = {"visible": seen, "installed": facts.cards.installed, "needed": wanted}
    if seen < wanted or not seen:
        because = f": CUDA_VISIBLE_DEVICES={facts.visible_devices}" if facts.visible_devices is not None else ""
        message = f"{seen} of {facts.cards.installed} cards are visible{because}" + (
            f", and the run takes {wanted}" if wanted else ""
        )
        fix = "unset CUDA_VISIBLE_DEVICES" if hidden else "run it where they are, or plan with --gpus local"
        yield Finding("GPUs", Status.ERROR if needs else Status.WARNING, message, fix, figures)
        return
    if _torch_differs(facts):
        assert facts.torch is not None
        why = f": {facts.torch.error}" if facts.torch.error else ""
        message = f"the driver shows {seen} cards, torch {len(facts.torch.devices)}{why}"
        yield Finding("GPUs", Status.ERROR, message, "reboot if the driver was updated; else reinstall torch", figures)
        return
    more = f"; {hidden} more hidden by CUDA_VISIBLE_DEVICES" if hidden else ""
    yield Finding("GPUs", Status.OK, f"{seen} visible: {names}{more}", "", figures)


def _torch_differs(facts: Facts) -> bool:
    """Whether torch, built for cards, sees others than the driver, which is not too old for it."""
    torch = facts.torch
    return bool(torch and torch.cuda and len(torch.devices) != len(facts.cards.cards) and not _is_too_old(facts))


def check_modes(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """No card that is taken may be closed to compute, let a single process in that is there already, or be split."""
    for index, card in _taken(facts, needs):
        if card.compute_mode == "prohibited":
            fix = f"nvidia-smi -i {index} -c DEFAULT (as root)"
            yield Finding("GPU mode", Status.ERROR, f"card {index} is closed to computation", fix)
        if card.compute_mode == "exclusive" and card.processes:
            fix = f"end {_told(card)}, or nvidia-smi -i {index} -c DEFAULT (as root)"
            yield Finding("GPU mode", Status.ERROR, f"card {index} lets one process in, and one is there", fix)
        if card.splits:
            fix = "name an instance in CUDA_VISIBLE_DEVICES (nvidia-smi -L shows them)"
            yield Finding("GPU mode", Status.ERROR, f"card {index} is split by MIG and cannot be used whole", fix)


def check_card_memory(facts: Facts, needs: Needs | None) -> Iterator[Finding]:
    """What is free now of each card that is taken, beside what its rank needs."""
    if needs is None:
        yield from _held_by_others(facts)
        return
    for index, card in _taken(facts, needs):
        needed = needs.card_bytes[index]
        held = f" ({_told(card)})" if card.processes else ""
        figures = {
            "card": index,
            "needed_bytes": needed,
            "free_bytes": card.free_bytes,
            "total_bytes": card.total_bytes,
        }
        if card.free_bytes >= needed:
            yield Finding(GPU_MEMORY, Status.OK, f"card {index} has room for its rank", "", figures)
        elif card.total_bytes < needed:
            fix = "plan for this card: ftplan plan --gpus local"
            yield Finding(GPU_MEMORY, Status.ERROR, f"card {index} is too small", fix, figures)
        else:
            fix = f"end {_told(card)}, or plan for what is free: ftplan plan --gpus local"
            yield Finding(GPU_MEMORY, Status.ERROR, f"card {index} has too little free now{held}", fix, figures)


def _held_by_others(facts: Facts) -> Iterator[Finding]:
    for index, card in enumerate(facts.cards.cards):
        figures = {"card": index, "free_bytes": card.free_bytes, "total_bytes": card.total_bytes}
        if card.total_bytes - card.free_bytes > NOTICED_BYTES and card.processes:
            message = f"others hold memory of card {index} ({_told(card)})"
            yield Finding(GPU_MEMORY, Status.WARNING, message, f"end {_told(card)}, or plan with what is left", figures)
        else:
            yield Finding(GPU_MEMORY, Status.OK, f"card {index} is free", "", figures)


def _taken(facts: Facts, needs: Needs | None) -> Iterator[tuple[int, CardNow]]:
    """The cards that the run takes, or all, each with its place among the visible ones: rank r takes the r-th."""
    cards = facts.cards.cards
    yield from enumerate(cards if needs is None else cards[: needs.ranks])


def _told(card: CardNow) -> str:
    """Who is on the card; a container does not see processes outside it."""
    if not card.processes:
        return "the process that holds it (nvidia-smi shows it on the host)"
    shown = [
        f"{each.name or 'process'} {each.pid}" + (f" with {each.bytes / 2**30:.1f} GiB" if each.bytes else "")
        for each in card.processes[:PROCESSES_SHOWN]
    ]
    more = len(card.processes) - PROCESSES_SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
