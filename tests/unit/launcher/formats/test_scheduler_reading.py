"""The command inside a scheduler's file, with the devices that the file asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from clusterjobs import ASKED, KINDS, MAIN, factory, wrap

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.cluster import Wrapped
from ftplan.launcher.formats.document import parse_document
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.kubeflow import is_kubeflow, read_kubeflow
from ftplan.launcher.formats.launch import Launch, launches
from ftplan.launcher.formats.partial import Shape
from ftplan.launcher.formats.skypilot import is_skypilot, read_skypilot
from ftplan.launcher.formats.slurm import directives, read_slurm
from ftplan.launcher.formats.words import commands

SBATCH = Path("job.sbatch")


def slurm(*options: str, body: str = "srun torchrun train.py\n") -> Wrapped:
    return read_slurm("#!/bin/bash\n" + "".join(f"#SBATCH {each}\n" for each in options) + body, SBATCH)


def read(kind: str, text: str) -> Wrapped:
    if kind == "slurm":
        return read_slurm(text, SBATCH)
    document = parse_document(text, Path("task.yaml"))
    return read_skypilot(document) if kind == "skypilot" else read_kubeflow(document)


def last_launch(found: Wrapped) -> Launch:
    return list(launches(commands(found.text, found.environment), "file"))[-1]


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read(kind: str, nodes: int) -> None:
    target = Target(nodes, 8)
    found = read(kind, wrap(kind, factory(target), target, ASKED)[MAIN[kind]])
    assert found.shape == Shape(nodes, 8)
    starts = [each for each in launches(commands(found.text, found.environment), "") if each.program == "bash"]
    assert [each.arguments[0].text for each in starts] == ["launch.sh"]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (["--nodes=2", "--gpus-per-node=8"], Shape(2, 8)),
        (["--nodes=2 --gpus-per-node=8"], Shape(2, 8)),
        (["-N 2 --gres=gpu:4"], Shape(2, 4)),
        (["-N2", "--gres=gpu:a100:4"], Shape(2, 4)),
        (["--nodes 2", "--gpus-per-node h100:8"], Shape(2, 8)),
        (["--nodes=2-4", "--gres=nvme:1,gpu:h100:8(S:0-1)"], Shape(2, 8)),
        (["--gres=gpu"], Shape(1, 1)),
        (["--tres-per-node=gres/gpu:4"], Shape(1, 4)),
        (["--tres-per-node=gres/gpu=4"], Shape(1, 4)),
        (["--nodes=2", "-G 16"], Shape(2, 8)),
        (["--gpus=16"], Shape(None, None, 16)),
        (["--gpus=a100:2", "--nodes=1"], Shape(1, 2)),
        (["--nodes=2", "--ntasks-per-node=8", "--gpus-per-task=1"], Shape(2, 8)),
        (["--nodes=2", "--ntasks=16", "--gpus-per-task=1"], Shape(2, 8)),
        (["--ntasks=16", "--gpus-per-task=1", "--ntasks-per-node=4"], Shape(None, 4)),
        (["--nodes=2", "--ntasks-per-node=4"], Shape(2, 4)),
        (["--job-name=x"], Shape(1)),
        (["--requeue --exclusive --nodes=3 # of ours", "--gpus-per-node=2"], Shape(3, 2)),
        (["-J 'a b' -N 3", '--comment="--nodes=9"'], Shape(3)),
    ],
)
def test_devices_of_directives(options: list[str], shape: Shape) -> None:
    assert slurm(*options).shape == shape


def test_the_type_of_the_cards() -> None:
    assert slurm("--gpus-per-node=h100:8").device == "h100"
    assert slurm("--gres=gpu:a100:8").device == "a100"
    assert slurm("--gpus=l40s").device == "l40s"
    assert slurm("--gpus-per-node=8").device == ""


def test_directives_end_with_the_first_command() -> None:
    text = "#!/bin/bash\n#SBATCH --nodes=2\n\n# why\n#SBATCH -p gpu\nset -e\n#SBATCH --nodes=4\n##SBATCH --nodes=5\n"
    found = directives(text, SBATCH)
    assert {key: each.value for key, each in found.items()} == {"nodes": "2", "partition": "gpu"}
    assert found["partition"].place.line == 5


def test_slurms_variables_say_how_many() -> None:
    body = """
export NPROC=$SLURM_GPUS_ON_NODE
srun torchrun --nnodes $SLURM_NNODES --nproc_per_node $NPROC --rdzv_endpoint $(hostname):29500 train.py
"""
    launch = last_launch(slurm("--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=1", body=body))
    assert (launch.nodes, launch.per_node) == (2, 4)


@pytest.mark.parametrize("line", ["--job-name='a", "hetjob", "--nodes=many", "--ntasks-per-node=x"])
def test_directives_that_cannot_be_read(line: str) -> None:
    with pytest.raises(ConfigFileError, match=r"job\.sbatch"):
        slurm("--partition=x", line)


TASK = """\
name: finetune
resources:
  infra: aws
  accelerators: {accelerators}
num_nodes: 2
envs:
  MODEL: Qwen/Qwen2.5-7B
  EMPTY:
setup: pip install llamafactory
run: |
  num_nodes=$(echo "$SKYPILOT_NODE_IPS" | wc -l)
  torchrun --nnodes=$num_nodes --nproc_per_node=$SKYPILOT_NUM_GPUS_PER_NODE \\
    --node_rank=$SKYPILOT_NODE_RANK train.py --model_name_or_path $MODEL
"""


@pytest.mark.parametrize(
    ("accelerators", "device", "per_node"),
    [
        ("H100:8", "H100-SXM", 8),
        ("A100-80GB:4", "A100-80GB-SXM", 4),
        ("RTXA6000:2", "A6000", 2),
        ("RTX4090", "RTX4090", 1),
        ("{L4: 4}", "L4", 4),
        ("[A100:8, A100-80GB:8]", "", 8),
        ("{H100:8, H200:4}", "", None),
        ("tpu-v5p:4", "tpu-v5p", 4),
    ],
)
def test_a_task_of_skypilot(accelerators: str, device: str, per_node: int | None) -> None:
    text = TASK.replace("{accelerators}", accelerators)
    document = parse_document(text, Path("task.yaml"))
    assert is_skypilot(document.data)
    found = read_skypilot(document)
    assert (found.shape, found.device) == (Shape(2, per_node), device)
    assert text.splitlines()[found.line - 1].strip().startswith("num_nodes=")
    launch = last_launch(found)
    # How many nodes answer is known only there; then what the task asks for counts.
    assert (launch.nodes, launch.per_node) == (None, per_node)
    assert [word.text for word in launch.arguments] == ["--model_name_or_path", "Qwen/Qwen2.5-7B"]


def test_a_task_without_cards() -> None:
    found = read_skypilot(parse_document("num_nodes: 1\nrun: python train.py\n", Path("task.yaml")))
    assert found.shape == Shape(1, None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("run: [a]\nresources: {}\n", 0),
        ("run: a\nresources:\n  accelerators: H100:many\n", 3),
        ("run: a\nnum_nodes: two\n", 2),
        ("run: a\nnum_nodes: 0\n", 2),
    ],
)
def test_tasks_that_cannot_be_read(text: str, line: int) -> None:
    with pytest.raises(ConfigFileError) as caught:
        read_skypilot(parse_document(text, Path("task.yaml")))
    assert caught.value.line == line


JOB = """\
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata:
  name: finetune
spec:
  runtimeRef:
    name: torch-distributed
  trainer:
    numNodes: 2
    {processes}
    env:
      - name: MODEL
        value: Qwen/Qwen2.5-7B
      - name: TOKEN
        valueFrom: {secretKeyRef: {name: hub, key: token}}
    command:
      {command}
    resourcesPerNode:
      limits:
        nvidia.com/gpu: 4
"""


def job(command: str, processes: str = "image: a") -> Wrapped:
    document = parse_document(
        JOB.replace("{processes}", processes).replace("{command}", command), Path("trainjob.yaml")
    )
    assert is_kubeflow(document.data)
    return read_kubeflow(document)


@pytest.mark.parametrize(
    "command",
    [
        "[torchrun, train.py, --model_name_or_path, $(MODEL)]",
        '[bash, -c, "torchrun train.py --model_name_or_path $MODEL"]',
        '[/bin/bash, -c, "torchrun train.py --model_name_or_path $(MODEL)"]',
        '[sh, -c, "torchrun --nnodes=$(PET_NNODES) --nproc_per_node $PET_NPROC_PER_NODE '
        'train.py --model_name_or_path Qwen/Qwen2.5-7B"]',
    ],
)
def test_commands_of_a_train_job(command: str) -> None:
    found = job(command)
    assert found.shape == Shape(2, 4)
    launch = last_launch(found)
    assert (launch.nodes, launch.per_node, launch.program) == (2, 4, "train.py")
    assert [word.text for word in launch.arguments] == ["--model_name_or_path", "Qwen/Qwen2.5-7B"]


def test_words_of_a_train_job_are_not_shell_text() -> None:
    launch = last_launch(job('[python, train.py, --name, "it\'s $HOME; $$(MODEL)"]'))
    assert launch.arguments[1].text == "it's $HOME; $(MODEL)"


@pytest.mark.parametrize(("processes", "count"), [("numProcPerNode: 3", 3), ("numProcPerNode: auto", 4)])
def test_processes_of_a_train_job(processes: str, count: int) -> None:
    assert job("[torchrun, a.py]", processes).shape == Shape(2, count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spec:\n  trainer:\n    numNodes: 2\n", "names no command"),
        ("spec: 1\n", "names no command"),
        ("spec:\n  trainer:\n    numNodes: x\n    command: [a]\n", "numNodes is 'x'"),
        ("spec:\n  trainer:\n    numProcPerNode: -1\n    command: [a]\n", "numProcPerNode"),
    ],
)
def test_train_jobs_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ConfigFileError, match=message):
        read_kubeflow(parse_document(text, Path("trainjob.yaml")))
