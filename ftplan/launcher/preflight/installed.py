"""Observes this Python's packages by their metadata: nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from typing import Final

from packaging import requirements
from packaging.requirements import InvalidRequirement
from packaging.utils import canonicalize_name

from ftplan.launcher.preflight.facts import Installed, Requirement

TRAINING: Final = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
"""What every run needs."""

OPTIONAL: Final = ("deepspeed", "bitsandbytes", "liger-kernel", "flash-attn")
"""What some configurations need."""

COMPILED: Final = {"flash-attn": "flash_attn_2_cuda", "bitsandbytes": "bitsandbytes", "deepspeed": "deepspeed"}
"""Modules whose import shows whether a package with compiled parts goes with this torch."""

BENEATH: Final = ("tokenizers", "safetensors", "huggingface-hub", "numpy", "pyarrow", "triton")
"""What those ask for in certain releases."""

_CUDA: Final = re.compile(r"^cuda\b[^=]*=\s*(?:'(?P<release>[0-9.]+)'|None)", re.MULTILINE)


def installed() -> Installed:
    """The packages that training uses, with what they ask of one another."""
    versions = {name: found for name in (*TRAINING, *OPTIONAL, *BENEATH) if (found := _version(name))}
    return Installed(
        versions=versions,
        minimums={each.other: each.specifier.removeprefix(">=") for each in _requirements("ftplan", extra="train")},
        requirements=tuple(
            each for name in versions for each in _requirements(name) if each.other in versions and each.specifier
        ),
        torch_cuda=_torch_cuda() if "torch" in versions else None,
    )


def _version(name: str) -> str:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return ""


def _requirements(package: str, *, extra: str = "") -> Iterator[Requirement]:
    """Yield what ``package`` asks for here in every case, or beyond that for its ``extra``."""
    try:
        asked = requires(package) or ()
    except PackageNotFoundError:
        return
    for text in asked:
        with suppress(InvalidRequirement):
            one = requirements.Requirement(text)
            if _holds(one, extra) and not (extra and _holds(one, "")):
                yield Requirement(package, canonicalize_name(one.name), str(one.specifier))


def _holds(requirement: requirements.Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _torch_cuda() -> str | None:
    """The CUDA release that torch was built for, as its version.py says, which costs no import."""
    try:
        text = Path(str(distribution("torch").locate_file("torch/version.py"))).read_text("utf-8")
    except OSError:
        return None
    match = _CUDA.search(text)
    return None if match is None else match["release"] or ""
