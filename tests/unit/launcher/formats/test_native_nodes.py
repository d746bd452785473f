"""`ftplan run` on every node of a scheduler's job: the scripts as they run with stand-ins, and ftplan itself, dry."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from clusterjobs import ASKED, native, run_bash, wrap

from ftplan.launcher import demo
from ftplan.launcher.formats.given import Target
from ftplan.results import to_json
from ftplan.workflows.running import demo_plan

TWO = Target(2, 2, output_dir="out put")
FTPLAN = f'#!/usr/bin/env bash\nexec {sys.executable} -m ftplan "$@" --dry-run --json > "node-$NODE_RANK.json"\n'
SRUN = """#!/usr/bin/env bash
shift 2
SLURM_NODEID=1 "$@" && SLURM_NODEID=0 "$@"
"""
SCONTROL = "#!/usr/bin/env bash\nprintf 'first\\nsecond\\n'\n"


@pytest.fixture(scope="module")
def plan_text() -> str:
    return to_json(demo_plan("2x2xcpu"))


@pytest.fixture
def folder(tmp_path: Path, plan_text: str) -> Path:
    tools = {"ftplan": FTPLAN, "srun": SRUN, "scontrol": SCONTROL}
    (tmp_path / "bin").mkdir()
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "plan.json").write_text(plan_text)
    return tmp_path


def written(kind: str, folder: Path) -> dict[str, str]:
    inner = native(TWO, [str(demo.instructions_path())])
    files = wrap(kind, inner, TWO, ASKED, beside={"plan.json": (folder / "plan.json").read_text()})
    for name, text in files.items():
        (folder / name).write_text(text)
    return files


def run(folder: Path, script: str, **variables: str) -> None:
    base = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = run_bash(folder / script, **base, **variables)
    assert done.returncode == 0, done.stderr


def started(folder: Path, node: int) -> tuple[list[str], dict[str, Any]]:
    """The command of a node, and its job."""
    prepared = json.loads((folder / f"node-{node}.json").read_text())
    job = next(text for path, text in prepared["files"].items() if path.endswith("job.json"))
    return prepared["argv"], json.loads(job)


def check(folder: Path, endpoint: str, name: str) -> None:
    for node in (0, 1):
        argv, job = started(folder, node)
        assert {"--nnodes=2", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={name}"} < set(argv)
        assert argv[argv.index("--nproc_per_node") + 1] == "2"
        assert f"is_host={int(node == 0)},join_timeout=900" in " ".join(argv)
        assert (job["world_size"], job["rendezvous"]["node_rank"], job["run_id"]) == (4, node, name)
        assert Path(job["run_dir"]).name == "out put"


def test_slurm(folder: Path) -> None:
    written("slurm", folder)
    job = {"SLURM_JOB_ID": "2007", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "2"}
    run(folder, "job.sbatch", SLURM_SUBMIT_DIR=str(folder), **job)
    check(folder, "first:29507", "slurm-2007")


def test_skypilot(folder: Path) -> None:
    script = yaml.safe_load(written("skypilot", folder)["task.yaml"])["run"]
    (folder / "run.sh").write_text(f"cd {folder}\n{script}")
    for node in ("0", "1"):
        ips = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2", "SKYPILOT_TASK_ID": "sky-1_a"}
        run(folder, "run.sh", SKYPILOT_NODE_RANK=node, SKYPILOT_NUM_NODES="2", **ips)
    check(folder, "127.0.0.1:29500", "sky-1_a")


def test_kubeflow(folder: Path) -> None:
    """The pods' own script copies the files to a fixed folder of the container first: that part is left out."""
    written("kubeflow", folder)
    for node in ("0", "1"):
        pets = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "29400", "PET_NPROC_PER_NODE": "2"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
        run(folder, "launch.sh", PET_NNODES="2", PET_NODE_RANK=node, **pets, **address)
    check(folder, "127.0.0.1:29400", "out-put")
