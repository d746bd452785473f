"""Tokenized data on disk: what is in it, that it is whole or absent, made once, and the same as without a cache."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
from jobs import make_config, make_job
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftplan.errors import DataError
from ftplan.launcher import demo
from ftplan.launcher.job import DataSource, TrainJob
from ftplan.launcher.train import lengths as worker_lengths
from ftplan.launcher.train import token_cache, token_files
from ftplan.launcher.train.chat import chat_format
from ftplan.launcher.train.dataset import Prepared, prepare
from ftplan.launcher.train.reading import hub_dataset
from ftplan.launcher.train.tokenizing import NO_LOSS

ROWS = 40


def row(number: int, words: int = 1) -> dict[str, Any]:
    return {"instruction": f"Say {number}.", "output": " ".join([str(number)] * words)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row(number)) for number in range(ROWS)))
    return path


def job_for(file: Path, cache: Path | None = None, *, source: dict[str, Any] | None = None, **changes: Any) -> TrainJob:
    config = {name: changes.pop(name) for name in ("seq_len", "packing") if name in changes}
    return make_job(
        make_config(sharding="ddp", **config),
        tokenizer=demo.tokenizer(),
        data=DataSource(paths=(str(file),), **(source or {})),
        data_cache=None if cache is None else str(cache),
        **changes,
    )


def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo.model_path())


def prepared(job: TrainJob) -> Prepared:
    return prepare(job, tokenizer())


def columns(data: Prepared) -> tuple[Any, Any, tuple[str, ...]]:
    evaluation = None if data.evaluation is None else data.evaluation.to_dict()
    return data.train.to_dict(), evaluation, data.notes


@pytest.mark.parametrize("packing", [False, True])
def test_cached_and_uncached_rows_are_the_same(file: Path, tmp_path: Path, packing: bool) -> None:
    settings: dict[str, Any] = {"packing": packing, "source": {"eval_fraction": 0.2}, "seq_len": 20}
    plain = columns(prepared(job_for(file, **settings)))
    assert columns(prepared(job_for(file, tmp_path / "cache", **settings))) == plain
    assert columns(prepared(job_for(file, tmp_path / "cache", **settings))) == plain
    train, evaluation, _ = plain
    assert sorted(train) == sorted(evaluation) == ["input_ids", "labels", *(["seq_lengths"] if packing else [])]
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 1


def test_packed_rows_learn_the_same_tokens(file: Path) -> None:
    plain = prepared(job_for(file, seq_len=24)).train
    packed = prepared(job_for(file, seq_len=24, packing=True)).train
    assert len(packed) < len(plain) == ROWS
    samples = []
    for ids, labels, lengths in zip(packed["input_ids"], packed["labels"], packed["seq_lengths"], strict=True):
        assert sum(lengths) == len(ids) == len(labels) <= 24
        start = 0
        for length in lengths:
            samples.append((tuple(ids[start : start + length]), tuple(labels[start : start + length])))
            start += length
    assert sorted(samples) == sorted(zip(map(tuple, plain["input_ids"]), map(tuple, plain["labels"]), strict=True))
    end = tokenizer().eos_token_id
    assert all(labels[-1] == end and labels[0] == NO_LOSS for _, labels in samples)


def test_held_out_rows_are_chosen_by_the_seed(file: Path) -> None:
    def held_out(seed: int) -> Any:
        data = prepared(job_for(file, source={"eval_fraction": 0.25}, seed=seed))
        train, evaluation = (set(map(tuple, part["input_ids"])) for part in (data.train, data.evaluation))
        assert (len(train), len(evaluation), train & evaluation) == (30, 10, set())
        return evaluation

    assert held_out(1) == held_out(1) != held_out(2)


def test_holding_out_must_leave_rows_to_train_on(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row(1)))
    with pytest.raises(DataError, match="1 rows leave none to train on after holding out 1"):
        prepared(job_for(path, source={"eval_fraction": 0.5}))


def test_what_the_cut_takes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(map(json.dumps, [row(1), row(2, 40), row(3) | {"instruction": "x " * 60}])))
    data = prepared(job_for(path, seq_len=32))
    assert len(data.train) == 2
    assert max(map(len, data.train["input_ids"])) == 32
    truncated, empty = data.notes
    assert truncated.startswith("2 of 3 rows are longer than 32 tokens: ")
    assert empty == "1 of 3 rows have nothing to learn from after the cut, and are left out"
    report = worker_lengths.measured(job_for(path, seq_len=32))
    assert (report.rows, report.truncated_rows, report.empty_rows, report.cutoff) == (3, 2, 1, 32)
    assert f": {report.lost_tokens} tokens are cut off" in truncated


def test_nothing_left_to_learn_from_is_an_error_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row to train on has anything to learn from in its first 2 tokens"):
        prepared(job_for(file, tmp_path / "cache", seq_len=2))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_skipped_rows_are_noted_with_and_without_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row(1))}\noops\n")
    job = job_for(path, tmp_path / "cache", source={"skip_bad_rows": True, "form": "alpaca"})
    assert prepared(job).notes == prepared(job).notes
    (note,) = prepared(job).notes
    assert note.startswith(f"skipped, as told: {path}, line 2: malformed JSON")
    with pytest.raises(DataError, match="line 2"):
        prepared(job_for(path, tmp_path / "cache"))


CHANGES: dict[str, Callable[[Path, Path], TrainJob]] = {
    "cutoff": lambda file, cache: job_for(file, cache, seq_len=64),
    "packing": lambda file, cache: job_for(file, cache, packing=True),
    "template": lambda file, cache: job_for(file, cache, chat_template="plain"),
    "seed": lambda file, cache: job_for(file, cache, seed=7),
    "form": lambda file, cache: job_for(file, cache, source={"form": "alpaca"}),
    "content": lambda file, cache: job_for(changed(file), cache),
}


def changed(file: Path) -> Path:
    file.write_text(file.read_text() + "\n" + json.dumps(row(99)))
    return file


def key(job: TrainJob, given: PreTrainedTokenizerBase | None = None) -> str:
    given = given or tokenizer()
    return token_cache.key(job, given, chat_format(given, job.chat_template))


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_the_tokens_makes_another_entry(change: str, file: Path, tmp_path: Path) -> None:
    before = key(job_for(file, tmp_path))
    assert before == key(job_for(file, tmp_path / "elsewhere"))
    assert before != key(CHANGES[change](file, tmp_path))


def test_another_tokenizer_makes_another_entry(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, other = key(job_for(file)), tokenizer()
    other.add_tokens(["<|new|>"])
    assert key(job_for(file), other) != before
    other = tokenizer()
    other.eos_token = "<|user|>"
    assert key(job_for(file), other) != before
    monkeypatch.setattr(token_cache, "version_of", lambda name: "0.0")
    assert key(job_for(file)) != before


def test_data_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*missing\.jsonl: No such file"):
        prepared(job_for(tmp_path / "missing.jsonl", tmp_path / "cache"))


def cut_short(place: Path) -> None:
    (place / "train.arrow").write_bytes((place / "train.arrow").read_bytes()[:-1])


def flipped(place: Path) -> None:
    content = bytearray((place / "train.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (place / "train.arrow").write_bytes(content)


def without_manifest(place: Path) -> None:
    (place / token_files.MANIFEST).unlink()


def without_rows(place: Path) -> None:
    (place / "train.arrow").unlink()


def other_manifest(place: Path) -> None:
    (place / token_files.MANIFEST).write_text('{"shape": "text", "notes": [], "files": {}}')


@pytest.mark.parametrize("damage", [cut_short, flipped, without_manifest, without_rows, other_manifest])
def test_a_damaged_entry_is_made_anew(damage: Callable[[Path], None], file: Path, tmp_path: Path) -> None:
    job = job_for(file, tmp_path / "cache")
    whole = columns(prepared(job))
    (place,) = (manifest.parent for manifest in (tmp_path / "cache").glob("*/manifest.json"))
    damage(place)
    *rows, notes = columns(prepared(job))
    assert (*rows, notes) == (*whole[:2], ("a damaged entry of the data cache was made anew",))
    assert columns(prepared(job)) == whole
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [place.name, f"{place.name}.lock"]


def test_one_process_writes_and_the_others_wait(tmp_path: Path) -> None:
    """Threads stand for processes: a lock belongs to the descriptor, of which each has its own."""
    written, found = [], []
    started = threading.Barrier(4)

    def write(folder: Path) -> token_files.Manifest:
        written.append(folder)
        (folder / "train.arrow").write_bytes(b"rows")
        stored = token_files._stored(folder / "train.arrow")
        manifest = token_files.Manifest("text", (), {"train.arrow": stored})
        (folder / token_files.MANIFEST).write_text(token_files.to_json(manifest))
        return manifest

    def rank() -> None:
        started.wait()
        found.append(token_cache.entry(tmp_path, "key", write)[0])

    ranks = [threading.Thread(target=rank) for _ in range(4)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    assert len(written) == 1
    assert found == [tmp_path / "key"] * 4


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".key.1"
    left.mkdir()
    (left / "train.arrow").write_bytes(b"half")

    def fail(folder: Path) -> token_files.Manifest:
        (folder / "train.arrow").write_bytes(b"half")
        raise DataError("bad")

    with pytest.raises(DataError):
        token_cache.entry(tmp_path, "key", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def test_where_the_cache_cannot_be_written_rows_come_without_it(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    data = prepared(job_for(file, tmp_path / "cache"))
    assert len(data.train) == ROWS
    assert data.notes[0].startswith("tokenized data is not cached: ")


def test_the_tokenizer_takes_up_the_template_from_a_cached_entry_too(file: Path, tmp_path: Path) -> None:
    job = job_for(file, tmp_path / "cache", chat_template="plain")
    for _ in range(2):
        given = tokenizer()
        data = prepare(job, given)
        assert "bos_token" in given.chat_template
        assert data.notes == ("the chat template 'plain' takes the place of the tokenizer's own, as told",)


def test_a_template_has_no_use_for_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "Hi. ", "completion": "Bye."}')
    bare = tokenizer()
    bare.chat_template = None
    assert prepare(job_for(path), bare).notes == ()
    assert bare.chat_template is None


def test_a_set_of_the_hub_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def absent(*args: Any, **options: Any) -> None:
        raise ConnectionError(f"no {args[0]} {options['split']}\nand more")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    job = make_job(tokenizer=demo.tokenizer(), data=DataSource(hub="owner/name", hub_split="test"))
    with pytest.raises(
        DataError, match=r"owner/name \(split test\) could not be had from the hub: no owner/name test$"
    ):
        prepared(job)


def test_a_set_of_the_hub_is_read_once_and_cached_by_its_fingerprint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    loaded: list[int] = []

    def prepared_from(count: int) -> int:
        """What another process finds when the hub has so many rows."""
        rows = datasets.Dataset.from_list([row(number) for number in range(count)])
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: (loaded.append(count), rows)[1])
        hub_dataset.cache_clear()
        return len(prepared(job).train)

    job = make_job(tokenizer=demo.tokenizer(), data=DataSource(hub="owner/name"), data_cache=str(tmp_path / "cache"))
    assert [prepared_from(count) for count in (3, 4, 3)] == [3, 4, 3]
    assert loaded == [3, 4, 3]
    hub_dataset.cache_clear()


def test_new_files_are_hashed_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    sha256 = token_files.sampled_sha256
    monkeypatch.setattr(token_files, "sampled_sha256", lambda path: (hashed.append(path.name), sha256(path))[1])
    for job in (job_for(file), job_for(file, tmp_path / "cache")):
        hashed.clear()
        prepared(job)
        assert hashed == ["train.arrow"]


def test_rows_outlive_their_entry(file: Path, tmp_path: Path) -> None:
    """Entries are mapped: one that is deleted under a run stays readable to it."""
    data = prepared(job_for(file, tmp_path / "cache"))
    for folder, _, names in os.walk(tmp_path / "cache"):
        for name in names:
            (Path(folder) / name).unlink()
    assert len(data.train["input_ids"]) == ROWS
