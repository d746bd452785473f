"""The names that users and scripts rely on: to change one is to change the interface, and belongs in the changelog."""

import importlib.metadata
import subprocess
import sys

import pytest
import typer

import ftplan
from ftplan import cli
from ftplan.results import Phase, Provenance
from ftplan.spec import PlanRequest, RunConfig

RUN_CONFIG = """
    model method lora_rank lora_alpha lora_targets lora_dropout adapter_len adapter_layers adapter_dtype
    quantization double_quantization prepare_kbit weights_dtype precision optimizer gradient_checkpointing
    seq_len micro_batch accumulation padding packing attention kernels loss_path sharding offload
    zero_reduce_bucket zero_prefetch_bucket zero_persistence_threshold zero_overlap sync_each_batch stack
    expandable_segments evaluates
"""

PLAN_REQUEST = """
    model inventory method global_batch seq_len seq_len_is_default seq_len_is_limit highest_rank objective
    margin pins training missing_packages written_for not_written was
"""

COMMANDS = {
    "plan": """
        --model --gpus --method --global-batch --seq-len --max-seq --objective --margin --host-memory --link
        --network --was-gpus --was-batch --learning-rate --lora-rank --rank --lora-alpha --lora-targets
        --lora-dropout --adapter-len --adapter-layers --adapter-dtype --quantization --double-quantization
        --no-double-quantization --prepare-kbit --no-prepare-kbit --weights-dtype --precision --optimizer
        --gradient-checkpointing --no-gradient-checkpointing --micro-batch --accumulation --padding --no-padding
        --packing --no-packing --attention --kernels --loss-path --sharding --offload --zero-reduce-bucket
        --zero-prefetch-bucket --zero-persistence-threshold --zero-overlap --no-zero-overlap --sync-each-batch
        --no-sync-each-batch --stack --expandable-segments --no-expandable-segments --evaluates --no-evaluates
        --samples --epochs --mean-tokens --price --confirm --out --format --for-version --dataset --job --report
        --quiet -q --json
    """,
    "check": """
        --gpus --from --set --quick --fix --pick --was-gpus --was-batch --learning-rate --margin --host-memory
        --link --network --model --method --lora-rank --lora-targets --weights-dtype --precision --optimizer
        --gradient-checkpointing --no-gradient-checkpointing --seq-len --micro-batch --accumulation --padding
        --no-padding --packing --no-packing --attention --kernels --sharding --offload --stack
        --expandable-segments --no-expandable-segments --evaluates --no-evaluates --format --report --quiet -q --json
    """,
    "estimate": """
        --model --gpus --method --lora-rank --lora-alpha --lora-targets --lora-dropout --adapter-len
        --adapter-layers --adapter-dtype --quantization --double-quantization --no-double-quantization
        --prepare-kbit --no-prepare-kbit --weights-dtype --precision --optimizer --gradient-checkpointing
        --no-gradient-checkpointing --seq-len --micro-batch --accumulation --padding --no-padding --packing
        --no-packing --attention --kernels --loss-path --sharding --offload --zero-reduce-bucket
        --zero-prefetch-bucket --zero-persistence-threshold --zero-overlap --no-zero-overlap --sync-each-batch
        --no-sync-each-batch --stack --expandable-segments --no-expandable-segments --evaluates --no-evaluates
        --samples --epochs --mean-tokens --price --estimator --batch --margin --report --quiet -q --json
    """,
    "need": """
        --model --method --cards --max-devices --global-batch --seq-len --margin --host-memory --lora-rank
        --rank --lora-targets --weights-dtype --precision --optimizer --gradient-checkpointing
        --no-gradient-checkpointing --micro-batch --packing --no-packing --attention --kernels --sharding
        --offload --expandable-segments --no-expandable-segments --quiet -q --json
    """,
    "max": """
        --model --gpus --method --global-batch --seq-len --margin --host-memory --lora-rank --rank
        --lora-targets --weights-dtype --precision --optimizer --gradient-checkpointing
        --no-gradient-checkpointing --micro-batch --packing --no-packing --attention --kernels --sharding
        --offload --expandable-segments --no-expandable-segments --quiet -q --json
    """,
    "tune": """
        --model --gpus --method --global-batch --seq-len --margin --host-memory --lora-rank --rank
        --lora-targets --weights-dtype --precision --optimizer --gradient-checkpointing
        --no-gradient-checkpointing --micro-batch --packing --no-packing --attention --kernels --sharding
        --offload --expandable-segments --no-expandable-segments --trials --budget --folder --out --quiet -q --json
    """,
    "doctor": """
        --demo --model --gpus --method --global-batch --seq-len --data --dataset --data-format --skip-bad-rows
        --chat-template --keep --weights --tokenizer --run-dir --quiet -q --json
    """,
    "run": """
        --demo --resume --model --gpus --data --dataset --data-format --skip-bad-rows --chat-template
        --no-data-cache --eval-fraction --method --global-batch --seq-len --lora-rank --lora-targets
        --adapter-len --adapter-layers --sharding --offload --micro-batch --gradient-checkpointing
        --no-gradient-checkpointing --packing --no-packing --epochs --max-steps --learning-rate --save-steps
        --keep --seed --weights --tokenizer --run-dir --track --count-flops --profile --resume-or-start --nodes
        --node-rank --rdzv-endpoint --rdzv-id --rdzv-timeout --interface --timeout --cache-dir --engine
        --engine-env --dry-run --force --tune --rehearse --max-restarts --max-fallbacks --quiet -q --json
    """,
    "report": "--quiet -q --json",
    "merge": "--out --base --max-ram --dtype --max-shard-size --quiet -q --json",
    "predict": """
        --data --dataset --data-format --skip-bad-rows --base --metrics --before --no-before --limit --max-new-tokens
        --seq-len --batch-size --out --quiet -q --json
    """,
    "calibrate": "--gpus --show --reset --quiet -q --json",
    "ui": "--host --port --runs --hosted --token --open --quiet -q --json",
    "models": "--min-params --max-params --quiet -q --json",
    "gpus": "--min-memory --quiet -q --json",
}

TABLE_OF_DESIGN = """
    --model --gpus --method --lora-rank --lora-targets --lora-dropout --adapter-dtype --weights-dtype
    --precision --optimizer --gradient-checkpointing --no-gradient-checkpointing --seq-len --micro-batch
    --accumulation --padding --no-padding --attention --kernels --sharding --offload --prepare-kbit
    --no-prepare-kbit --stack --expandable-segments --no-expandable-segments --batch --json
"""


def command_of(name):
    return typer.main.get_command(cli.build_app()).commands[name]


def options_of(name):
    options = [each for each in command_of(name).params if each.param_type_name == "option"]
    return [text for option in options for text in (*option.opts, *option.secondary_opts) if text != "--help"]


def test_commands():
    assert list(cli.COMMANDS) == list(COMMANDS)
    assert list(typer.main.get_command(cli.build_app()).commands) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command(name):
    assert options_of(name) == COMMANDS[name].split()


def test_estimate_has_every_option_of_the_design():
    assert set(TABLE_OF_DESIGN.split()) <= set(options_of("estimate"))


def test_every_field_of_a_configuration_can_be_pinned():
    assert {f"--{name.replace('_', '-')}" for name in RunConfig.model_fields} <= set(options_of("plan"))


def test_every_field_of_a_configuration_is_an_option_of_estimate():
    assert {f"--{name.replace('_', '-')}" for name in RunConfig.model_fields} <= set(options_of("estimate"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_quiet(name):
    assert {"--json", "--quiet", "-q"} <= set(options_of(name))


@pytest.mark.parametrize("name", ["run", "tune"])
def test_what_starts_training_takes_a_plan_file(name):
    arguments = [each.name for each in command_of(name).params if each.param_type_name == "argument"]
    assert arguments == ["plan_file"]


@pytest.mark.parametrize("name", ["models", "gpus"])
def test_a_catalogue_takes_words(name):
    assert [each.name for each in command_of(name).params if each.param_type_name == "argument"] == ["search"]


def test_fields_of_a_configuration():
    assert list(RunConfig.model_fields) == RUN_CONFIG.split()


def test_fields_of_a_request():
    assert list(PlanRequest.model_fields) == PLAN_REQUEST.split()


def test_phases_and_provenance():
    assert list(Phase) == ["load", "forward", "loss", "backward", "optimizer", "eval", "save"]
    assert list(Provenance) == ["measured", "traced", "analytic", "assumed"]


def test_the_version_is_the_package_s(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"ftplan {ftplan.__version__}\n"
    assert ftplan.__version__ == importlib.metadata.version("ftplan")


def test_the_module_can_be_run():
    done = subprocess.run([sys.executable, "-m", "ftplan", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ftplan {ftplan.__version__}\n"


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_one_command_alone_is_built_like_in_the_whole(name):
    """A start builds only the command that runs; its help and options must not differ."""
    if name is None:
        assert set(typer.main.get_command(cli.build_app()).commands) == set(COMMANDS)
    else:
        alone = cli.build_app(name)
        assert [each.name for each in alone.registered_commands] == [name]
