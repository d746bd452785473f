"""From ranks, host and time to one `Estimate`: the worst rank speaks for all. What both estimators end with."""

from __future__ import annotations

from collections.abc import Sequence

from ftplan.estimators.recorded import basis_of, corrected
from ftplan.estimators.workload import Place
from ftplan.results import Estimate, HostEstimate, Provenance, RankEstimate, StepTime


def worst_of(ranks: Sequence[RankEstimate]) -> RankEstimate:
    """The rank that lacks most of its card, or has least to spare; the first of equals."""
    return max(ranks, key=lambda rank: rank.needed_bytes - rank.capacity_bytes)


def combined(
    estimator: str,
    place: Place,
    ranks: tuple[RankEstimate, ...],
    host: HostEstimate,
    step: StepTime,
    params: tuple[int, int],
    notes: tuple[str, ...],
) -> Estimate:
    """The estimate of a configuration; ``params`` are all and the trainable ones."""
    worst = worst_of(ranks)
    basis = basis_of(place)
    step = corrected(step, basis)
    tokens = place.config.tokens_per_micro_batch * place.config.accumulation * place.world
    return Estimate(
        estimator=estimator,
        peak_allocated_bytes=worst.peak_allocated_bytes,
        peak_reserved_bytes=worst.peak_reserved_bytes,
        process_bytes=worst.process_bytes,
        needed_bytes=worst.needed_bytes,
        host_bytes=host.peak_bytes,
        capacity_bytes=worst.capacity_bytes,
        fits=all(rank.fits for rank in ranks) and host.fits,
        peak_phase=worst.peak_phase,
        step_seconds=step.total_seconds,
        tokens_per_second=tokens / step.total_seconds,
        total_params=params[0],
        trainable_params=params[1],
        provenance=Provenance.worst({term.provenance for term in worst.terms}),
        terms=worst.terms,
        ranks=ranks,
        host=host,
        step=step,
        notes=notes,
        basis=basis,
    )
