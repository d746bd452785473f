from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import make_config, make_job

from ftplan.launcher import artifacts
from ftplan.launcher.job import DataSource, Source, TrainJob

Golden = Callable[[str, str], None]


def on_gpus(sharding: str, **changes: object) -> TrainJob:
    config = make_config(sharding=sharding, method="full", expandable_segments=True, **changes)
    return make_job(config, device="cuda", inventory="2x24GB", threads_per_process=8)


def test_the_files_of_a_job(golden: Golden) -> None:
    files = artifacts.files(make_job())
    assert sorted(files) == ["job.json", "launch.sh"]
    golden("launcher/job.json", files["job.json"])
    golden("launcher/launch-cpu.sh", files["launch.sh"])


def test_the_script_of_a_job_on_gpus(golden: Golden) -> None:
    golden("launcher/launch-cuda.sh", artifacts.launch_script(on_gpus("fsdp2")))


@pytest.mark.parametrize(
    ("sharding", "offload"), [("zero1", "none"), ("zero2", "optimizer"), ("zero3", "optimizer+params")]
)
def test_deepspeed_settings(golden: Golden, sharding: str, offload: str) -> None:
    settings = artifacts.deepspeed_config(on_gpus(sharding, offload=offload))
    golden(f"launcher/deepspeed-{sharding}-{offload}.json", json.dumps(settings, indent=2) + "\n")


def test_given_buckets_are_deepspeed_s_numbers() -> None:
    settings = artifacts.deepspeed_config(
        on_gpus(
            "zero3",
            zero_reduce_bucket=5 * 10**8,
            zero_prefetch_bucket=0,
            zero_persistence_threshold=10**6,
            zero_overlap=False,
        )
    )
    assert settings is not None
    assert settings["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": 5 * 10**8,
        "stage3_prefetch_bucket_size": 0,
        "stage3_param_persistence_threshold": 10**6,
        "stage3_gather_16bit_weights_on_model_save": True,
    }


@pytest.mark.parametrize("sharding", ["fsdp2", "fsdp2-grad-op"])
def test_fsdp_settings(golden: Golden, sharding: str) -> None:
    settings = artifacts.fsdp_config(on_gpus(sharding).config)
    golden(f"launcher/{sharding}.json", json.dumps(settings, indent=2) + "\n")


@pytest.mark.parametrize("sharding", ["none", "ddp"])
def test_what_is_not_sharded_has_no_settings(sharding: str) -> None:
    job = on_gpus(sharding)
    assert artifacts.deepspeed_config(job) is None
    assert artifacts.fsdp_config(job.config) is None


def test_argv_starts_torchrun_with_this_interpreter() -> None:
    command = artifacts.argv(make_job(), "runs/x/job.json")
    assert command[1:4] == ["-m", "torch.distributed.run", "--standalone"]
    assert command[4:] == ["--nproc_per_node", "2", "-m", "ftplan.launcher.train", "runs/x/job.json"]


def test_the_hub_is_off_unless_something_comes_from_it() -> None:
    assert artifacts.environment(make_job())["HF_HUB_OFFLINE"] == "1"
    from_hub = make_job(model=Source(kind="hub", location="owner/name"))
    assert "HF_HUB_OFFLINE" not in artifacts.environment(from_hub)
    assert "HF_HUB_OFFLINE" not in artifacts.environment(make_job(data=DataSource(hub="owner/data")))


def test_a_job_for_the_cpu_sees_no_gpu() -> None:
    assert artifacts.environment(make_job())["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in artifacts.environment(on_gpus("ddp"))
    assert artifacts.environment(on_gpus("ddp"))["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_names_with_a_meaning_to_the_shell_stay_names(tmp_path: Path) -> None:
    job = make_job(run_dir="runs/$(touch hacked); it's `x`")
    script = artifacts.launch_script(job, "my job;.json", python="echo")
    (tmp_path / "launch.sh").write_text(script)
    done = subprocess.run(["bash", str(tmp_path / "launch.sh")], capture_output=True, text=True, check=True)
    assert done.stdout.split("-m ftplan.launcher.train ")[1].strip() == "my job;.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["launch.sh"]
    assert shlex.quote(job.run_dir + "/tensorboard") in script
