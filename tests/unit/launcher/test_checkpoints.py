from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ftplan import files
from ftplan.launcher import checkpoints


def save(root: Path, step: int, *, sealed: bool = True) -> Path:
    folder = root / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes([step % 256]) * 1000)
    (folder / "global_step" / "rank0.pt").write_bytes(b"state")
    if sealed:
        checkpoints.seal(folder, step=step, world_size=2, global_batch=16)
    return folder


def test_the_newest_complete_checkpoint_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 20, 100):
        save(tmp_path, step)
    latest = checkpoints.latest_complete(tmp_path)
    assert latest == checkpoints.Checkpoint(tmp_path / "checkpoint-100", 100, 2, 16)
    assert [checkpoint.step for checkpoint in checkpoints.complete(tmp_path)] == [100, 20, 9]


def test_without_a_manifest_there_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20, sealed=False)
    latest = checkpoints.latest_complete(tmp_path)
    assert latest is not None
    assert latest.step == 10


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoints.latest_complete(tmp_path / "none") is None
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-5").touch()
    assert checkpoints.latest_complete(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncate", "grow", "flip", "remove", "manifest", "manifest-kind", "nested"])
def test_a_damaged_checkpoint_is_absent(tmp_path: Path, damage: str) -> None:
    folder = save(tmp_path, 10)
    weights, manifest = folder / "model.safetensors", folder / checkpoints.MANIFEST
    content = weights.read_bytes()
    match damage:
        case "truncate":
            weights.write_bytes(content[:-1])
        case "grow":
            weights.write_bytes(content + b"x")
        case "flip":
            weights.write_bytes(b"x" + content[1:])
        case "remove":
            weights.unlink()
        case "manifest":
            manifest.write_bytes(manifest.read_bytes()[:50])
        case "manifest-kind":
            manifest.write_text("[]")
        case "nested":
            (folder / "global_step" / "rank0.pt").unlink()
    assert checkpoints.read(folder) is None
    assert checkpoints.latest_complete(tmp_path) is None


@pytest.fixture
def sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sealed checkpoint whose weights, 1000 bytes, are large: 4 blocks of 10 bytes are read of them."""
    monkeypatch.setattr(files, "HASHED_UP_TO_BYTES", 40)
    monkeypatch.setattr(files, "BLOCK_BYTES", 10)
    return save(tmp_path, 10)


@pytest.mark.parametrize("offset", [0, 9, 330, 660, 990, 999])
def test_damage_in_the_blocks_that_are_read_of_a_large_file_is_seen(sampled: Path, offset: int) -> None:
    assert checkpoints.read(sampled) is not None
    with (sampled / "model.safetensors").open("r+b") as file:
        file.seek(offset)
        file.write(b"x")
    assert checkpoints.read(sampled) is None


def test_a_hole_in_a_large_file_is_seen(sampled: Path) -> None:
    with (sampled / "model.safetensors").open("r+b") as file:
        file.truncate(500)
        file.truncate(1000)
    assert checkpoints.read(sampled) is None


def test_the_rest_of_a_large_file_is_compared_by_size(sampled: Path) -> None:
    weights = sampled / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:10] + b"x" + content[11:])
    assert checkpoints.read(sampled) is not None
    weights.write_bytes(content[:-1])
    assert checkpoints.read(sampled) is None


def test_a_manifest_without_the_hash_of_a_large_file_is_good(sampled: Path) -> None:
    manifest = sampled / checkpoints.MANIFEST
    document = json.loads(manifest.read_text())
    document["files"]["model.safetensors"]["sha256"] = None
    manifest.write_text(json.dumps(document))
    assert checkpoints.read(sampled) is not None


def test_an_empty_folder_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(AssertionError, match="nothing was saved"):
        checkpoints.seal(tmp_path / "checkpoint-1", step=1, world_size=1, global_batch=1)


def test_files_and_folders_are_on_disk_before_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, 10, sealed=False)
    flushed: list[Path] = []

    def sync(path: Path) -> None:
        assert not (folder / checkpoints.MANIFEST).exists() or path in (folder, tmp_path)
        flushed.append(path)

    monkeypatch.setattr(checkpoints, "sync", sync)
    checkpoints.seal(folder, step=10, world_size=1, global_batch=1)
    assert {folder, tmp_path, folder / "global_step", *folder.glob("global_step/*")} <= set(flushed)


def test_pruning_counts_complete_checkpoints_only(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    for step in (30, 40, 50):
        save(tmp_path, step, sealed=False)
    checkpoints.prune(tmp_path, keep=1)
    assert [checkpoint.step for checkpoint in checkpoints.complete(tmp_path)] == [20]
    assert not (tmp_path / "checkpoint-10").exists()
    with pytest.raises(AssertionError):
        checkpoints.prune(tmp_path, keep=0)


def test_what_a_kill_left_behind_is_discarded(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20, sealed=False)
    checkpoints.discard_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10"]


def test_a_damaged_checkpoint_is_set_aside_and_not_deleted(tmp_path: Path) -> None:
    save(tmp_path, 10)
    for number in (1, 2):
        damaged = save(tmp_path, 20)
        (damaged / "model.safetensors").write_bytes(b"x")
        assert checkpoints.set_aside_damaged(tmp_path) == [tmp_path / f"damaged-checkpoint-20-{number}"]
    assert checkpoints.set_aside_damaged(tmp_path) == []
    checkpoints.discard_unfinished(tmp_path)
    checkpoints.prune(tmp_path, keep=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-10", "damaged-checkpoint-20-1", "damaged-checkpoint-20-2"]
    assert (tmp_path / names[1] / "global_step" / "rank0.pt").read_bytes() == b"state"


def test_the_only_good_checkpoint_outlives_newer_damaged_ones(tmp_path: Path) -> None:
    save(tmp_path, 10)
    for step in (20, 30):
        (save(tmp_path, step) / "model.safetensors").write_bytes(b"x")
    checkpoints.prune(tmp_path, keep=1)
    assert [checkpoint.step for checkpoint in checkpoints.complete(tmp_path)] == [10]


def test_a_kill_during_deletion_leaves_no_false_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.prune(tmp_path, keep=1)
    assert [checkpoint.step for checkpoint in checkpoints.complete(tmp_path)] == [20]


def test_checkpoints_are_set_aside_one_lot_beside_the_other(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    assert checkpoints.set_aside(root) is None
    for lot in (1, 2):
        save(root, 10 * lot)
        assert checkpoints.set_aside(root) == tmp_path / f"checkpoints-before-{lot}"
        assert not root.exists()
    assert [each.step for each in checkpoints.complete(tmp_path / "checkpoints-before-2")] == [20]


def test_a_lot_that_was_deleted_leaves_its_number_free(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for _ in range(2):
        save(root, 10)
        checkpoints.set_aside(root)
    shutil.rmtree(tmp_path / "checkpoints-before-1")
    for lot in (1, 3):
        save(root, 20)
        assert checkpoints.set_aside(root) == tmp_path / f"checkpoints-before-{lot}"
