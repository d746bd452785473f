"""Entry point: ``ftplan`` and ``python -m ftplan``."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line; a user's mistake ends in one message and its exit code, never in a traceback."""
    # A plan is over before garbage would matter, and collections while modules load cost a tenth of the start-up time.
    gc.disable()
    from ftplan.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
