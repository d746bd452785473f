from __future__ import annotations

from pathlib import Path

import pytest

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


def test_large_files_are_compared_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "HASHED_UP_TO_BYTES", 10)
    folder = save(tmp_path, 10)
    (folder / "model.safetensors").write_bytes(b"y" * 1000)
    assert checkpoints.read(folder) is not None
    (folder / "model.safetensors").write_bytes(b"y" * 999)
    assert checkpoints.read(folder) is None


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
    unfinished = save(tmp_path, 20, sealed=False)
    assert checkpoints.discard_incomplete(tmp_path) == [unfinished]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10"]


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
