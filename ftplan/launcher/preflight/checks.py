"""All checks, in the order they are told: each maps facts, and needs where there is a run, to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from ftplan.launcher.preflight.cards import check_card_memory, check_cards, check_driver, check_modes
from ftplan.launcher.preflight.facts import Facts
from ftplan.launcher.preflight.findings import Finding
from ftplan.launcher.preflight.host_checks import check_cores, check_disk, check_limits, check_ram
from ftplan.launcher.preflight.libraries import (
    check_compiler,
    check_devices,
    check_packages,
    check_torch,
    check_versions,
)
from ftplan.launcher.preflight.needs import Needs

Check = Callable[[Facts, Needs | None], Iterator[Finding]]

CHECKS: Final[tuple[Check, ...]] = (
    check_driver,
    check_cards,
    check_modes,
    check_card_memory,
    check_torch,
    check_devices,
    check_packages,
    check_versions,
    check_compiler,
    check_ram,
    check_limits,
    check_cores,
    check_disk,
)


OF_LIBRARIES: Final = frozenset({check_torch, check_devices, check_packages, check_versions, check_compiler})
"""Checks of this environment, which a run by another one does not depend on."""


def judge(facts: Facts, needs: Needs | None = None) -> tuple[Finding, ...]:
    """What every check finds; without ``needs`` the machine alone is looked at."""
    skipped = OF_LIBRARIES if needs is not None and needs.foreign else frozenset()
    return tuple(finding for check in CHECKS if check not in skipped for finding in check(facts, needs))
