"""Releases compared by packaging's rules; one that has no form of a release is taken for one that suffices."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version


def is_before(version: str, other: str) -> bool:
    """Whether ``version`` is an older release than ``other``."""
    try:
        return Version(version) < Version(other)
    except InvalidVersion:
        return False


def satisfies(version: str, specifier: str) -> bool:
    """Whether ``version`` is among the releases of ``specifier``, such as ``>=2.1,<3``; one before a release may be."""
    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True
