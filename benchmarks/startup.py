"""Start-up time of ``ftplan plan`` as whole processes, as ratios in one run: ``python -m benchmarks.startup``.

Compared with a Python that imports typer, rich and pydantic by name, with one that really loads the classes a command
line needs of them (pydantic 2.14 and rich load lazily), and with the smallest typer command. Each is the best of
several runs taken in turn, because machines are noisy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

RUNS = 9
SMALLEST = "import typer\napp = typer.Typer()\n@app.command()\ndef main(name: str = 'x') -> None: print(name)\napp([])"
COMMANDS = {
    "bare_import": ["-c", "import typer, rich, pydantic"],
    "loaded_import": ["-c", "import typer, rich.console, rich.table; from pydantic import BaseModel, TypeAdapter"],
    "smallest_typer_command": ["-c", SMALLEST],
    "plan": ["-m", "ftplan", "plan", "--model", "Qwen-7B", "--gpus", "2x24GB"],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one whole process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the best time of each command and the ratios as one JSON line."""
    best = dict.fromkeys(COMMANDS, float("inf"))
    for _ in range(RUNS):
        for name, arguments in COMMANDS.items():
            best[name] = min(best[name], seconds(arguments))
    ratios = {f"plan_over_{name}": round(best["plan"] / best[name], 2) for name in COMMANDS if name != "plan"}
    rounded = {name: round(value, 3) for name, value in best.items()}
    print(json.dumps({"benchmark": "startup", "seconds": rounded, **ratios}))


if __name__ == "__main__":
    main()
