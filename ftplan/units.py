"""Sizes, counts, dtypes and hours: integer bytes everywhere; GB (1e9) and GiB (2**30) never share a name."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30
GB: Final = 10**9

HOUR_SECONDS: Final = 3600

DTYPE_BYTES: Final = MappingProxyType({"fp32": 4, "bf16": 2, "fp16": 2})
"""Bytes of one element of the floating dtypes a run can be configured with."""

_SUFFIX: Final = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": GB,
    "TB": 10**12,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": 2**40,
}
_SIZE: Final = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?i?B)?", re.IGNORECASE)

_THOUSANDS: Final = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_COUNT: Final = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMBT]?)", re.IGNORECASE)


_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(s|m|min|h|)", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": HOUR_SECONDS}


def parse_size(text: str) -> int | None:
    """Bytes of a size such as ``24GB`` (decimal) or ``24GiB`` (binary); None if it is not one."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    return round(float(match[1]) * _SUFFIX[(match[2] or "").upper()])


def parse_count(text: str) -> int | None:
    """A count of parameters such as ``7B``, ``500M`` or all its digits; None if it is not one."""
    match = _COUNT.fullmatch(text.strip())
    return None if match is None else round(float(match[1]) * _THOUSANDS[match[2].upper()])


def parse_seconds(text: str) -> float | None:
    """Seconds of a duration such as ``120s``, ``2m``, ``1.5h`` or a bare number of seconds; None if it is not one."""
    match = _DURATION.fullmatch(text.strip())
    return None if match is None else float(match[1]) * _SECONDS[match[2].lower()]


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below ``numerator / denominator``."""
    return -(-numerator // denominator)


def round_up(value: int, multiple: int) -> int:
    """``value`` rounded up to a multiple of ``multiple``."""
    return ceil_div(value, multiple) * multiple
