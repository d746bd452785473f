"""``python -m ftplan.launcher.probe [--device cuda|cpu] [--out FILE] [--limit SECONDS] [PART ...]``.

Writes a JSON line when it begins, with torch's version, and one for each part as it ends: its figures, or why it
failed. Without parts it measures all of a single device; under torchrun all of a group.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import torch

from ftplan.launcher.probe import group, single
from ftplan.launcher.probe.parts import GROUP, SINGLE, parts_for


def main() -> None:
    """Measure the parts asked for, each whether or not the others fail."""
    options = _options()
    # A collective may hang for ever. The launcher waits less long than this, but may itself have been killed.
    signal.alarm(options.limit)
    grouped = int(os.environ.get("WORLD_SIZE", "1")) > 1
    measures = group.MEASURES if grouped else single.MEASURES
    device = group.local_device(options.device) if grouped else torch.device(options.device)
    _write(options.out, {"torch": torch.__version__})
    for name in options.parts or parts_for(options.device, grouped=grouped):
        try:
            line = {"part": name, "figures": measures[name](device)}
        except Exception as error:  # any library's: the other parts can still be measured
            line = {"part": name, "failed": _reason(error)}
        _write(options.out, line)
    group.leave()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ftplan.launcher.probe")
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=int, default=120)
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - {*SINGLE, *GROUP})
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join((*SINGLE, *GROUP))}")
    return options


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _write(out: Path | None, line: object) -> None:
    if int(os.environ.get("RANK", "0")) != 0:
        return
    text = json.dumps(line) + "\n"
    if out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with out.open("a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
