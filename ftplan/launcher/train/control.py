"""Small talk between ranks over gloo, beside the collectives of the training: it never waits for the GPU's queue."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist

_T = TypeVar("_T")


class Control:
    """The ranks of the run, as a group that exchanges Python objects. Every rank must make every call."""

    def __init__(self) -> None:
        self.distributed = dist.is_initialized() and dist.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo") if self.distributed else None
        self.rank: int = dist.get_rank() if self.distributed else 0
        self.world_size: int = dist.get_world_size() if self.distributed else 1

    @property
    def is_main(self) -> bool:
        """Rank 0."""
        return self.rank == 0

    def gather(self, value: _T) -> list[_T]:
        """The value of every rank, in rank order, on every rank."""
        if not self.distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if not self.distributed:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        return bool(votes.item())

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.distributed:
            dist.barrier(group=self._group)
