"""The formats by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ftplan.launcher.formats import axolotl, cookbook, libraries, llamafactory, swift, torchtune, trl
from ftplan.launcher.formats.given import Format

FORMATS: Final[Mapping[str, Format]] = {
    each.name: each
    for each in (
        llamafactory.FORMAT,
        trl.FORMAT,
        axolotl.FORMAT,
        swift.FORMAT,
        torchtune.FORMAT,
        cookbook.FORMAT,
        libraries.DEEPSPEED,
        libraries.ACCELERATE,
        libraries.TRANSFORMERS,
    )
}
