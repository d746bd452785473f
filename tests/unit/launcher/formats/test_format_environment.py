import pytest
from written import about, problems_of, said_by, source_of

from ftplan.launcher.formats.partial import Shape
from ftplan.verdicts import Severity

TRAIN = "model_name_or_path: m\nstage: sft\ndo_train: true\noutput_dir: o\nbf16: true\n"
AXOLOTL = "base_model: m\ndatasets: []\nsequence_len: 512\nmicro_batch_size: 1\nnum_epochs: 1\nadapter: lora\n"
TORCHRUN = "src/llamafactory/launcher.py train.yaml"


def texts(command):
    return {"run.sh": command, "train.yaml": TRAIN, "ax.yaml": AXOLOTL}


def part_of(command, ranks=1):
    return said_by(texts(command), ranks=ranks)


@pytest.mark.parametrize(
    "variable",
    [
        *("USE_MCA=1", "USE_V1=1", "USE_RAY=true", "USE_MEGATRON_BRIDGE=1", "USE_KT=1", "ACCELERATE_USE_FSDP=true"),
        *("ACCELERATE_USE_DEEPSPEED=true", "ACCELERATE_DYNAMO_BACKEND=inductor", "ACCELERATE_MIXED_PRECISION=fp8"),
    ],
)
def test_variables_that_switch_are_not_modelled(variable):
    part = part_of(f"{variable} llamafactory-cli train train.yaml")
    (problem,) = [each for each in part.problems if each.key == variable.partition("=")[0]]
    assert (problem.kind, problem.may_need_more, problem.may_need_less) == ("unmodelled", True, True)
    assert str(problem.place) == "run.sh:1"


@pytest.mark.parametrize("variable", ["USE_MCA=0", "USE_V1=false", "ACCELERATE_MIXED_PRECISION=bf16", "USE_RAY="])
def test_variables_that_are_off(variable):
    part = part_of(f"{variable} llamafactory-cli train train.yaml")
    assert about(part, variable.partition("=")[0]) == []


def test_a_switch_of_one_framework_is_nothing_to_another():
    assert about(part_of("USE_V1=1 axolotl train ax.yaml"), "USE_V1") == []


def test_a_switch_that_only_a_shell_knows():
    (problem,) = problems_of(part_of("USE_MCA=$X llamafactory-cli train train.yaml"), "unresolved")
    assert (problem.key, problem.may_need_more) == ("USE_MCA", True)


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (f"torchrun --nproc_per_node $GPUS {TORCHRUN}", "nproc_per_node"),
        (f"torchrun --nproc-per-node=$GPUS {TORCHRUN}", "nproc_per_node"),
        (f"torchrun --nnodes $N --nproc_per_node 4 {TORCHRUN}", "nnodes"),
        (f"PET_NPROC_PER_NODE=$N torchrun {TORCHRUN}", "PET_NPROC_PER_NODE"),
        ("NPROC_PER_NODE=$N llamafactory-cli train train.yaml", "NPROC_PER_NODE"),
        ("CUDA_VISIBLE_DEVICES=$N llamafactory-cli train train.yaml", "CUDA_VISIBLE_DEVICES"),
        (f"deepspeed --num_gpus $N {TORCHRUN}", "num_gpus"),
        (f"deepspeed --include $N {TORCHRUN}", "include"),
        (f"accelerate launch --num_processes $N {TORCHRUN}", "num_processes"),
        (f"accelerate launch --num_machines $N {TORCHRUN}", "num_machines"),
        (f"accelerate launch --gpu_ids $N {TORCHRUN}", "gpu_ids"),
    ],
)
def test_numbers_of_processes_that_only_a_shell_knows(command, key):
    (problem,) = problems_of(part_of(command), "unresolved")
    assert (problem.key, problem.severity) == (key, Severity.WARNING)
    assert problem.may_need_more
    assert problem.may_need_less


@pytest.mark.parametrize(
    "command",
    [
        f"torchrun --nproc_per_node $(nvidia-smi -L | wc -l) {TORCHRUN}",
        f"N=4; torchrun --nproc_per_node $N {TORCHRUN}",
        f"torchrun --node_rank $RANK --nproc_per_node 2 {TORCHRUN}",
    ],
)
def test_numbers_that_are_known_all_the_same(command):
    assert problems_of(part_of(command), "unresolved") == []


@pytest.mark.parametrize(
    ("options", "key", "kind"),
    [
        ("--dynamo_backend inductor", "dynamo_backend", "unmodelled"),
        ("--use_megatron_lm", "distributed_type", "unmodelled"),
        ("--tpu", "distributed_type", "unmodelled"),
        ("--cpu", "cpu", "unmodelled"),
        ("--mixed_precision fp8", "mixed_precision", "unmodelled"),
        ("--parallelism_config_tp_size 2", "parallelism_config_tp_size", "unmodelled"),
        ("--fp8_backend te", "fp8_backend", "unmodelled"),
        ("--num_procs 2", "num_procs", "unknown-key"),
    ],
)
def test_options_of_accelerate_launch(options, key, kind):
    part = part_of(f"accelerate launch {options} {TORCHRUN}")
    assert key in [each.key for each in problems_of(part, kind)]


@pytest.mark.parametrize(
    "options",
    [
        "--num_cpu_threads_per_process 4 --main_process_port 29501 --quiet --mixed_precision bf16 --dynamo_backend no",
        "--gradient_accumulation_steps 4 --multi_gpu --num_processes 2 --machine_rank 0 --same_network",
    ],
)
def test_options_that_cost_nothing(options):
    part = part_of(f"accelerate launch {options} {TORCHRUN}", ranks=2)
    assert problems_of(part, "unmodelled", "unknown-key", "unresolved", "renamed-key") == []
    assert not str(part.fields.get("sharding")).startswith("zero")


@pytest.mark.parametrize(
    ("command", "shape"),
    [
        (f"accelerate launch --gpu_ids 2,3 {TORCHRUN}", Shape(per_node=2, visible=("2", "3"))),
        (
            f"CUDA_VISIBLE_DEVICES=0 accelerate launch --gpu_ids 2 --num_processes 1 {TORCHRUN}",
            Shape(1, 1, 1, visible=("2",)),
        ),
        (f"CUDA_VISIBLE_DEVICES=1 accelerate launch --gpu_ids all {TORCHRUN}", Shape(per_node=1, visible=("1",))),
        (f"deepspeed --exclude localhost:3 {TORCHRUN}", Shape(hidden=("3",))),
        (f"deepspeed --include localhost:0,1 {TORCHRUN}", Shape(per_node=2, visible=("0", "1"))),
        ("CUDA_VISIBLE_DEVICES=1 llamafactory-cli train train.yaml", Shape(per_node=1, visible=("1",))),
        ("CUDA_VISIBLE_DEVICES=1 python src/train.py train.yaml", Shape(1, 1, visible=("1",))),
        ("axolotl train ax.yaml --num-processes 2", Shape(1, 2, 2)),
        ("axolotl train ax.yaml --num-processes=8 --num-machines 2", Shape(2, 4, 8)),
        ("axolotl train ax.yaml --gpu_ids 1,2", Shape(per_node=2, visible=("1", "2"))),
        ("axolotl train ax.yaml --launcher torchrun --nproc_per_node 2", Shape(1, 2)),
        ("axolotl train ax.yaml --launcher torchrun -- --nproc_per_node 2", Shape(1, 2)),
    ],
)
def test_processes_and_the_devices_they_see(command, shape):
    assert source_of(texts(command)).shape == shape


def test_what_axolotl_hands_on_is_no_key_of_its_own():
    part = part_of("axolotl train ax.yaml --num-processes 2 --dynamo_backend inductor --micro-batch-size 4", ranks=2)
    assert problems_of(part, "unknown-key") == []
    assert part.fields["micro_batch"] == 4
    assert len(about(part, "dynamo_backend")) == 1


@pytest.mark.parametrize(
    ("command", "key", "kind"),
    [
        (f"torchrun --nproc_per_nod 2 {TORCHRUN}", "nproc_per_nod", "unknown-key"),
        (f"deepspeed --num_gpu 2 {TORCHRUN}", "num_gpu", "unknown-key"),
        (f"deepspeed --autotuning run {TORCHRUN}", "autotuning", "unmodelled"),
        (f"deepspeed --include a:0@b:0,1 {TORCHRUN}", "include", "unmodelled"),
    ],
)
def test_options_of_launchers_without_a_file(command, key, kind):
    assert key in [each.key for each in problems_of(part_of(command), kind)]


def test_accelerate_s_own_launcher_sets_the_variables_itself():
    part = part_of(f"ACCELERATE_MIXED_PRECISION=fp8 accelerate launch {TORCHRUN}")
    assert about(part, "ACCELERATE_MIXED_PRECISION") == []


def test_sharding_that_is_stated_anyway():
    command = f"ACCELERATE_USE_FSDP=true torchrun --nproc_per_node 2 {TORCHRUN} --fsdp full_shard"
    assert about(part_of(command, ranks=2), "ACCELERATE_USE_FSDP") == []


def test_accelerate_s_file_names_devices_and_fp8():
    files = {
        "run.sh": f"accelerate launch --config_file acc.yaml {TORCHRUN}",
        "train.yaml": TRAIN,
        "acc.yaml": "distributed_type: 'NO'\ngpu_ids: 1\nmixed_precision: fp8\nnum_processes: 1\n",
    }
    assert source_of(files).shape == Shape(1, 1, 1, visible=("1",))
    assert len(about(said_by(files), "mixed_precision")) == 1
