"""Tokenized data as files: Arrow streams that `datasets` maps into memory, and a manifest that says they are whole.

::

    train.arrow         rows of input_ids and labels, cut or packed; of packed ones seq_lengths, too
    evaluation.arrow    the rows held out, if there are any
    manifest.json       a `Manifest`, written last
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import datasets
import pyarrow
from transformers import PreTrainedTokenizerBase

from ftplan.errors import DataError
from ftplan.files import sampled_sha256, write_atomic
from ftplan.launcher.bad_rows import BadRows
from ftplan.launcher.data import TrainingData
from ftplan.launcher.data_forms import Shape
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.chat import ChatFormat
from ftplan.launcher.train.reading import read
from ftplan.launcher.train.tokenizing import Tokenized, tokenized
from ftplan.results import from_json, to_json

MANIFEST: Final = "manifest.json"
TRAIN: Final = "train"
EVALUATION: Final = "evaluation"

_BATCH_ROWS: Final = 1000
_TOKENS: Final = pyarrow.list_(pyarrow.int32())
_SCHEMA: Final = pyarrow.schema([("input_ids", _TOKENS), ("labels", _TOKENS)])


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as it was written; of a large one the hash is that of a part."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the files hold: rows that had this ``shape``, and ``notes`` for the user. ``files`` by name."""

    shape: Shape
    notes: tuple[str, ...]
    files: Mapping[str, Stored]


@dataclass(slots=True)
class _Counts:
    """What cutting does to the rows of a job."""

    rows: int = 0
    truncated: int = 0
    lost_tokens: int = 0
    empty: int = 0
    cutoff: int = 0

    def notes(self) -> list[str]:
        told = []
        if self.truncated:
            told.append(
                f"{self.truncated} of {self.rows} rows are longer than {self.cutoff} tokens: "
                f"{self.lost_tokens} tokens are cut off"
            )
        if self.empty:
            told.append(f"{self.empty} of {self.rows} rows have nothing to learn from after the cut, and are left out")
        return told


def write(job: TrainJob, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, folder: Path) -> Manifest:
    """Tokenize the data of ``job`` into ``folder``; raises DataError for data that cannot be used."""
    data = read(job)
    bad, counts = BadRows(), _Counts(cutoff=job.config.seq_len)
    for name, part in _split(data, job).items():
        rows = _cut(tokenized(part, tokenizer, chat, bad), counts)
        if not _write_rows(folder / f"{name}.arrow", rows, pack_to=job.config.seq_len if job.config.packing else None):
            bad.refuse(len(data.rows), skip=job.data.skip_bad_rows, hint=_OTHER_TEMPLATE)
            message = f"no row to {_USES[name]} has anything to learn from in its first {counts.cutoff} tokens"
            raise DataError(message, hint="use a longer --seq-len, or shorter prompts", field="seq_len")
    bad.refuse(len(data.rows), skip=job.data.skip_bad_rows, hint=_OTHER_TEMPLATE)
    skipped = f"skipped, as told: {bad.told(len(data.rows))}" if bad.count else ""
    notes = [data.note, chat.note if data.shape == "messages" else "", skipped, *counts.notes()]
    files = {path.name: _stored(path) for path in sorted(folder.glob("*.arrow"))}
    manifest = Manifest(data.shape, tuple(note for note in notes if note), files)
    write_atomic(folder / MANIFEST, to_json(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of ``folder`` if all its files are as they were written, None if not."""
    try:
        manifest = from_json(Manifest, (folder / MANIFEST).read_bytes())
        whole = all(_stored(folder / name) == stored for name, stored in manifest.files.items())
    except (OSError, ValueError):
        return None
    return manifest if whole and f"{TRAIN}.arrow" in manifest.files else None


def open_rows(folder: Path, name: str) -> datasets.Dataset | None:
    """The rows of that name, mapped into memory; None if there are none."""
    path = folder / f"{name}.arrow"
    return datasets.Dataset.from_file(str(path)) if path.exists() else None


_OTHER_TEMPLATE: Final = "--chat-template names another template"
_USES: Final = {TRAIN: "train on", EVALUATION: "evaluate"}


def _split(data: TrainingData, job: TrainJob) -> dict[str, TrainingData]:
    """The rows to train on and those held out, whole conversations of each."""
    rows = len(data.rows)
    if not job.data.eval_fraction:
        return {TRAIN: data}
    count = max(1, round(rows * job.data.eval_fraction))
    if count >= rows:
        message = f"{rows} rows leave none to train on after holding out {count}"
        raise DataError(message, hint="use more data, or a smaller eval fraction", field="eval_fraction")
    held_out = set(random.Random(job.seed).sample(range(rows), count))  # noqa: S311 - a reproducible choice
    return {
        TRAIN: data.only(index for index in range(rows) if index not in held_out),
        EVALUATION: data.only(sorted(held_out)),
    }


def _cut(rows: Iterable[Tokenized], counts: _Counts) -> Iterator[Tokenized]:
    """``rows`` cut to the cutoff, without those that then have nothing to learn from."""
    cutoff = counts.cutoff
    for row in rows:
        beyond = max(0, len(row.input_ids) - cutoff)
        counts.rows += 1
        counts.truncated += beyond > 0
        counts.lost_tokens += beyond
        if row.learns(cutoff):
            yield Tokenized(row.input_ids[:cutoff], row.labels[:cutoff])
        else:
            counts.empty += 1


def _write_rows(path: Path, rows: Iterator[Tokenized], *, pack_to: int | None) -> int:
    """Write ``rows`` to ``path``, packed to rows of ``pack_to`` tokens if that is given; returns how many came."""
    plain = path if pack_to is None else path.with_suffix(".unpacked")
    count = 0
    with pyarrow.OSFile(str(plain), "wb") as sink, pyarrow.ipc.new_stream(sink, _SCHEMA) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            count += len(batch)
            columns = [pyarrow.array([row[column] for row in batch], _TOKENS) for column in range(2)]
            writer.write_batch(pyarrow.record_batch(columns, schema=_SCHEMA))
    if pack_to is not None:
        if count:
            _pack(plain, path, pack_to)
        plain.unlink()
    return count


def _pack(plain: Path, path: Path, length: int) -> None:
    from trl import pack_dataset  # seconds to import, and needed by packing only

    packed = pack_dataset(datasets.Dataset.from_file(str(plain), in_memory=True), length, "bfd")
    table = packed.with_format("arrow")[:]
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _stored(path: Path) -> Stored:
    return Stored(path.stat().st_size, sampled_sha256(path))
