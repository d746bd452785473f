"""Every check of the project, in one command: format, lint, types, layers, tests. Stops at the first that fails."""

from __future__ import annotations

import argparse
import os
import shutil
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


CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
INSTALLS = (["apt-get", "update", "-q"], ["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"])


def provide_browser() -> None:
    """See that there is a Chromium for the tests of pages: install Debian's where that goes, else say what to do.

    Without one those tests are skipped, or fail where the environment variable CI is set.
    """
    if os.environ.get("FTPLAN_CHROMIUM") or any(map(shutil.which, CHROMIUMS)):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print("no Chromium here: install one, or name it in FTPLAN_CHROMIUM, for the tests of pages", flush=True)
        return
    for command in INSTALLS:
        print(f"no Chromium here: {' '.join(command)}", flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(command, env=quiet, check=False).returncode:
            print("that failed: the tests of pages have no browser", file=sys.stderr)
            return


def main() -> int:
    """Run the checks; returns the exit code of the one that failed, or 0."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    # Tests look there for programs that were installed with them.
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    for name, command in CHECKS:
        if name == "tests":
            provide_browser()
        print(f"== {name}", flush=True)
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if code:
            print(f"{name} failed (exit {code})", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
