"""One step by its parts."""

from __future__ import annotations

from typing import Final

from ftplan.render.charts.bars import Row, bars
from ftplan.render.console import duration
from ftplan.results import StepTime

PARTS: Final = {
    "compute_seconds": ("compute", "weights"),
    "overhead_seconds": ("launching kernels", "other"),
    "communication_seconds": ("communication", "communication"),
    "offload_seconds": ("offload", "gradients"),
    "optimizer_seconds": ("optimizer", "optimizer"),
}


def by_part(step: StepTime) -> str:
    """A bar for each part that takes any time."""
    rows = [
        Row(
            name,
            getattr(step, field),
            duration(getattr(step, field)),
            f"kind-{kind}",
            {"data-seconds": repr(getattr(step, field)), "data-part": field},
        )
        for field, (name, kind) in PARTS.items()
        if getattr(step, field) > 0
    ]
    return bars(rows, "One step by part", f"{duration(step.total_seconds)}, bound by {step.bound_by}", name="step")
