"""Adds an adapter to its base, block by block, in memory that does not grow with the model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ftplan.errors import InputError
from ftplan.files import write_atomic
from ftplan.launcher.merge_job import MergeEnded, MergeEvent, MergeJob, MergeProgressed, MergeStated
from ftplan.launcher.train.adapter_files import Change, read_changes
from ftplan.launcher.train.checkpoint_names import names_in
from ftplan.launcher.train.measure import peak_resident_bytes
from ftplan.launcher.train.merge_plan import MergePlan, plan_merge
from ftplan.launcher.train.model_folder import (
    CONFIG,
    GENERATION,
    base_folder,
    copy_beside,
    end_of_sequence,
    merged_config,
    merged_generation,
    read_config,
    tokenizer_folder,
)
from ftplan.launcher.train.weight_blocks import BYTES_PER_ELEMENT, largest_factors_bytes, write_file
from ftplan.launcher.weight_files import INDEX, file_names, index_of, split, tensors_of
from ftplan.units import MIB, ceil_div

BLOCK_ELEMENTS: Final = 2**24
LEAST_BLOCK_ELEMENTS: Final = 2**18
RESERVE_BYTES: Final = 64 * MIB
"""Beside the blocks: buffers of the matrix library, and memory that the allocator does not give back at once."""
PROGRESS_SECONDS: Final = 0.2

Tell = Callable[[MergeEvent], None]


def merge(job: MergeJob, tell: Tell) -> None:
    """Fill the job's folder with the merged model; raises InputError for what cannot be merged."""
    changes = read_changes(Path(job.adapter))
    base = base_folder(job)
    config = read_config(base)
    tokenizer = tokenizer_folder(job, base)
    end = end_of_sequence(tokenizer) if tokenizer is not None else None
    stored = tensors_of(base)
    plan = plan_merge(stored, names_in(base, stored), changes, job.dtype)
    block_elements, peak_bytes = _memory(plan, list(changes.values()), job.max_ram_bytes)
    _write(plan, job, block_elements, peak_bytes, tell)
    documents = {CONFIG: merged_config(config, job.dtype, unties=plan.unties, end=end)}
    if (generation := merged_generation(base, config, end)) is not None:
        documents[GENERATION] = generation
    copy_beside(job, base, documents, tokenizer)
    tell(MergeEnded(peak_bytes=peak_resident_bytes()))


def _memory(plan: MergePlan, changes: list[Change], limit_bytes: int | None) -> tuple[int, int]:
    """Elements of a block, and the peak resident memory with it; raises InputError if ``limit_bytes`` is too little."""
    worked_on = [output.source for output in plan.outputs if not output.is_copy]
    standing = peak_resident_bytes() + largest_factors_bytes(changes) + RESERVE_BYTES
    # A block is at least a row, and never more than a tensor.
    row = max((source.row_elements for source in worked_on), default=0)
    largest = max((source.rows * source.row_elements for source in worked_on), default=0)
    block = max(row, min(largest, BLOCK_ELEMENTS))
    if limit_bytes is not None:
        least = standing + max(row, min(largest, LEAST_BLOCK_ELEMENTS)) * BYTES_PER_ELEMENT
        if limit_bytes < least:
            needed = f"{ceil_div(least, 10**6)}MB"
            raise InputError(
                f"merging needs {needed} of RAM, most of it for the libraries, not {limit_bytes // 10**6}MB",
                hint=f"--max-ram {needed} or more",
                field="max_ram",
            )
        block = min(block, (limit_bytes - standing) // BYTES_PER_ELEMENT)
    return block, standing + block * BYTES_PER_ELEMENT


def _write(plan: MergePlan, job: MergeJob, block_elements: int, peak_bytes: int, tell: Tell) -> None:
    """State what will be written, and write it."""
    out = Path(job.out)
    files = split([output.planned for output in plan.outputs], job.max_shard_bytes)
    total = sum(output.planned.size_bytes for output in plan.outputs)
    _check_space(out, total)
    tell(
        MergeStated(
            base=job.base.location,
            changed_weights=plan.changed,
            weights=len(plan.outputs),
            written_bytes=total,
            files=len(files),
            peak_bytes=peak_bytes,
        )
    )
    by_name = {output.planned.name: output for output in plan.outputs}
    named = dict(zip(file_names(len(files)), files, strict=True))
    progress = _Progress(tell)
    for name, tensors in named.items():
        write_file(out / name, [by_name[tensor.name] for tensor in tensors], block_elements, progress.add)
    if len(named) > 1:
        write_atomic(out / INDEX, index_of(named))


def _check_space(out: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed_bytes:
        raise InputError(
            f"the merged model takes {needed_bytes / 1e9:.1f} GB, and {out.parent} has {free / 1e9:.1f} GB free",
            hint="free some space, or write elsewhere",
            field="out",
        )


class _Progress:
    """Tells now and then how many bytes are written."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._written = 0
        self._told = time.monotonic()

    def add(self, written_bytes: int) -> None:
        """So many more bytes are written."""
        self._written += written_bytes
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            self._tell(MergeProgressed(self._written))
