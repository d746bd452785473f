"""One machine's command on several: launcher by launcher, and the scripts as they run with stand-ins for Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from clusterjobs import ASKED, factory, last_line, run_bash, started, wrap

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats.cluster import Cluster
from ftplan.launcher.formats.given import Emitted, Target

TWO = Target(2, 8)
NODES = '--nnodes=2 --nproc_per_node=8 --node_rank="$NODE_RANK" --master_addr="$MASTER_ADDR"'
TORCHRUN = f'{NODES} --master_port="$MASTER_PORT" --rdzv_conf=timeout=900'
ACCELERATE = (
    '--num_machines=2 --num_processes=16 --machine_rank="$NODE_RANK" --main_process_ip="$MASTER_ADDR" '
    '--main_process_port="$MASTER_PORT"'
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("torchrun --standalone --nproc_per_node 8 train.py a.json", f"torchrun {TORCHRUN} train.py a.json"),
        ("torchrun --nnodes=1 --nproc-per-node=8 --rdzv-backend c10d train.py", f"torchrun {TORCHRUN} train.py"),
        ("torchrun --max_restarts 3 --standalone train.py", f"torchrun {TORCHRUN} --max_restarts 3 train.py"),
        ("torchrun --standalone -m pkg.train -x 1", f"torchrun {TORCHRUN} -m pkg.train -x 1"),
        (
            "python -m torch.distributed.run --standalone -m pkg job.json",
            f"python -m torch.distributed.run {TORCHRUN} -m pkg job.json",
        ),
        (
            "accelerate launch --config_file accelerate.yaml -m pkg train.yaml",
            f"accelerate launch --config_file accelerate.yaml {ACCELERATE} -m pkg train.yaml",
        ),
        ("accelerate launch --multi_gpu train.py -x", f"accelerate launch --multi_gpu {ACCELERATE} train.py -x"),
        ("axolotl train config.yaml", f"torchrun {TORCHRUN} -m axolotl.cli.train config.yaml"),
        (
            "axolotl train config.yaml --launcher torchrun -- --nproc_per_node=8",
            f"torchrun {TORCHRUN} -m axolotl.cli.train config.yaml",
        ),
        (
            "axolotl train config.yaml --launcher accelerate -- --config_file a.yaml",
            f"accelerate launch --config_file a.yaml {ACCELERATE} -m axolotl.cli.train config.yaml",
        ),
        ("trl sft --config sft.yaml", f"trl sft --config sft.yaml {ACCELERATE}"),
        (
            "tune run --nproc_per_node 8 lora_finetune_distributed --config c.yaml",
            'tune run --nnodes=2 --nproc_per_node=8 --node_rank="$NODE_RANK" --rdzv_conf=timeout=900 '
            '--rdzv_backend=static --rdzv_endpoint="$MASTER_ADDR:$MASTER_PORT" '
            "lora_finetune_distributed --config c.yaml",
        ),
        ("swift sft --model x", "swift sft --model x"),
    ],
)
def test_launchers_on_two_nodes(words: str, expected: str) -> None:
    assert last_line(started(*words.split()), TWO) == f'exec {expected} "$@"'


@pytest.mark.parametrize("words", ["torchrun --standalone train.py", "deepspeed --num_gpus 8 train.py", "python x.py"])
def test_one_node_starts_as_before(words: str) -> None:
    assert last_line(started(*words.split()), Target(1, 8)) == f'exec {words} "$@"'


@pytest.mark.parametrize("words", ["deepspeed --num_gpus 8 train.py", "python train.py", "./train.sh", "python -m"])
def test_launchers_without_a_way_to_other_nodes_are_refused(words: str) -> None:
    with pytest.raises(CannotExpressError) as caught:
        last_line(started(*words.split()), TWO)
    assert caught.value.fields == ("nodes",)
    assert "torchrun" in caught.value.hint


def test_programs_that_start_torchrun_learn_of_the_nodes_from_variables() -> None:
    inner = factory(TWO)
    text = wrap("skypilot", inner, TWO, ASKED)["launch.sh"]
    assert 'export NODE_RANK="$SKYPILOT_NODE_RANK" NNODES=2 NPROC_PER_NODE=8' in text
    assert "export FORCE_TORCHRUN=1" in text
    assert text.count("NNODES") == 1


def test_variables() -> None:
    inner = Emitted({}, "", ("torchrun", "x.py"), {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
    cluster = Cluster(cpus_per_gpu=6, interface="ib0")
    two = wrap("slurm", inner, TWO, cluster)["launch.sh"]
    assert "export OMP_NUM_THREADS=6\n" in two
    assert "export PYTORCH_ALLOC_CONF=expandable_segments:True\n" in two
    assert "export NCCL_SOCKET_IFNAME=ib0\n" in two
    one = wrap("slurm", inner, Target(1, 8), cluster)["launch.sh"]
    assert "NCCL" not in one


FAKE_SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
trap 'kill -TERM $children' TERM
children=
for node in 0 1; do
  SLURM_NODEID=$node "$@" &
  children="$children $!"
done
wait
wait
"""
FAKE_SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'first\\nsecond\\n'; else echo "$*" >> scontrol.log; fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Variables under which job.sbatch in this folder runs as under Slurm, on two nodes."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"srun": FAKE_SRUN, "scontrol": FAKE_SCONTROL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "2007",
        "SLURM_CPUS_PER_TASK": "2",
    }


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def test_every_node_learns_its_number_and_the_first_one(tmp_path: Path, slurm: dict[str, str]) -> None:
    put(tmp_path, wrap("slurm", started("torchrun", "--standalone", "train.py"), TWO, ASKED))
    (tmp_path / "bin" / "torchrun").write_text('#!/usr/bin/env bash\necho "$*"\n')
    (tmp_path / "bin" / "torchrun").chmod(0o755)
    done = run_bash(tmp_path / "job.sbatch", "--seed=1", **slurm)
    assert done.returncode == 0, done.stderr
    expected = "--nnodes=2 --nproc_per_node=8 --node_rank={} --master_addr=first --master_port=29507"
    starts = [expected.format(node) for node in (0, 1)]
    assert sorted(done.stdout.splitlines()) == [f"{each} --rdzv_conf=timeout=900 train.py --seed=1" for each in starts]


def test_a_failure_of_a_node_is_the_jobs(tmp_path: Path, slurm: dict[str, str]) -> None:
    put(tmp_path, wrap("slurm", started("torchrun", "train.py"), TWO, Cluster(hours=1)))
    (tmp_path / "bin" / "srun").write_text("#!/usr/bin/env bash\nexit 7\n")
    assert run_bash(tmp_path / "job.sbatch", **slurm).returncode == 7
    assert not (tmp_path / "scontrol.log").exists()


def test_when_its_time_is_up_a_job_saves_and_goes_back_into_the_queue(tmp_path: Path, slurm: dict[str, str]) -> None:
    put(tmp_path, wrap("slurm", started("torchrun", "train.py"), TWO, Cluster(hours=1)))
    training = (
        'trap "echo saved >> saved.log; exit 3" TERM\ntouch "began-$SLURM_NODEID"\nwhile :; do sleep 0.05; done\n'
    )
    (tmp_path / "bin" / "torchrun").write_text(f"#!/usr/bin/env bash\n{training}")
    (tmp_path / "bin" / "torchrun").chmod(0o755)
    with subprocess.Popen(["bash", str(tmp_path / "job.sbatch")], env=slurm) as job:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("began-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(30) == 0
    assert (tmp_path / "saved.log").read_text() == "saved\nsaved\n"
    assert (tmp_path / "scontrol.log").read_text() == "requeue 2007\n"
