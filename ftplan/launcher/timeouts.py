"""How long a rank waits for the others in a collective before it gives the run up."""

from __future__ import annotations

from typing import Final

LEAST_SECONDS: Final = 1800
"""transformers' default (``ddp_timeout``); torch's own for NCCL is 600, which tokenizing on one rank exceeds."""
START_SECONDS: Final = 600
SLOW_BYTES_PER_SECOND: Final = 100_000_000
"""Of a busy shared disk, or of one behind a network of 1 Gbit/s."""


def collective_seconds(total_params: int, trainable_params: int) -> int:
    """Seconds for what one rank does alone while the others wait: read the weights, write a whole checkpoint.

    Counted are 4 bytes a parameter for the weights, and 12 a trainable one for its value in fp32 and two moments of
    Adam. Longer is no better: a machine that vanishes without closing its connections is noticed after this time.
    """
    moved_bytes = 4 * total_params + 12 * trainable_params
    return max(LEAST_SECONDS, START_SECONDS + -(-moved_bytes // SLOW_BYTES_PER_SECOND))
