"""Safetensors files without loading them: what a model folder holds, tensor by tensor, and headers of new files.

The format is eight bytes with the length of a JSON header, the header, and the tensors one after the other
(https://github.com/huggingface/safetensors#format). Light: neither torch nor safetensors is needed to read a header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ftplan.errors import InputError

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_HEADER_BYTES: Final = 100 * 10**6
"""As the reference implementation: a longer header is no header."""

ITEM_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
"""Bytes of an element, by the format's names of dtypes; newer ones than these are copied as they are."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file: ``start`` is the byte of the file it begins at, ``dtype`` the format's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size_bytes: int

    @property
    def rows(self) -> int:
        """The length of the first dimension, 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_elements(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape[1:])


def tensors_of(folder: Path) -> dict[str, Stored]:
    """Every tensor of the model in ``folder``, by name, in the order of its files.

    Raises InputError where a file is missing, damaged, or not of this format.
    """
    found: dict[str, Stored] = {}
    for file in _files(folder):
        for stored in read_header(file):
            found.setdefault(stored.name, stored)
    return found


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        return [folder / name for name in _indexed(folder / INDEX)]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    raise InputError(
        f"{folder} holds no weights as safetensors ({SINGLE} or {INDEX})",
        hint="other formats cannot be read tensor by tensor: load and save the model with transformers once",
        field="base",
    )


def _indexed(index: Path) -> list[str]:
    """The files an index names, each once; none of them may be outside its folder."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is not an index of weights", hint="copy the model anew", field="base") from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise InputError(f"{index} names {outside[0]!r}, which is no file beside it", field="base")
    return names


def read_header(file: Path) -> list[Stored]:
    """The tensors of one file, in the order they are stored in; raises InputError if it is damaged or missing."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError
            header = json.loads(opened.read(length))
        stored = [_stored(name, told, file, 8 + length) for name, told in header.items() if name != "__metadata__"]
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", hint="copy the model anew", field="base") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is not a safetensors file", hint="copy it anew: it is damaged", field="base"
        ) from error
    if any(one.start + one.size_bytes > size for one in stored):
        raise InputError(f"{file} is cut short", hint="copy it anew", field="base")
    return sorted(stored, key=lambda one: one.start)


def _stored(name: str, told: Mapping[str, Any], file: Path, data: int) -> Stored:
    begin, end = told["data_offsets"]
    stored = Stored(name, str(told["dtype"]), tuple(told["shape"]), file, data + int(begin), int(end) - int(begin))
    known = ITEM_BYTES.get(stored.dtype)
    if begin < 0 or (known is not None and stored.size_bytes != math.prod(stored.shape) * known):
        raise ValueError(f"{name}: {stored.dtype} of shape {stored.shape} is not {stored.size_bytes} bytes")
    return stored


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of a file to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def split(tensors: Iterable[Planned], max_bytes: int) -> list[list[Planned]]:
    """``tensors`` in files of at most ``max_bytes``, in order; one that is larger has a file of its own."""
    files: list[list[Planned]] = [[]]
    filled = 0
    for tensor in tensors:
        if files[-1] and filled + tensor.size_bytes > max_bytes:
            files.append([])
            filled = 0
        files[-1].append(tensor)
        filled += tensor.size_bytes
    return files


def file_names(count: int) -> list[str]:
    """The names transformers gives to the ``count`` files of a model."""
    return [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def header_of(tensors: Sequence[Planned]) -> bytes:
    """What stands in a file before the bytes of ``tensors``."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size_bytes],
        }
        at += tensor.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # The tensors begin at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def index_of(files: Mapping[str, Sequence[Planned]]) -> str:
    """The index of a model in several ``files``."""
    weights = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
    total = sum(tensor.size_bytes for tensors in files.values() for tensor in tensors)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weights}, indent=2) + "\n"
