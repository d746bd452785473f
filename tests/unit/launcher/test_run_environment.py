"""What a run sets in its environment, and what it leaves to the user."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from jobs import make_config, make_job

from ftplan.errors import InputError
from ftplan.launcher import artifacts, engine
from ftplan.launcher.environment import Variable, caches, disk_of, make_private, settled

OWN = Variable("OMP_NUM_THREADS", "2", "the cores, shared")
PLANNED = Variable("PYTORCH_ALLOC_CONF", "expandable_segments:True", "the plan counts on it", is_planned=True)


def test_a_value_of_the_users_own_stays() -> None:
    found = settled([OWN], {"OMP_NUM_THREADS": "7"})
    assert found.values == {"OMP_NUM_THREADS": "7"}
    assert found.reasons == {"OMP_NUM_THREADS": "your environment says so"}
    assert found.notes == ()


def test_what_the_plan_counts_on_is_set_and_told() -> None:
    found = settled([PLANNED], {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"})
    assert found.values == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert found.notes == (
        "PYTORCH_ALLOC_CONF=max_split_size_mb:64 of your environment is replaced by expandable_segments:True: "
        "the plan counts on it",
    )
    assert settled([PLANNED], {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}).notes == ()


def test_every_variable_of_a_run_has_a_reason() -> None:
    job = make_job(make_config(sharding="fsdp2", expandable_segments=True), device="cuda")
    for each in artifacts.variables(job, {"HOME": "/root"}):
        assert each.why, each.name
    names = {each.name for each in artifacts.variables(job, {}) if each.is_planned}
    assert names == {"PYTORCH_ALLOC_CONF"}


@pytest.mark.parametrize("expandable", [False, True])
def test_the_allocator_is_that_of_the_plan_under_either_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, expandable: bool
) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", f"expandable_segments:{not expandable}")
    config = make_config(sharding="ddp", expandable_segments=expandable)
    prepared = engine.prepare(make_job(config, device="cuda", run_dir=str(tmp_path / "run")))
    wanted = f"expandable_segments:{expandable}"
    assert (prepared.env["PYTORCH_ALLOC_CONF"], prepared.env["PYTORCH_CUDA_ALLOC_CONF"]) == (wanted, wanted)
    assert prepared.notes == (
        f"PYTORCH_CUDA_ALLOC_CONF=expandable_segments:{not expandable} of your environment is replaced by {wanted}: "
        "the allocator that the plan counts on",
    )


def test_a_dry_run_shows_values_and_reasons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    prepared = engine.prepare(make_job(run_dir=str(tmp_path / "run"), timeout_seconds=2400))
    assert (prepared.env["OMP_NUM_THREADS"], prepared.env["CUDA_VISIBLE_DEVICES"]) == ("7", "")
    assert prepared.notes == ("CUDA_VISIBLE_DEVICES=3 of your environment is replaced by : the devices of the plan",)
    assert prepared.timeout_seconds == 2400
    assert set(prepared.reasons) == set(prepared.env)


@pytest.fixture(autouse=True)
def _no_hub_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_TOKEN_PATH", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR"):
        monkeypatch.delenv(name, raising=False)


def found_caches(folder: str | None, nodes: int, home: Path) -> dict[str, str]:
    return {each.name: each.value for each in caches(folder, nodes=nodes, home=home, environ={"TMPDIR": "/scratch"})}


def test_caches_stay_where_they_are_by_default(tmp_path: Path) -> None:
    assert found_caches(None, 1, tmp_path) == {}


def test_caches_go_where_the_user_says(tmp_path: Path) -> None:
    assert found_caches("/fast", 1, tmp_path) == {
        "HF_HOME": "/fast/huggingface",
        "TRITON_CACHE_DIR": "/fast/triton",
        "TORCH_EXTENSIONS_DIR": "/fast/torch_extensions",
        "HF_TOKEN_PATH": str(Path.home() / ".cache/huggingface/token"),
    }


def test_what_the_user_says_goes_before_the_environment() -> None:
    own = {"HF_HOME": "/own", "TRITON_CACHE_DIR": "/triton", "HF_TOKEN_PATH": "/login"}
    found = settled(caches("/fast", nodes=1, home=Path("/root"), environ=own), own)
    assert (found.values["HF_HOME"], found.values["TRITON_CACHE_DIR"]) == ("/fast/huggingface", "/fast/triton")
    assert found.values["HF_TOKEN_PATH"] == "/login"
    assert found.notes[0] == "HF_HOME=/own of your environment is replaced by /fast/huggingface: --cache-dir"


def test_where_the_hub_moves_its_login_stays() -> None:
    found = {each.name: each.value for each in caches("/f", nodes=1, home=Path("/root"), environ={"HF_HOME": "/own"})}
    assert found["HF_TOKEN_PATH"] == "/own/token"


def test_a_home_that_cannot_be_written_is_no_place_for_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    found = found_caches(None, 1, tmp_path)
    assert found["HF_HOME"].startswith("/scratch/ftplan-")
    assert set(found) == {"HF_HOME", "HF_TOKEN_PATH", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR"}


def make_temporary(monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    """What a launch makes where the home cannot be written."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    environ = {"TMPDIR": str(home)}
    make_private(caches(None, nodes=1, home=home, environ=environ), environ)
    return home / f"ftplan-{os.getuid()}"


def test_caches_in_the_temporary_folder_are_the_users_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = make_temporary(monkeypatch, tmp_path)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert make_temporary(monkeypatch, tmp_path) == made
    made.chmod(0o770)
    with pytest.raises(InputError, match="this user alone") as caught:
        make_temporary(monkeypatch, tmp_path)
    assert "--cache-dir" in caught.value.hint


def test_a_link_in_their_place_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / f"ftplan-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(InputError, match="this user alone"):
        make_temporary(monkeypatch, tmp_path)


def test_another_users_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = make_temporary(monkeypatch, tmp_path)
    another = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: another)
    made.rename(tmp_path / f"ftplan-{os.getuid()}")
    with pytest.raises(InputError, match="this user alone"):
        make_temporary(monkeypatch, tmp_path)


def test_nothing_is_made_for_caches_elsewhere(tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path)}
    make_private(caches("/fast", nodes=1, home=tmp_path, environ=environ), environ)
    assert not list(tmp_path.iterdir())


def test_a_launch_refuses_a_folder_that_others_write_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (tmp_path / f"ftplan-{os.getuid()}").touch()
    job = make_job(run_dir=str(tmp_path / "run"))
    engine.prepare(job)
    with pytest.raises(InputError, match="cannot be a folder for caches"):
        engine.launch(job)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("disk", "nodes", "moves"), [("nfs4", 2, True), ("nfs4", 1, False), ("ext4", 2, False)])
def test_what_is_compiled_is_not_shared_by_machines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disk: str, nodes: int, moves: bool
) -> None:
    monkeypatch.setattr("ftplan.launcher.environment.disk_of", lambda path: disk)
    found = found_caches(None, nodes, tmp_path)
    assert set(found) == ({"TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR"} if moves else set())


def test_the_disk_of_a_folder_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nserver:/home {tmp_path} nfs4 rw 0 0\nserver:/else {tmp_path}-else lustre rw 0 0\n"
    )
    assert disk_of(tmp_path / "user", mounts) == "nfs4"
    assert disk_of(Path("/usr"), mounts) == "ext4"
    assert disk_of(tmp_path, tmp_path / "missing") == ""
