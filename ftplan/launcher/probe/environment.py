"""``python -m ftplan.launcher.probe.environment [MODULE ...]``: what torch says of itself, as one JSON line on stdout.

Each MODULE is imported, too, because a compiled extension that was built for another torch shows it only then.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import torch


def main(modules: list[str]) -> None:
    """Print version, CUDA, devices, architectures and NCCL, and which of ``modules`` do not import."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print while they are imported
    told = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "error": _error(),
        "devices": [_device(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else [],
        "architectures": torch.cuda.get_arch_list(),
        "nccl": _nccl(),
        "broken": {name: reason for name in modules if (reason := _broken(name))},
    }
    answer.write(json.dumps(told) + "\n")
    answer.close()


def _error() -> str:
    """Why torch sees no card, empty if it does."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return _first_line(error)
    return ""


def _device(index: int) -> dict[str, Any]:
    capability = torch.cuda.get_device_capability(index)
    # Native from 8.0 on; torch's own question counts emulation and asks the current device only.
    return {"name": torch.cuda.get_device_name(index), "capability": list(capability), "bf16": capability >= (8, 0)}


def _nccl() -> str:
    if torch.version.cuda is None or not torch.distributed.is_nccl_available():
        return ""
    return ".".join(map(str, torch.cuda.nccl.version()))


def _broken(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a library raises at import is what is asked for
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    main(sys.argv[1:])
