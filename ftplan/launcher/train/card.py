"""The device between trials: emptied, and with a cap that makes it a smaller one. Does nothing on a CPU."""

from __future__ import annotations

import gc

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ftplan.launcher.train.measure import beside_allocator_bytes


def clean() -> None:
    """Back to libraries that have not started and to an empty allocator; the process group stays."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    unset_hf_deepspeed_config()
    forget()
    cap(None)


def forget() -> None:
    """Return to the driver what nothing holds, workspaces of cuBLAS too, and begin the peaks anew."""
    for _ in range(3):
        gc.collect()
    if not torch.cuda.is_available():
        return
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_accumulated_memory_stats()


def held_bytes() -> int:
    """What the allocator still has in use: after `clean`, what libraries never let go of."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def cap(cap_bytes: int | None) -> None:
    """Let the process take ``cap_bytes`` of the device in all, or the whole device for None.

    The allocator gets what the context, NCCL and other libraries leave of it. They grow while training begins, so that
    this is to be called again.
    """
    if not torch.cuda.is_available():
        return
    total = torch.cuda.mem_get_info()[1]
    share = 1.0 if cap_bytes is None else (cap_bytes - beside_allocator_bytes()) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)))


def wait() -> None:
    """Until everything that was launched is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
