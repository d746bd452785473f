"""Conversion to DeepSpeed's universal form, with a script in the place of DeepSpeed's."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import make_config, make_job

from ftplan.errors import RunFailedError
from ftplan.launcher import artifacts, checkpoints, resharding
from ftplan.launcher.checkpoints import Checkpoint
from ftplan.launcher.records import RunDir

CONVERTS = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
test "$3" = --input_folder && test "$5" = --output_folder && test -d "$4" || exit 1
mkdir -p "$6/zero" && cp "$4/rank0.pt" "$6/zero/fp32.pt" && echo "$(basename "$6")" > "$(dirname "$6")/latest_universal"
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def saved(run: RunDir) -> Checkpoint:
    folder = run.checkpoints / "checkpoint-6"
    (folder / "global_step6").mkdir(parents=True)
    (folder / "global_step6" / "rank0.pt").write_bytes(b"state")
    (folder / "latest").write_text("global_step6")
    for name in ("trainer_state.json", "scheduler.pt", "rng_state_0.pth", "model.safetensors"):
        (folder / name).write_text(name)
    checkpoints.seal(folder, step=6, world_size=2, global_batch=16)
    found = checkpoints.read(folder)
    assert found is not None
    return found


def python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


def test_only_deepspeed_on_another_number_of_ranks_needs_it(saved: Checkpoint) -> None:
    for sharding in ("ddp", "fsdp2", *artifacts.ZERO_STAGES):
        assert not resharding.is_needed(saved, make_job(make_config(sharding=sharding)))
        one = make_job(make_config(sharding=sharding, accumulation=4), world_size=1, nproc_per_node=1)
        assert resharding.is_needed(saved, one) == (sharding in artifacts.ZERO_STAGES)


def test_what_the_trainer_reads_lies_beside_the_converted_states(
    run: RunDir, saved: Checkpoint, tmp_path: Path
) -> None:
    (run.checkpoints / "universal-3").mkdir()
    folder = resharding.universal(run, saved, python(tmp_path, CONVERTS))
    assert folder == run.checkpoints / "universal-6"
    assert (folder / "latest_universal").read_text() == "global_step6\n"
    assert (folder / "global_step6" / "zero" / "fp32.pt").read_bytes() == b"state"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"trainer_state.json", "scheduler.pt", "rng_state_0.pth"}
    assert "model.safetensors" not in names
    assert not (run.checkpoints / "universal-3").exists()
    assert checkpoints.latest_complete(run.checkpoints) == saved


def test_a_conversion_is_used_again_unless_it_is_damaged(run: RunDir, saved: Checkpoint, tmp_path: Path) -> None:
    converter = python(tmp_path, CONVERTS)
    folder = resharding.universal(run, saved, converter)
    assert resharding.universal(run, saved, converter) == folder
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    (folder / "global_step6" / "zero" / "fp32.pt").write_bytes(b"x")
    resharding.universal(run, saved, converter)
    assert (folder / "global_step6" / "zero" / "fp32.pt").read_bytes() == b"state"
    resharding.discard(run)
    assert not folder.exists()


def test_a_conversion_that_fails_leaves_the_checkpoint_alone(run: RunDir, saved: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="could not convert") as caught:
        resharding.universal(run, saved, python(tmp_path, "#!/bin/sh\necho no room; exit 1\n"))
    assert str(run.log) in caught.value.hint
    assert "no room" in run.log.read_text()
    assert checkpoints.latest_complete(run.checkpoints) == saved
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-6"]


def test_what_a_kill_left_of_a_conversion_is_discarded(run: RunDir, saved: Checkpoint) -> None:
    (run.checkpoints / ".universal-3.partial").mkdir()
    resharding.discard(run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-6"]
