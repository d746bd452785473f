"""Frozen outputs: terms, estimates, rejections, plans and run records.

Plain dataclasses, because a search builds tens of thousands of them, and without slots, which would double the time to
import them; pydantic serialises and validates them at the edges (`to_json`, `from_json`). Bytes are integers, times are
seconds.
"""

from __future__ import annotations

from ftplan.results.documents import (
    from_json,
    to_json,
    to_jsonable,
)
from ftplan.results.estimates import (
    Basis,
    Calibrated,
    Estimate,
    History,
    HostEstimate,
    Phase,
    Provenance,
    RankEstimate,
    StepTime,
    Term,
    Timeline,
    TrainingTime,
)
from ftplan.results.plans import (
    Advice,
    Candidate,
    Compared,
    Placed,
    Plan,
    Point,
    Reason,
    RejectedGroup,
    Rejection,
    SearchStats,
)
from ftplan.results.runs import (
    CountedFlops,
    Measured,
    Recovery,
    RunRecord,
    RunWarning,
)

__all__ = [
    "Advice",
    "Basis",
    "Calibrated",
    "Candidate",
    "Compared",
    "CountedFlops",
    "Estimate",
    "History",
    "HostEstimate",
    "Measured",
    "Phase",
    "Placed",
    "Plan",
    "Point",
    "Provenance",
    "RankEstimate",
    "Reason",
    "Recovery",
    "RejectedGroup",
    "Rejection",
    "RunRecord",
    "RunWarning",
    "SearchStats",
    "StepTime",
    "Term",
    "Timeline",
    "TrainingTime",
    "from_json",
    "to_json",
    "to_jsonable",
]
