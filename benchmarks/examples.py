"""How many of the frameworks' own example configurations `ftplan check` reads, and what it says of each.

Give the folders of checkouts: ``python -m benchmarks.examples trl=PATH/trl/examples axolotl=PATH/axolotl/examples``.
Every YAML, JSON and shell file in them is checked on eight A100 of 80 GB. With ``--out FILE`` names and verdicts are
written as JSON lines; no file is copied. The last line is JSON, as of every benchmark here.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ftplan.errors import FtplanError, UnknownNameError
from ftplan.workflows.checking import Asked, check

MODEL = "Qwen2.5-7B"
STATED = {"model": MODEL, "method": "lora", "seq_len": 2048, "micro_batch": 1}
"""What a launcher's or library's file leaves open."""
GPUS = "8xA100-80GB"
SUFFIXES = (".yaml", ".yml", ".json", ".sh", ".slurm", ".py")


def main() -> None:
    """Check every file of the given folders and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", help="NAME=PATH of examples")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    files = [item for text in given.folders for item in _files(*text.split("=", 1))]
    with ProcessPoolExecutor(2) as pool:
        rows = list(pool.map(examined, files, chunksize=4))
    if given.out:
        given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for project in dict.fromkeys(row["project"] for row in rows):
        counts = Counter(row["verdict"] for row in rows if row["project"] == project)
        print(f"{project}: " + ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common()))
    print(json.dumps({"files": len(rows), "verdicts": Counter(row["verdict"] for row in rows)}))


def _files(project: str, folder: str) -> Iterator[tuple[str, str, str]]:
    base = Path(folder)
    for path in sorted(base.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            yield project, str(path.relative_to(base)), str(path)


def examined(file: tuple[str, str, str]) -> dict[str, Any]:
    """One file's row: its verdict with what is not modelled, or ``no verdict`` and why."""
    project, name, path = file
    row: dict[str, Any] = {"project": project, "name": name}
    try:
        found = check(Asked((path,), gpus=GPUS, mends=False)).check
    except UnknownNameError as error:
        return {**row, "verdict": "unknown model", "reason": error.message}
    except FtplanError as error:
        if "names no model" in error.message:
            return _with_a_model(row, path)
        message = error.message.replace(path, name)
        kind = "no training" if _is_none(message) else "no verdict"
        return {**row, "verdict": kind, "reason": message[:160]}
    except Exception as error:
        return {**row, "verdict": "CRASH", "reason": f"{type(error).__name__}: {error}"[:160]}
    problems = [f"{each.kind}: {each.key or each.message}" for each in found.problems if each.severity != "note"]
    return {**row, "framework": found.framework, "verdict": str(found.verdict), "problems": problems}


def _with_a_model(row: dict[str, Any], path: str) -> dict[str, Any]:
    """A launcher's or library's file says a part; the rest is stated as a user would."""
    try:
        found = check(Asked((path,), gpus=GPUS, fields=STATED, mends=False)).check
    except FtplanError as error:
        return {**row, "verdict": "no verdict", "reason": error.message[:160]}
    problems = [f"{each.kind}: {each.key or each.message}" for each in found.problems if each.severity != "note"]
    return {**row, "framework": found.framework, "verdict": f"{found.verdict} with {MODEL}", "problems": problems}


def _is_none(message: str) -> bool:
    told = ("starts no training", "trains nothing", "no framework's training", "holds no mapping")
    return any(part in message for part in told)


if __name__ == "__main__":
    main()
