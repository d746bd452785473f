"""What the machines of a run settle before it trains, with ranks that are threads of this process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jobs import make_config, make_job

from ftplan.errors import InputError
from ftplan.launcher import checkpoints
from ftplan.launcher.events import RankMemory
from ftplan.launcher.job import DataSource, DescribedSet, TrainJob
from ftplan.launcher.rendezvous import Rendezvous
from ftplan.launcher.train.nodes import settle, step_to_go_on_from


@dataclass
class Ranks:
    """What `Control` does over gloo, between threads."""

    count: int
    values: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = [None] * self.count
        self.meet = threading.Barrier(self.count, timeout=20)


@dataclass
class Control:
    """One rank, the first of its machine."""

    ranks: Ranks
    rank: int
    shares_disk: bool = True

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def leads_node(self) -> bool:
        return True

    @property
    def keeps_files(self) -> bool:
        return self.is_main or not self.shares_disk

    def gather(self, value: Any) -> list[Any]:
        self.ranks.values[self.rank] = value
        self.ranks.meet.wait()
        found = list(self.ranks.values)
        self.ranks.meet.wait()
        return found

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def barrier(self) -> None:
        self.ranks.meet.wait()

    def look_for_shared(self, folder: Path) -> None:
        self.shares_disk = len(set(self.gather(str(folder)))) == 1


Outcome = tuple[int | None, bool]


def job_of(node: int, folder: Path, *, sharding: str = "ddp", min_nodes: int = 2, **changes: Any) -> TrainJob:
    meeting = {"nodes": 2, "min_nodes": min_nodes, "node_rank": node, "host": "n0", "port": 1, "id": "run"}
    given = {
        "run_dir": str(folder),
        "world_size": 2,
        "nproc_per_node": 1,
        "rendezvous": Rendezvous(**meeting),
    } | changes
    return make_job(make_config(sharding=sharding), **given)


def both(jobs: list[TrainJob]) -> list[Outcome | InputError]:
    """What each of two nodes ends with: the step to go on from and whether it saves for itself, or its error."""
    ranks = Ranks(2)

    def one(node: int) -> Outcome | InputError:
        arguments = SimpleNamespace(save_on_each_node=False)
        control: Any = Control(ranks, node)
        try:
            settle(jobs[node], control, arguments)
            return step_to_go_on_from(jobs[node], control), arguments.save_on_each_node
        except InputError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


def keep(folder: Path, *steps: int) -> None:
    for step in steps:
        saved = folder / "checkpoints" / f"checkpoint-{step}"
        saved.mkdir(parents=True)
        (saved / "weights").write_bytes(b"w")
        checkpoints.seal(saved, step=step, world_size=2, global_batch=16)


def refusals(outcomes: list[Outcome | InputError]) -> list[str]:
    return [outcome.message for outcome in outcomes if isinstance(outcome, InputError)]


def test_nodes_that_share_a_disk_let_the_first_keep_everything(tmp_path: Path) -> None:
    assert both([job_of(node, tmp_path) for node in (0, 1)]) == [(None, False)] * 2
    keep(tmp_path, 10, 20)
    # Only the first node is told to resume; the other follows it.
    assert both([job_of(0, tmp_path, resume=True), job_of(1, tmp_path)]) == [(20, False)] * 2


def test_nodes_with_disks_of_their_own_each_keep_everything(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    assert both([job_of(node, folders[node]) for node in (0, 1)]) == [(None, True)] * 2
    keep(folders[0], 10, 20, 30)
    keep(folders[1], 10, 20)
    (folders[1] / "checkpoints" / "checkpoint-30").mkdir()
    resumed = [job_of(node, folders[node], resume=node == 0) for node in (0, 1)]
    assert both(resumed) == [(20, True)] * 2
    assert not (folders[1] / "checkpoints" / "checkpoint-30").exists()


def test_sharded_state_needs_a_disk_in_common(tmp_path: Path) -> None:
    jobs = [job_of(node, tmp_path / str(node), sharding="zero2") for node in (0, 1)]
    found = refusals(both(jobs))
    assert len(found) == 2
    assert "not one folder for all machines" in found[0]


def test_a_node_with_an_old_run_does_not_join_a_new_one(tmp_path: Path) -> None:
    keep(tmp_path / "1", 10)
    found = refusals(both([job_of(node, tmp_path / str(node)) for node in (0, 1)]))
    assert len(found) == 2
    assert "already holds a run on one of the machines" in found[0]


def test_a_resumed_run_needs_a_checkpoint_that_all_have(tmp_path: Path) -> None:
    keep(tmp_path / "0", 10)
    jobs = [job_of(node, tmp_path / str(node), resume=True) for node in (0, 1)]
    assert len(refusals(both(jobs))) == 2


@pytest.mark.parametrize(("steps", "expected"), [((), None), ((10, 20), 20)])
def test_an_elastic_run_goes_on_where_it_can(tmp_path: Path, steps: tuple[int, ...], expected: int | None) -> None:
    keep(tmp_path, *steps)
    assert both([job_of(node, tmp_path, min_nodes=1) for node in (0, 1)]) == [(expected, False)] * 2


def test_an_elastic_run_does_not_begin_again_beside_checkpoints_that_one_machine_lacks(tmp_path: Path) -> None:
    keep(tmp_path / "0", 10, 20)
    found = both([job_of(node, tmp_path / str(node), min_nodes=1) for node in (0, 1)])
    assert refusals(found) == ["the machines hold no checkpoint in common"] * 2


@pytest.mark.parametrize("folders", [("shared", "shared"), ("0", "1")])
def test_what_a_killed_attempt_was_saving_is_deleted_on_every_disk(tmp_path: Path, folders: tuple[str, str]) -> None:
    cut_short = {tmp_path / folder / "checkpoints" / "checkpoint-30" for folder in folders}
    for folder in folders:
        if not (tmp_path / folder).exists():
            keep(tmp_path / folder, 20)
    for saved in cut_short:
        saved.mkdir()
    found = both([job_of(node, tmp_path / folders[node], min_nodes=1) for node in (0, 1)])
    assert [outcome[0] for outcome in found if not isinstance(outcome, InputError)] == [20, 20]
    assert not any(saved.exists() for saved in cut_short)


def test_a_restart_with_one_machine_left_deletes_what_was_cut_short(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-30").mkdir(parents=True)
    alone = job_of(0, tmp_path, min_nodes=1).spread_over(1)
    settle(alone, Control(Ranks(1), 0), SimpleNamespace())  # type: ignore[arg-type]
    assert not (tmp_path / "checkpoints" / "checkpoint-30").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-3},
        {"seed": 7},
        {"data": DataSource(paths=("elsewhere/other.jsonl",))},
    ],
)
def test_nodes_that_were_given_different_runs_do_not_train(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = refusals(both([job_of(0, tmp_path), job_of(1, tmp_path, **changes)]))
    assert found == ["the machines were given different runs"] * 2


def test_what_lies_elsewhere_on_a_node_is_no_difference(tmp_path: Path) -> None:
    def job(node: int, home: str, **changes: Any) -> TrainJob:
        data = DataSource(described=(DescribedSet(name="set", paths=(f"{home}/train.jsonl",)),))
        return job_of(node, tmp_path, data=data, data_cache=f"{home}/.cache", **changes)

    predicted = (RankMemory(0, 1, 1, 1, None), RankMemory(1, 1, 1, 1, None))
    other = job(1, "/mnt", predicted_ranks=predicted, model_flops_per_token=1.0, threads_per_process=3, run_id="other")
    assert both([job(0, "/home/a"), other]) == [(None, False)] * 2
    elsewhere = job_of(1, tmp_path, data=DataSource(paths=("/mnt/train.jsonl",)))
    assert both([job_of(0, tmp_path), elsewhere]) == [(None, False)] * 2


def test_one_machine_has_nobody_to_agree_with() -> None:
    settle(make_job(), Control(Ranks(1), 0), SimpleNamespace())  # type: ignore[arg-type]
