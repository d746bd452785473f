"""How far a model goes on given devices: the longest sequence, the largest micro-batch, the highest rank that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ftplan.errors import DoesNotFitError
from ftplan.planner.ranking import rank
from ftplan.planner.search import Findings, examined, replayed
from ftplan.planner.space import LARGEST_MICRO_BATCH, Tier, tiers
from ftplan.profiles.schema import Cluster, ModelProfile
from ftplan.results import Candidate
from ftplan.spec import PlanRequest

TOKENS: Final = 64
"""Sequence lengths are told in multiples of this."""

RANKS: Final = 8
"""Ranks are told in multiples of this, where that many fit."""

FARTHEST: Final = {"seq_len": 1 << 22, "micro_batch": 1 << 14, "lora_rank": 1 << 13}
"""No answer lies beyond; a model's learned positions may end earlier."""

CLOSER: Final = 0.98
"""What the fit lets through and the simulated allocator does not is tried again at this part of it."""


@dataclass(frozen=True)
class Limit:
    """The largest value of a field that fits, with the fastest configuration that has it.

    ``value`` is 0 where not even the smallest fits: then ``candidate`` is None. ``positions`` is what the model was
    made for, where the longest sequence exceeds it.
    """

    field: str
    value: int
    candidate: Candidate | None
    positions: int | None = None


@dataclass(frozen=True)
class Limits:
    """What fits with one method: each limit with everything else as `PlanRequest` has it."""

    method: str
    because: str
    limits: tuple[Limit, ...]


Fits = Callable[[int], Candidate | None]


@dataclass(frozen=True)
class _Question:
    tier: Tier
    request: PlanRequest
    model: ModelProfile
    cluster: Cluster

    def best(self, tier: Tier | None = None, **changes: object) -> Candidate | None:
        """The best that fits of the request with ``changes``."""
        asked = self.request.model_copy(update=changes)
        return _best(tier or self.tier, asked, self.model, self.cluster)

    def replays(self, candidate: Candidate) -> Candidate | None:
        """The candidate, if it fits in the simulated allocator too."""
        told = replayed(candidate.config, self.request, self.model, self.cluster)
        return told if told.rejection is None else None

    def with_pins(self, **pins: object) -> dict[str, object]:
        """The request's pins and more of them."""
        return {**self.request.pins, **pins}


def limits(request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Limits:
    """The limits of the best tier in which something fits at the shortest sequence.

    Raises DoesNotFitError if nothing does. Method ``auto`` stands for LoRA's, and QLoRA's where that does not fit.
    """
    tier = _tier(request, model, cluster)
    question = _Question(tier, request, model, cluster)
    return Limits(tier.method, tier.because, tuple(_limits(question)))


def longest_sequence(request: PlanRequest, model: ModelProfile, cluster: Cluster) -> int | None:
    """The longest sequence up to the request's that has any plan; None if not even the shortest has."""
    question = _Question(_tier(request, model, cluster), request, model, cluster)
    found = _largest("seq_len", lambda value: question.best(seq_len=value), question, request.seq_len, TOKENS)
    return found.value or None


def _tier(request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Tier:
    shortest = request.model_copy(update={"seq_len": TOKENS})
    for tier in tiers(request):
        if next(_fitting(tier, shortest, model, cluster), None) is not None:
            return tier
    raise DoesNotFitError(
        f"no {request.method} configuration fits, whatever the sequence length",
        hint="ftplan plan says what is missing; ftplan need names cards that suffice",
    )


def _limits(question: _Question) -> Iterator[Limit]:
    model, request = question.model, question.request
    learned = model.layers[0].attention.positions == "learned"
    farthest = model.max_positions if learned and model.max_positions else FARTHEST["seq_len"]
    longest = _largest(
        "seq_len", lambda value: question.best(seq_len=value), question, farthest, TOKENS if farthest > TOKENS else 1
    )
    positions = model.max_positions if model.max_positions and longest.value > model.max_positions else None
    yield Limit(longest.field, longest.value, longest.candidate, positions)
    if not {"micro_batch", "accumulation"} & set(request.pins):
        yield _largest("micro_batch", lambda value: _whole_batch(question, value), question, FARTHEST["micro_batch"], 1)
    if question.tier.method != "full" and "lora_rank" not in request.pins:
        yield _largest("lora_rank", lambda value: _ranked(question, value), question, _widest(model), RANKS)


def _whole_batch(question: _Question, micro_batch: int) -> Candidate | None:
    """A step of one micro-batch on each device."""
    ranks = 1 if question.request.pins.get("sharding") == "none" else question.cluster.world_size
    pins = question.with_pins(micro_batch=micro_batch)
    return question.best(global_batch=micro_batch * ranks, pins=pins)


def _ranked(question: _Question, lora_rank: int) -> Candidate | None:
    """With the least activations there are: each rank is another program, and all its kinds would take a second."""
    least: dict[str, object] = {"gradient_checkpointing": True}
    if "accumulation" not in question.request.pins:
        least["micro_batch"] = 1
    return question.best(pins={**least, **question.with_pins(lora_rank=lora_rank)})


def _widest(model: ModelProfile) -> int:
    """A rank beyond the hidden size adds nothing that a full matrix has not."""
    return min(FARTHEST["lora_rank"], model.hidden_size)


def _largest(field: str, fits: Fits, question: _Question, farthest: int, step: int) -> Limit:
    """The largest multiple of ``step`` (or smaller value, where not even that fits) for which ``fits`` answers."""
    found = _bisected(fits, farthest, step) or (_bisected(fits, step, 1) if step > 1 else None)
    while found is not None:
        value, candidate = found
        told = question.replays(candidate)
        if told is not None:
            return Limit(field, value, told)
        smaller = int(value * CLOSER) // step * step if value >= 2 * step else value - 1
        found = _bisected(fits, smaller, step if smaller >= step else 1) if smaller else None
    return Limit(field, 0, None)


def _bisected(fits: Fits, farthest: int, step: int) -> tuple[int, Candidate] | None:
    """The largest multiple of ``step`` up to ``farthest`` that fits, with the best that has it.

    What fits with a value fits with every smaller one (memory is monotone in each of them).
    """
    low, best = 0, fits(step)
    if best is None:
        return None
    high = 1
    while high * step * 2 <= farthest and (candidate := fits(high * 2 * step)) is not None:
        high, best = high * 2, candidate
    low, high = high, min(high * 2, farthest // step + 1)
    while high - low > 1:
        middle = (low + high) // 2
        candidate = fits(middle * step)
        if candidate is None:
            high = middle
        else:
            low, best = middle, candidate
    return low * step, best


def _best(tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Candidate | None:
    if request.global_batch > LARGEST_MICRO_BATCH * cluster.world_size and "micro_batch" not in request.pins:
        request = request.model_copy(update={"global_batch": LARGEST_MICRO_BATCH * cluster.world_size})
    return next(iter(rank(_fitting(tier, request, model, cluster), request)), None)


def _fitting(tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Iterator[Candidate]:
    return (one for one in examined(tier, request, model, cluster, Findings()) if one.rejection is None)
