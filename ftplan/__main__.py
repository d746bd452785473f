"""Entry point: ``ftplan`` and ``python -m ftplan``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a user's mistake ends in one message and its exit code, never in a traceback."""
    from ftplan.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
