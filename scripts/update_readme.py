"""Writes real output into the README: ``python scripts/update_readme.py``.

Trains the demo (a minute) and traces every measured run (ten minutes, unless they are cached).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
PARTS = {
    "single, fitted": "one GPU, runs that constants were fitted on",
    "single, held out": "one GPU, the others",
    "several": "two GPUs (DDP, FSDP2, ZeRO-2/3, offload), worst rank",
    "single, later": "one GPU, measured later: other models and features, up to 32k tokens",
    "several, later": "two GPUs, measured later, worst rank",
    "own engine": "runs of our own engine, one and two GPUs",
}


def output(*arguments: str, code: int = 0) -> str:
    """Standard output of a command of this Python that ends with ``code``, whatever was calibrated on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "FTPLAN_DATA": folder}
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
        )
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-500:]}")
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def accuracy_table() -> str:
    """Mean and worst errors of memory and step time by part."""
    errors = json.loads(output("-m", "benchmarks.accuracy").splitlines()[-1])["errors"]
    rows = [
        "| measured runs | cases | allocated: mean, worst | process: mean, worst | step: mean, worst |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for part, name in PARTS.items():
        figures = errors[part]
        told = (
            "{mean_abs_percent:.2f} %, {worst_percent:+.2f} %".format(**figures[each])
            for each in ("allocated", "process", "step")
        )
        rows.append(f"| {name} | {figures['allocated']['cases']} | {' | '.join(told)} |")
    return "\n".join(rows)


def traced_table() -> str:
    """Errors of the trace by part, and how many capped runs it told wrong."""
    errors = json.loads(output("-m", "benchmarks.traced").splitlines()[-1])["errors"]
    capped = errors.pop("capped")
    rows = [
        "| measured runs | cases | allocated: mean, signed, worst | reserved: mean, signed, worst |",
        "| --- | ---: | ---: | ---: |",
    ]
    for part, figures in errors.items():
        told = (
            "{mean_abs_percent:.3f} %, {mean_signed_percent:+.3f} %, {worst_percent:+.3f} %".format(**figures[name])
            for name in ("allocated", "reserved")
        )
        rows.append(f"| {part} | {figures['allocated']['cases']} | {' | '.join(told)} |")
    mistakes = capped["mistakes"] or ["none told wrong"]
    return "\n".join(rows) + f"\n\nSmallest cap, {capped['runs']} capped runs: {'; '.join(mistakes)}."


def regret_table() -> str:
    """What plans reach beside the best that was measured and beside fixed advice, in tokens per second."""
    rows = json.loads(output("-m", "benchmarks.regret").splitlines()[-1])["rows"]
    lines = [
        "| cards | model, method | the plan | part of the best | LLaMA-Factory's example | the articles' advice |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        part = "not measured" if row["plan"] is None else f"{row['plan'] / row['best']:.1%}"
        told = " | ".join((_speed(row["plan"]), part, _speed(row["llamafactory example"]), _speed(row["advice"])))
        lines.append(f"| {row['cards']} | {row['model']}, {row['method']} | {told} |")
    return "\n".join(lines)


def check_block() -> str:
    """A check of a packaged example."""
    arguments = ("check", "examples/no-sharding-72b.yaml", "--gpus", "8xRTX4090")
    return f"```\n$ ftplan {' '.join(arguments)}\n{output('-m', 'ftplan', *arguments, code=1)}\n```"


def _speed(tokens_per_second: float | None) -> str:
    if tokens_per_second is None:
        return "not measured"
    return f"{tokens_per_second:,.0f}" if tokens_per_second else "out of memory"


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between the markers of ``name``."""
    block = f"<!-- {name} -->\n{content}\n<!-- end -->"
    return re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)


def main() -> None:
    """Fill the plan, the end of a demo run and the accuracy tables."""
    text = README.read_text("utf-8")
    plan = output("-m", "ftplan", "plan", "--model", "Qwen-7B", "--gpus", "2x24GB")
    with tempfile.TemporaryDirectory() as folder:
        run = output("-m", "ftplan", "run", "--demo", "--run-dir", f"{folder}/demo").replace(f"{folder}/", "")
    text = fill(text, "plan", f"```\n$ ftplan plan --model Qwen-7B --gpus 2x24GB\n{plan}\n```")
    text = fill(text, "check", check_block())
    text = fill(text, "run", f"```\n{run}\n```")
    text = fill(text, "traced", traced_table())
    text = fill(text, "regret", regret_table())
    README.write_text(fill(text, "accuracy", accuracy_table()), "utf-8")


if __name__ == "__main__":
    main()
