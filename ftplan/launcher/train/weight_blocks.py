"""Weights read, changed and written a block of rows at a time, so that memory does not grow with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import torch

from ftplan.errors import InputError
from ftplan.files import sync
from ftplan.launcher.train.adapter_files import Change, Lora
from ftplan.launcher.train.merge_plan import Output
from ftplan.launcher.weight_files import ITEM_BYTES, Stored, header_of

DTYPES: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COPY_BYTES: Final = 8 * 2**20
BYTES_PER_ELEMENT: Final = 20
"""At most what a block takes for each element: as stored, in fp32, its copy for a norm or a check, and rounded."""


def write_file(path: Path, outputs: Sequence[Output], block_elements: int, wrote: Callable[[int], None]) -> None:
    """Write ``outputs`` to ``path`` and flush it to disk, telling ``wrote`` how many bytes each block had."""
    with path.open("wb") as file:
        file.write(header_of([output.planned for output in outputs]))
        for output in outputs:
            blocks = _copied(output.source) if output.is_copy else _changed(output, block_elements)
            for block in blocks:
                wrote(file.write(block))
    sync(path)


def _copied(source: Stored) -> Iterator[bytes]:
    with source.file.open("rb") as file:
        file.seek(source.start)
        left = source.size_bytes
        while left:
            block = file.read(min(left, COPY_BYTES))
            if not block:
                raise InputError(f"{source.file} is cut short", field="base")
            left -= len(block)
            yield block


def _changed(output: Output, block_elements: int) -> Iterator[memoryview]:
    source = output.change.replacement or output.source
    lora = _Factors(output.change.lora, turned=_turned(output)) if output.change.lora is not None else None
    rows = max(1, block_elements // max(1, source.row_elements))
    with source.file.open("rb") as file:
        for begin in range(0, source.rows, rows):
            block = _rows(file, source, begin, min(begin + rows, source.rows))
            block = block.to(torch.promote_types(block.dtype, torch.float32))
            if lora is not None:
                lora.add_to(block, begin)
            rounded = block.to(DTYPES[output.planned.dtype])
            if not torch.isfinite(rounded).all():
                raise InputError(
                    f"{output.planned.name} has values that {output.planned.dtype} cannot hold, or that are no numbers",
                    hint="fp16 ends at 65504: choose another --dtype; or the adapter or the base is broken",
                    field="dtype",
                )
            yield memoryview(rounded.reshape(-1).view(torch.uint8).numpy())


def _turned(output: Output) -> bool:
    """Whether rows of the weight are columns of B A."""
    lora = output.change.lora
    return output.transposed or (lora is not None and lora.embedding)


def _rows(file: BinaryIO, stored: Stored, begin: int, end: int) -> torch.Tensor:
    row_bytes = stored.row_elements * ITEM_BYTES[stored.dtype]
    buffer = bytearray((end - begin) * row_bytes)
    file.seek(stored.start + begin * row_bytes)
    if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
        raise InputError(f"{stored.file} is cut short", field="base")
    shape = (end - begin, *stored.shape[1:]) if stored.shape else ()
    return torch.frombuffer(buffer, dtype=DTYPES[stored.dtype]).view(shape)


def _whole(stored: Stored) -> torch.Tensor:
    with stored.file.open("rb") as file:
        return _rows(file, stored, 0, stored.rows).to(torch.float32)


class _Factors:
    """B and A of one weight in fp32; ``turned`` where the weight's rows are columns of B A."""

    def __init__(self, lora: Lora, *, turned: bool) -> None:
        a, b = _whole(lora.a), _whole(lora.b)
        self._left, self._right = (a.T, b.T) if turned else (b, a)
        self._scaling = lora.scaling
        self._magnitude = _whole(lora.magnitude).flatten() if lora.magnitude is not None else None

    def add_to(self, block: torch.Tensor, begin: int) -> None:
        """Add what belongs to the rows from ``begin`` on; under DoRA then scale each row to its magnitude."""
        end = begin + len(block)
        left, right = self._left[begin:end].to(block.dtype), self._right.to(block.dtype)
        block.addmm_(left, right, alpha=self._scaling)
        if self._magnitude is not None:
            block.mul_((self._magnitude[begin:end] / torch.linalg.norm(block, dim=1)).unsqueeze(1))


def largest_factors_bytes(changes: Sequence[Change]) -> int:
    """Bytes of the largest pair of factors, as stored and in fp32, the widest dtypes counted."""
    pairs = ((change.lora.a, change.lora.b) for change in changes if change.lora is not None)
    return max((2 * sum(4 * one.rows * one.row_elements for one in pair) for pair in pairs), default=0)
