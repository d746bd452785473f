"""FSDP2's collectives, tensor by tensor and stream by stream: what the program of a step tells only in sum.

As in torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py: an all-gather takes a buffer for what a rank sends and
one for what all do, on a stream of its own, and is copied out into the parameters; a reduce-scatter takes a buffer for
the gradients and, on another stream, the result, which becomes the shards' gradients in their own dtype. So no memory
of one serves the other.
"""

from __future__ import annotations

from typing import NamedTuple

from ftplan.estimators.sharding import offloads_parameters
from ftplan.estimators.tape.gathering import BUFFER, GATHERED
from ftplan.estimators.tape.loading import parameters
from ftplan.estimators.tape.log import GATHERS, REDUCES, Log
from ftplan.estimators.tape.modules import Options
from ftplan.estimators.tape.sizes import GRADIENTS, IN_FLIGHT
from ftplan.estimators.workload import Workload
from ftplan.units import ceil_div


class Collectives:
    """Allocates what belongs to collectives; anything else is one tensor on the stream of the kernels."""

    def __init__(self, work: Workload, options: Options) -> None:
        self._work = work
        self._sent = work.gathered_bytes
        self._kept = work.trainable_bytes
        self._from_host = offloads_parameters(work)
        self._groups: dict[int, list[_Gathered]] = {}
        self._reducing = 0
        if options.groups is not None:
            for group, size in zip(work.model.groups, options.groups.layers, strict=True):
                self._groups[size] = [self._gathered(*each) for each in parameters(work, group.layer)]

    def allocate(self, log: Log, name: str, size: int) -> list[int]:
        """Allocate ``size`` bytes of what ``name`` says they are; returns the keys of what stays."""
        if name == GRADIENTS and self._reducing:
            return self._reduce(log)
        if not size:
            return []
        if name == BUFFER:
            return [self._gather(log, size)]
        if name == GATHERED:
            return log.allocate_all(each.size for each in self._group(size))
        if name == IN_FLIGHT:
            self._reducing = size
        return [log.allocate(size)]

    def _gathered(self, elements: int, packed: bool, trains: bool) -> _Gathered:
        work = self._work
        if packed:
            return _Gathered(ceil_div(elements, 2), 1, 1)
        kept = work.trainable_bytes if trains else work.unquantized_bytes
        sent = work.gathered_bytes
        if trains:
            sent = work.compute_bytes if work.casts_parameters else kept
        return _Gathered(elements * sent, kept, sent)

    def _group(self, size: int) -> list[_Gathered]:
        """The parameters of a group of that size; one outside the layers is one parameter."""
        kept = self._kept if self._work.trains_all else self._work.unquantized_bytes
        return self._groups.get(size) or [_Gathered(size, kept, self._sent)]

    def _gather(self, log: Log, size: int) -> int:
        """A rank sends its shards, cast to the dtype they are gathered in, or copied from the host first."""
        ranks = self._work.parameter_shards
        mine = []
        for each in self._group(size):
            shard = ceil_div(each.size, ranks)
            casts = each.kept != each.sent
            if self._from_host:
                copied = log.allocate(shard // each.sent * each.kept, GATHERS)
                mine.append(log.allocate(shard, GATHERS) if casts else copied)
                log.free([copied] if casts else [])
        cast = sum(ceil_div(each.size, ranks) for each in self._group(size) if each.kept != each.sent)
        if cast and not self._from_host:
            mine.append(log.allocate(cast, GATHERS))
        whole = log.allocate(size, GATHERS)
        log.free(mine)
        return whole

    def _reduce(self, log: Log) -> list[int]:
        """The result in the dtype that is sent, then in the shards' own; what belongs on the host leaves at once."""
        received, self._reducing = ceil_div(self._reducing, self._work.gradient_shards), 0
        kept = log.allocate(received, REDUCES)
        if self._kept != self._sent:
            result = kept
            kept = log.allocate(received // self._sent * self._kept, REDUCES)
            log.free([result])
        if self._from_host:
            log.free([kept])
            return []
        return [kept]


class _Gathered(NamedTuple):
    """A parameter: its whole ``size`` in bytes as it is gathered, and bytes of an element as kept and as sent."""

    size: int
    kept: int
    sent: int
