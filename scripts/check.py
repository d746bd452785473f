"""Every check of the project, in one command: format, lint, types, layers, tests. Stops at the first that fails."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

CHECKS = (
    ("format", [str(BIN / "ruff"), "format", "--check", "."]),
    ("lint", [str(BIN / "ruff"), "check", "."]),
    ("types", [str(BIN / "mypy")]),
    ("layers", [str(BIN / "lint-imports")]),
    # A worker a core, but no more than have room for a torch of their own.
    (
        "tests",
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--durations=10",
            "-n",
            "auto",
            "--maxprocesses",
            "4",
            "--dist",
            "worksteal",
        ],
    ),
)


def main() -> int:
    """Run the checks; returns the exit code of the one that failed, or 0."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    # Tests look there for programs that were installed with them.
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    for name, command in CHECKS:
        print(f"== {name}", flush=True)
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if code:
            print(f"{name} failed (exit {code})", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
