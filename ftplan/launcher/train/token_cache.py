"""The cache of tokenized data: an entry for everything that decides the tokens, whole or absent, made by one process.

Processes that want the same entry wait for the first of them, on a lock that the death of its holder releases.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from ftplan.errors import DataError
from ftplan.files import publish
from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.chat import ChatFormat
from ftplan.launcher.train.reading import hub_dataset
from ftplan.launcher.train.token_files import Manifest, read_manifest
from ftplan.launcher.train.versions import version_of

LIBRARIES: Final = ("transformers", "tokenizers", "sentencepiece", "jinja2", "trl", "datasets", "pyarrow")
"""Whose versions may change the tokens, their packing, or the files."""

_LAUNCHER: Final = Path(__file__).parents[1]
_CODE: Final = (
    *("data.py", "data_described.py", "data_files.py", "data_forms.py", "row_fields.py"),
    *("train/chat.py", "train/reading.py", "train/token_files.py", "train/tokenizing.py"),
)
"""What of this package decides the tokens."""


def entry(folder: Path, key: str, write: Callable[[Path], Manifest]) -> tuple[Path, Manifest, bool]:
    """The folder of the entry ``key``, its manifest, and whether a damaged one had to be made anew.

    ``write`` fills a new folder if there is no whole entry, and returns its manifest. Raises OSError where the cache
    cannot be written, and whatever ``write`` raises, of which nothing stays.
    """
    place = folder / key
    if (manifest := read_manifest(place)) is not None:
        return place, manifest, False
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{key}.lock"):
        if (manifest := read_manifest(place)) is not None:
            return place, manifest, False
        damaged = place.exists()
        return place, _make(place, write), damaged


def key(job: TrainJob, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> str:
    """A name for everything that decides the tokens of ``job``; raises DataError for data that cannot be read."""
    config, source = job.config, job.data
    decides = {
        "data": source.model_dump(mode="json"),
        "content": [_file_digest(path) for path in _paths(job)],
        "hub": [hub_dataset(one)._fingerprint for one in source.hub_sets],
        "tokenizer": _tokenizer_digest(tokenizer),
        "chat": [chat.text, chat.marks_assistant, chat.note],
        "cut": [config.seq_len, config.packing],
        "seed": job.seed,
        "versions": {name: version_of(name) for name in LIBRARIES},
        "code": [_file_digest(str(_LAUNCHER / name)) for name in _CODE],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _paths(job: TrainJob) -> list[str]:
    return [*job.data.paths, *(path for one in job.data.described for path in one.paths)]


def _file_digest(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", field="data") from error


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all a tokenizer goes by: vocabulary, merges, normalisation, special tokens."""
    told: list[Any] = [type(tokenizer).__name__, {str(k): str(v) for k, v in tokenizer.special_tokens_map.items()}]
    if tokenizer.is_fast:
        told.append(tokenizer.backend_tokenizer.to_str())
    else:
        told += [sorted(tokenizer.get_vocab().items()), {k: str(v) for k, v in tokenizer.init_kwargs.items()}]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _make(place: Path, write: Callable[[Path], Manifest]) -> Manifest:
    """Put a new entry at ``place`` by one rename; its lock is held."""
    for left in place.parent.glob(f".{place.name}.*"):
        shutil.rmtree(left)  # of a process that was killed
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    partial.mkdir()
    try:
        manifest = write(partial)
        if place.exists():
            place.rename(partial.with_name(f"{partial.name}.damaged"))
        publish(partial, place)
        return manifest
    finally:
        for left in place.parent.glob(f"{partial.name}*"):
            shutil.rmtree(left)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
