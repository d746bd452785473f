"""Headers of safetensors files, read and written; damaged ones end in one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftplan.errors import InputError
from ftplan.launcher.weight_files import (
    INDEX,
    SINGLE,
    Planned,
    file_names,
    header_of,
    index_of,
    read_header,
    split,
    tensors_of,
)

A = Planned("a", "F32", (2, 3), 24)
B = Planned("b", "BF16", (5,), 10)
C = Planned("c", "I64", (), 8)


def write(path: Path, *tensors: Planned) -> Path:
    path.write_bytes(header_of(tensors) + bytes(sum(tensor.size_bytes for tensor in tensors)))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    read = read_header(write(tmp_path / SINGLE, A, B, C))
    assert [(one.name, one.dtype, one.shape, one.size_bytes) for one in read] == [
        (one.name, one.dtype, one.shape, one.size_bytes) for one in (A, B, C)
    ]
    assert [one.start - read[0].start for one in read] == [0, 24, 34]
    assert read[0].start % 8 == 0
    assert [(one.rows, one.row_elements) for one in read] == [(2, 3), (5, 1), (1, 1)]


def test_safetensors_reads_it_too(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(write(tmp_path / SINGLE, A, B, C), "np") as file:
        assert sorted(file.keys()) == ["a", "b", "c"]
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice("a").get_shape() == [2, 3]


def test_files_are_filled_in_order_and_named_as_transformers_does() -> None:
    assert split([A, B, C], 34) == [[A, B], [C]]
    assert split([A, B, C], 5) == [[A], [B], [C]]
    assert split([A, B, C], 10**9) == [[A, B, C]]
    assert file_names(1) == ["model.safetensors"]
    assert file_names(2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert json.loads(index_of({"one": [A, B], "two": [C]})) == {
        "metadata": {"total_size": 42},
        "weight_map": {"a": "one", "b": "one", "c": "two"},
    }


def test_a_model_in_several_files(tmp_path: Path) -> None:
    write(tmp_path / "1.safetensors", A)
    write(tmp_path / "2.safetensors", B)
    (tmp_path / INDEX).write_text(index_of({"1.safetensors": [A], "2.safetensors": [B]}))
    assert {name: one.file.name for name, one in tensors_of(tmp_path).items()} == {
        "a": "1.safetensors",
        "b": "2.safetensors",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (header_of([A])[:20], "not a safetensors file"),
        (header_of([A]), "cut short"),
        (header_of([A]).replace(b'"F32"', b'"F64"') + bytes(24), "not a safetensors file"),
    ],
    ids=["empty", "noise", "half a header", "no tensors", "sizes that contradict"],
)
def test_damaged_files_are_told(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(InputError, match=message):
        tensors_of(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("no json", "is not an index"),
        ("[]", "is not an index"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "cannot read"),
        ('{"weight_map": {"a": "../other.safetensors"}}', "which is no file beside it"),
    ],
)
def test_a_bad_index_is_told(index: str, message: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(InputError, match=message):
        tensors_of(tmp_path)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match="no weights as safetensors"):
        tensors_of(tmp_path)
