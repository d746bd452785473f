"""Small talk between ranks over gloo, beside the collectives of the training: it never waits for the GPU's queue."""

from __future__ import annotations

import os
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

_T = TypeVar("_T")


class Control:
    """The ranks of the run, as a group that exchanges Python objects. Every rank must make every call.

    A rank waits ``timeout_seconds`` for the others; None: torch's default. ``shares_disk`` says whether all of them see
    the run's folder: true of one machine, and asked of several by `look_for_shared`.
    """

    def __init__(self, timeout_seconds: int | None = None) -> None:
        self.distributed = dist.is_initialized() and dist.get_world_size() > 1
        timeout = timedelta(seconds=timeout_seconds) if timeout_seconds else None
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if self.distributed else None
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if self.distributed else 0
        self.shares_disk = True
        self.rank: int = dist.get_rank() if self.distributed else 0
        self.world_size: int = dist.get_world_size() if self.distributed else 1

    @property
    def is_main(self) -> bool:
        """Rank 0."""
        return self.rank == 0

    @property
    def leads_node(self) -> bool:
        """The first rank of its machine."""
        return self.local_rank == 0

    @property
    def keeps_files(self) -> bool:
        """Whether this rank keeps checkpoints and the result: rank 0, or on disks of their own the first of each."""
        return self.is_main or (self.leads_node and not self.shares_disk)

    def look_for_shared(self, folder: Path) -> None:
        """Find out whether every rank sees what rank 0 writes to ``folder``.

        The file's name is new each time, because NFS remembers for a while that a name does not exist.
        """
        token = folder / self.gather(f".seen-{secrets.token_hex(8)}")[0]
        if self.is_main:
            token.touch()
        self.barrier()
        self.shares_disk = not self.any(not token.exists())
        self.barrier()
        if self.is_main:
            token.unlink()

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
