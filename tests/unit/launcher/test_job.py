from __future__ import annotations

from pathlib import Path

import pytest
from jobs import make_config, make_job
from pydantic import ValidationError

from ftplan.errors import InputError
from ftplan.launcher.job import DataSource, Source, TrainJob


def test_a_job_survives_its_json() -> None:
    job = make_job(epochs=1.5, max_steps=None)
    assert TrainJob.model_validate_json(job.model_dump_json()) == job


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 24}, "micro_batch x accumulation x world_size is 16, not the global batch of 24"),
        ({"nproc_per_node": 3}, "not a multiple of nproc_per_node"),
        ({"epochs": 1.0}, "give max_steps or epochs"),
        ({"max_steps": None}, "give max_steps or epochs"),
        ({"save_total_limit": 0}, "greater than 0"),
        ({"run_id": "../elsewhere"}, "should match pattern"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_what_contradicts_itself_is_no_job(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_job(**changes)


def test_data_comes_from_files_or_the_hub() -> None:
    with pytest.raises(ValidationError, match="give one of them"):
        DataSource()
    with pytest.raises(ValidationError, match="give one of them"):
        DataSource(paths=("a.json",), hub="owner/name")


def test_absolute_paths_leave_hub_ids_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(model=Source(kind="hub", location="owner/name")).absolute()
    assert job.model.location == "owner/name"
    assert job.tokenizer.location == str(tmp_path / "demo/model")
    assert job.data.paths == (str(tmp_path / "data/train.jsonl"),)
    assert job.run_dir == str(tmp_path / "runs/20250131-120000-3f2a")
    assert job.absolute() == job


def test_nodes_follow_from_the_ranks() -> None:
    config = make_config(accumulation=1)
    assert make_job(config, world_size=4, nproc_per_node=2).nodes == 2


def test_utilisation_is_model_flops_over_the_peak() -> None:
    job = make_job(model_flops_per_token=100.0, score_flops_per_token=2.0, peak_flops_per_second=4000.0)
    assert job.model_flops(10, 10 * 8) == 1160.0
    assert job.mfu(10, 10 * 8, seconds=2.0) == 1160.0 / 2 / 4000
    assert job.model_copy(update={"peak_flops_per_second": None}).mfu(10, 80, 2.0) is None
    assert make_job().model_flops(10, 80) is None


def test_a_step_has_one_instrument() -> None:
    with pytest.raises(ValidationError, match="disturb each other"):
        make_job(count_flops=True, profile=True)


def test_the_home_of_nobody_is_bad_input() -> None:
    with pytest.raises(InputError, match="nobody of that name") as caught:
        make_job(run_dir="~nobody-of-that-name/run").absolute()
    assert caught.value.field == "run_dir"
