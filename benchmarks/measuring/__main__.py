"""``python -m benchmarks.measuring CASES.jsonl --out ROWS.jsonl``: see ``benchmarks/data/README.md``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring.case import Case, read_cases
from benchmarks.measuring.ranks import run_rank, run_ranks


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases of a file; 1 if one failed. Out of memory is an answer, not a failure."""
    options = _parser().parse_args(arguments)
    _set_environment()
    if options.rank_of is not None:
        run_rank(Case.from_json(options.rank_of), options.out)
    if options.cases is None:
        _parser().error("a file of cases is missing")
    cases = read_cases(options.cases)
    if options.ranks > 1:
        lines = [case.as_line() for case in cases]
        return int(run_ranks(lines, options.out, options.ranks, options.budget, options.timeout) > 0)
    from benchmarks.measuring.caps import run_caps
    from benchmarks.measuring.session import run_cases

    run = run_caps if options.caps else run_cases
    return int(run(cases, options.out, options.budget) > 0)


def _set_environment() -> None:
    """Before torch and transformers are imported: quiet, offline, and no context made by asking for a GPU."""
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }.items():
        os.environ.setdefault(name, value)
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "WANDB_DISABLED": "true"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measuring", description=__doc__)
    parser.add_argument("cases", type=Path, nargs="?", help="JSON Lines of cases (benchmarks/measuring/case.py)")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines that rows are added to")
    parser.add_argument("--ranks", type=int, default=1, help="devices of this machine for each case, under torchrun")
    parser.add_argument("--caps", action="store_true", help="find the smallest allocator each case survives")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds after which no case is begun")
    parser.add_argument("--timeout", type=float, default=75.0, help="seconds for one case with --ranks")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
