"""How far a model goes on given devices: the longest sequence, the largest micro-batch, the highest rank that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from ftplan.errors import DoesNotFitError
from ftplan.planner.batch import check_batch
from ftplan.planner.findings import Findings
from ftplan.planner.ranking import estimate_of, needed, rank
from ftplan.planner.search import examined, replayed
from ftplan.planner.space import Tier, tiers
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.results import Candidate
from ftplan.spec import PlanRequest

TOKENS: Final = 64
"""Sequence lengths are told in multiples of this."""

RANKS: Final = 8
"""Ranks are told in multiples of this, where that many fit."""

FARTHEST: Final = {"seq_len": 1 << 22, "micro_batch": 1 << 14, "lora_rank": 1 << 13}
"""No answer lies beyond; a model's learned positions may end earlier."""

CLOSER: Final = 0.98
"""What the fit lets through and the simulated allocator does not is tried again at this part of it; what is not much
closer to the truth than this is not looked for."""

FARTHER: Final = 1.5
"""The fit is cautious: up to this many times what it lets through may fit in the simulated allocator."""


FIRST_TIERS: Final = {
    "lora": "16-bit base weights",
    "qlora": "4-bit base weights",
    "llama-adapter": "prompts and gates train, over 16-bit base weights",
    "full": "every weight trains, with 32-bit optimizer states",
}
"""Nothing better was tried and did not fit: a method's first tier has no other reason than what it is."""


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


class Fits(Protocol):
    """What fits with a value by the fit: the best, or with ``near`` the smallest, be it a near miss."""

    def __call__(self, value: int, *, near: bool = False) -> Candidate | None:
        """The candidate, None if there is none."""


@dataclass(frozen=True)
class _Question:
    tier: Tier
    request: PlanRequest
    model: ModelProfile
    cluster: Cluster

    def best(self, *, near: bool, **changes: object) -> Candidate | None:
        """The best that fits of the request with ``changes``; with ``near`` the smallest that may."""
        asked = self.request.model_copy(update=changes)
        if near:
            return min(examined(self.tier, asked, self.model, self.cluster, Findings()), key=needed, default=None)
        return next(iter(rank(_fitting(self.tier, asked, self.model, self.cluster), asked)), None)

    def replayed(self, candidate: Candidate) -> Candidate:
        """The candidate in the simulated allocator, rejected if it does not fit there."""
        return replayed(candidate.config, self.request, self.model, self.cluster)

    def with_pins(self, **pins: object) -> dict[str, object]:
        """The request's pins and more of them."""
        return {**self.request.pins, **pins}


def limits(request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Limits:
    """The limits of the best tier in which something fits at the shortest sequence.

    Raises DoesNotFitError if nothing does, BatchError or InputError for a batch that does not split. Method ``auto``
    stands for LoRA's, and QLoRA's where that does not fit.
    """
    check_batch(request)
    tier = _tier(request, model, cluster)
    because = FIRST_TIERS[tier.method] if _is_first(tier, request) else tier.because
    return Limits(tier.method, because, tuple(_limits(_Question(tier, request, model, cluster))))


def _is_first(tier: Tier, request: PlanRequest) -> bool:
    return tier == tiers(request.model_copy(update={"method": tier.method}))[0]


def longest_sequence(request: PlanRequest, model: ModelProfile, cluster: Cluster) -> int | None:
    """The longest sequence up to the request's that has any plan, of whatever tier; None if none has."""
    longest = 0
    # The last tiers go farthest: most of the others are out with one look.
    for tier in reversed(tiers(request)):
        longer = request.model_copy(update={"seq_len": min(request.seq_len, longest + TOKENS)})
        if longest and next(_fitting(tier, longer, model, cluster), None) is None:
            continue
        question = _Question(tier, request, model, cluster)
        fits, step = partial(_with_length, question), min(TOKENS, request.seq_len)
        found = _largest("seq_len", fits, question, request.seq_len, step)
        longest = max(longest, found.value)
    return longest or None


def _with_length(question: _Question, value: int, *, near: bool = False) -> Candidate | None:
    return question.best(near=near, seq_len=value)


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
    longest = _largest("seq_len", partial(_with_length, question), question, farthest, min(TOKENS, farthest))
    positions = model.max_positions if model.max_positions and longest.value > model.max_positions else None
    yield Limit(longest.field, longest.value, longest.candidate, positions)
    if not {"micro_batch", "accumulation"} & set(request.pins):
        yield _largest("micro_batch", partial(_whole_batch, question), question, FARTHEST["micro_batch"], 1)
    if question.tier.method in ("lora", "qlora") and "lora_rank" not in request.pins:
        yield _largest("lora_rank", partial(_ranked, question), question, _widest(model), RANKS)


def _whole_batch(question: _Question, value: int, *, near: bool = False) -> Candidate | None:
    """A step of one micro-batch on each device."""
    ranks = 1 if question.request.pins.get("sharding") == "none" else question.cluster.world_size
    return question.best(near=near, global_batch=value * ranks, pins=question.with_pins(micro_batch=value))


def _ranked(question: _Question, value: int, *, near: bool = False) -> Candidate | None:
    """With the least activations there are: each rank is another program, and all its kinds would take a second."""
    least: dict[str, object] = {"gradient_checkpointing": True}
    if "accumulation" not in question.request.pins:
        least["micro_batch"] = 1
    return question.best(near=near, pins={**least, **question.with_pins(lora_rank=value)})


def _widest(model: ModelProfile) -> int:
    """A rank beyond the hidden size adds nothing that a full matrix has not."""
    return min(FARTHEST["lora_rank"], model.hidden_size)


def _largest(field: str, fits: Fits, question: _Question, farthest: int, step: int) -> Limit:
    """The largest multiple of ``step`` (or smaller value, where not even that fits) for which ``fits`` answers."""
    found = _bisected(fits, farthest, step) or (_bisected(fits, step, 1) if step > 1 else None)
    refused: list[tuple[int, Candidate]] = []
    while found is not None:
        value, candidate = found
        told = question.replayed(candidate)
        if told.rejection is None:
            return Limit(field, *_farther(fits, value, told, question, farthest, step))
        refused.append((value, told))
        smaller = min(_smaller(refused), value - 1)
        grid = step if smaller >= step else 1
        found = _bisected(fits, smaller // grid * grid, grid) if smaller else None
    return Limit(field, 0, None)


def _farther(
    fits: Fits, value: int, told: Candidate, question: _Question, farthest: int, step: int
) -> tuple[int, Candidate]:
    """How far replays go beyond what the fit lets through, if ``told`` leaves room; and what goes there."""
    grid = step if value >= step else 1
    low, high = value, min(int(value * FARTHER), farthest + 1)
    if needed(told) > CLOSER * (1 - question.request.margin) * estimate_of(told).capacity_bytes:
        return value, told
    while high - low > max(grid, (1 - CLOSER) * low):
        middle = max((low + high) // 2 // grid * grid, low + grid)
        candidate = fits(middle, near=True)
        again = question.replayed(candidate) if candidate is not None else None
        if again is None or again.rejection is not None:
            high = middle
        else:
            low, told = middle, again
    return low, told


def _smaller(refused: Sequence[tuple[int, Candidate]]) -> int:
    """The value to try after those that replays refused.

    Where bytes went on falling as between the last two, nothing would be lacking; never further down than half.
    """
    value, lacking = refused[-1][0], _lacking(refused[-1][1])
    closer = value * CLOSER
    if len(refused) > 1 and lacking is not None and (more := _lacking(refused[-2][1])) is not None and more > lacking:
        closer = min(closer, value - lacking * (refused[-2][0] - value) / (more - lacking))
    return int(max(closer, value / 2))


def _lacking(candidate: Candidate) -> int | None:
    return candidate.rejection.lacking_bytes if candidate.rejection else None


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


def _fitting(tier: Tier, request: PlanRequest, model: ModelProfile, cluster: Cluster) -> Iterator[Candidate]:
    return (one for one in examined(tier, request, model, cluster, Findings()) if one.rejection is None)
