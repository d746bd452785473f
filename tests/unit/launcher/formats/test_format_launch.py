import pytest

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.launch import launches, taken_apart, unequal_hosts
from ftplan.launcher.formats.words import as_command, commands


def launched(text):
    (command,) = commands(text)
    return taken_apart(command, "run.sh")


@pytest.mark.parametrize(
    ("text", "launcher", "nodes", "per_node", "program"),
    [
        ("torchrun train.py", "torchrun", 1, 1, "train.py"),
        ("torchrun --nproc_per_node 8 train.py", "torchrun", 1, 8, "train.py"),
        ("torchrun --nproc-per-node=8 --nnodes=2 train.py", "torchrun", 2, 8, "train.py"),
        ("torchrun --standalone --nnodes=1:4 --nproc_per_node=gpu train.py", "torchrun", 4, None, "train.py"),
        ("torchrun --nproc_per_node auto train.py", "torchrun", 1, None, "train.py"),
        ("python -m torch.distributed.run --nproc_per_node=2 train.py", "torchrun", 1, 2, "train.py"),
        ("python3 -m torch.distributed.launch --use_env --nproc_per_node=2 train.py", "torchrun", 1, 2, "train.py"),
        ("/opt/bin/torchrun --nproc_per_node 4 -m pkg.train", "torchrun", 1, 4, "pkg.train"),
        ("python -u train.py", "python", None, None, "train.py"),
        ("python -W ignore -m llamafactory.cli train a.yaml", "python", None, None, "llamafactory.cli"),
        ("accelerate launch train.py", "accelerate", None, None, "train.py"),
        ("accelerate launch --num_processes 4 train.py", "accelerate", None, 4, "train.py"),
        ("accelerate launch --num_machines 2 --num_processes 16 train.py", "accelerate", 2, 8, "train.py"),
        (
            "accelerate launch --multi_gpu --num_processes 4 -m axolotl.cli.train a.yaml",
            "accelerate",
            None,
            4,
            "axolotl.cli.train",
        ),
        ("deepspeed train.py", "deepspeed", None, None, "train.py"),
        ("deepspeed --num_gpus 4 --num_nodes 2 train.py", "deepspeed", 2, 4, "train.py"),
        ("deepspeed --num_gpus=4 train.py", "deepspeed", None, 4, "train.py"),
        ("deepspeed --include localhost:0,2,3 train.py", "deepspeed", None, 3, "train.py"),
        ("deepspeed --include=localhost:0 --master_port 1 train.py", "deepspeed", None, 1, "train.py"),
        ("llamafactory-cli train a.yaml", "llamafactory-cli", None, None, "llamafactory-cli"),
        ("NNODES=2 NPROC_PER_NODE=4 llamafactory-cli train a.yaml", "llamafactory-cli", 2, 4, "llamafactory-cli"),
        ("tune run --nproc_per_node 2 lora_finetune_distributed --config a", "tune", None, 2, "tune run"),
        ("axolotl train a.yaml", "accelerate", None, None, "axolotl"),
    ],
)
def test_launchers(text, launcher, nodes, per_node, program):
    found = launched(text)
    assert (found.launcher, found.nodes, found.per_node, found.program) == (launcher, nodes, per_node, program)


@pytest.mark.parametrize(
    "wrapper",
    [
        "nohup",
        "env A=1",
        "env -u B A=1",
        "A=1 nohup env",
        "uv run",
        "uv run --with trl --python 3.12",
        "conda run -n base",
        "conda run --no-capture-output -n base",
        "poetry run",
        "numactl --cpunodebind=0",
        "time",
        "sudo",
        "exec",
        "bash -c",
        "stdbuf -oL",
        "nice -n 5",
    ],
)
def test_wrappers_are_peeled_off(wrapper):
    found = launched(f"{wrapper} torchrun --nproc_per_node 8 train.py --lr 1")
    assert (found.launcher, found.per_node, found.program) == ("torchrun", 8, "train.py")
    assert [word.text for word in found.arguments] == ["--lr", "1"]


def test_srun_starts_processes_itself():
    found = launched("srun -N 2 --ntasks-per-node=8 python train.py")
    assert (found.launcher, found.program) == ("srun", "train.py")


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("CUDA_VISIBLE_DEVICES=0,1 python a.py", ("0", "1")),
        ("export CUDA_VISIBLE_DEVICES='0, 3'\npython a.py", ("0", "3")),
        ("env CUDA_VISIBLE_DEVICES=2 python a.py", ("2",)),
        ("CUDA_VISIBLE_DEVICES= python a.py", ()),
        ("CUDA_VISIBLE_DEVICES=-1 python a.py", ("-1",)),
        ("deepspeed --include localhost:1,3 a.py", ("1", "3")),
        ("deepspeed -i localhost:1 a.py", ("1",)),
        ("CUDA_VISIBLE_DEVICES=5 deepspeed --num_gpus 2 a.py", None),
        ("CUDA_VISIBLE_DEVICES=5 deepspeed a.py", ("5",)),
        ("CUDA_VISIBLE_DEVICES=$X python a.py", None),
        ("python a.py", None),
    ],
)
def test_visible_devices(text, visible):
    assert launched(text).visible == visible


@pytest.mark.parametrize(
    ("options", "visible", "hidden", "nodes", "unequal"),
    [
        ("--exclude localhost:3", None, ("3",), None, ""),
        ("-e localhost:0,1", None, ("0", "1"), None, ""),
        ("--include a:0,1@b:0,1", ("0", "1"), (), 2, ""),
        ("--include a@b", None, (), 2, ""),
        ("--include a:0@b:0,1", None, (), 2, "include"),
        ("--exclude a:0", None, ("0",), None, "exclude"),
        ("--exclude b", None, (), None, "exclude"),
    ],
)
def test_devices_of_deepspeed_s_launcher(options, visible, hidden, nodes, unequal):
    found = launched(f"deepspeed {options} a.py")
    assert (found.visible, found.hidden, found.nodes, unequal_hosts(found)) == (visible, hidden, nodes, unequal)


def test_options_of_the_launcher_stay_with_it():
    found = launched("accelerate launch --config_file a.yaml --use_deepspeed --zero_stage 3 train.py --config_file b")
    assert found.options.text("config_file") == "a.yaml"
    assert found.options.flag("use_deepspeed")
    assert found.options.integer("zero_stage", 0) == 3
    assert [word.text for word in found.arguments] == ["--config_file", "b"]
    assert str(found.options.place("config_file")) == "run.sh:1"


@pytest.mark.parametrize("count", ["0", "-1", "x", "1e9", "999999", "9" * 5000, "١٢٣٤٥٦"])
def test_counts_of_no_processes(count):
    with pytest.raises(ConfigFileError, match=r"nproc_per_node is .* not a number") as raised:
        launched(f"torchrun --nproc_per_node={count} train.py")
    assert raised.value.field == "nproc_per_node"


@pytest.mark.parametrize("count", ["0", "x", "9" * 5000, "$N"])
def test_an_environment_that_says_nothing(count):
    assert launched(f"NPROC_PER_NODE={count} NNODES={count} llamafactory-cli train a.yaml").per_node is None


def test_counts_of_a_shell_are_left_open():
    assert launched("torchrun --nproc_per_node $GPUS train.py").per_node is None


@pytest.mark.parametrize(
    "words", [[], ["A=1"], ["env"], ["bash", "-c"], ["python"], ["torchrun"], ["uv", "run"], ["accelerate"]]
)
def test_nothing_to_start(words):
    assert taken_apart(as_command(words)).program in ("", "accelerate")


def test_only_what_starts_a_program_is_a_launch():
    assert [each.program for each in launches(commands("A=1\ncd x\npython a.py\npython"), "run.sh")] == ["cd", "a.py"]
