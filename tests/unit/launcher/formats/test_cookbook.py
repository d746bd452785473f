import shlex

import pytest

from ftplan.errors import CannotExpressError, ConfigFileError
from ftplan.launcher.formats import cookbook
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import rendered
from ftplan.launcher.formats.sources import opened
from ftplan.spec import RunConfig

ADAPTERS_UNSAID = ("cookbook", "transformers", "accelerate", "deepspeed")
"""The one that says it, and those whose files say nothing of adapters."""
FSDP = "torchrun --nnodes 1 --nproc_per_node 4 finetuning.py --enable_fsdp --model_name meta-llama/Meta-Llama-3.1-8B"
PEFT = f"{FSDP} --use_peft --peft_method lora"
SINGLE = "python -m llama_cookbook.finetuning --use_peft --peft_method lora --model_name meta-llama/Llama-3.1-8B"


def source(command):
    return opened(shlex.split(command), Files())


def read(command, ranks=4):
    return source(command).understood(ranks)


def messages(part, kind):
    return [problem.message for problem in part.problems if problem.kind == kind]


def test_four_a100_lora_and_fsdp():
    part = read(f"{PEFT} --output_dir adapters")
    assert RunConfig.model_validate(dict(part.fields)) == RunConfig(
        model="meta-llama/Meta-Llama-3.1-8B",
        method="lora",
        lora_rank=8,
        lora_alpha=32,
        lora_targets="q_proj,v_proj",
        lora_dropout=0.05,
        adapter_dtype="fp32",
        weights_dtype="bf16",
        precision="bf16",
        optimizer="adamw_torch",
        gradient_checkpointing=True,
        seq_len=4096,
        micro_batch=4,
        accumulation=1,
        sharding="fsdp2",
        sync_each_batch=True,
        stack="cookbook",
        evaluates=True,
    )
    assert part.beside == {"eval_micro_batch": 1, "learning_rate": 1e-4}


def test_eight_full_in_pure_bf16():
    command = FSDP.replace("4 fine", "8 fine") + " --fsdp_config.pure_bf16 --use_fast_kernels"
    found = source(command)
    assert (found.shape.nodes, found.shape.per_node) == (1, 8)
    fields = found.understood(8).fields
    assert (fields["method"], fields["weights_dtype"], fields["precision"]) == ("full", "bf16", "none")
    assert (fields["sharding"], fields["attention"]) == ("fsdp2", "sdpa")


def test_eight_h100_with_low_memory_loading():
    switches = "env FSDP_CPU_RAM_EFFICIENT_LOADING=1 ACCELERATE_USE_FSDP=1 "
    command = (
        "torchrun --nnodes 1 --nproc_per_node 8 examples/finetuning.py --enable_fsdp --low_cpu_fsdp"
        " --fsdp_config.pure_bf16 --model_name meta-llama/Llama-3.1-70B --batch_size_training 1"
    )
    part = read(switches + command, ranks=8)
    assert part.fields["micro_batch"] == 1
    assert {each.kind for each in part.problems} == {"assumption"}
    alone = next(each for each in read(command, ranks=8).problems if each.kind == "host-memory")
    assert "--low_cpu_fsdp alone" in alone.message
    assert alone.needed_bytes == 8 * 2 * 70_553_706_496


def test_without_low_memory_loading_every_rank_has_a_copy():
    found = next(each for each in read(PEFT).problems if each.kind == "host-memory")
    assert "the 4 ranks of a machine" in found.message
    assert found.needed_bytes == 4 * 2 * 8_030_261_248
    unknown = next(
        each
        for each in read(PEFT.replace("meta-llama/Meta-Llama-3.1-8B", "/w/8B")).problems
        if each.kind == "host-memory"
    )
    assert unknown.needed_bytes is None


def test_fsdp1_and_a_loop_that_was_only_read_are_assumptions():
    found = {each.message.split()[0]: each for each in read(PEFT).problems if each.kind == "assumption"}
    assert found["FSDP"].within == 0.15
    assert found["what"].within == 0.1


@pytest.mark.parametrize(
    "program",
    [
        "examples/finetuning.py",
        "llama_finetuning.py",
        "recipes/quickstart/finetuning/finetuning.py",
        "-m llama_recipes.finetuning",
        "-m llama_cookbook.finetuning",
    ],
)
def test_programs_of_all_releases(program):
    found = source(PEFT.replace("finetuning.py", program))
    assert found.format.name == "cookbook"
    assert found.understood(4).fields["method"] == "lora"


def test_one_process_without_fsdp_shards_and_checkpoints_nothing():
    found = source(SINGLE)
    assert (found.shape.nodes, found.shape.per_node) == (1, 1)
    fields = found.understood(1).fields
    assert (fields["sharding"], fields["gradient_checkpointing"], fields["precision"]) == ("none", False, "none")


def test_half_precision():
    assert {read(f"{SINGLE} --use_fp16", 1).fields[field] for field in ("weights_dtype", "precision")} == {"fp16"}
    fields = read(f"{PEFT} --use_fp16").fields
    assert (fields["weights_dtype"], fields["precision"]) == ("fp16", "fp16")
    full = read(f"{FSDP} --use_fp16").fields
    assert (full["weights_dtype"], full["precision"]) == ("fp16", "none")


@pytest.mark.parametrize("flag", ["--fsdp_config.pure_bf16", "--mixed_precision False", "--nomixed_precision"])
def test_adapters_outside_of_mixed_precision(flag):
    assert read(f"{PEFT} {flag}").fields["precision"] == "none"


def test_four_bits():
    fields = read(f"{PEFT} --quantization 4bit --quantization_config.quant_type nf4 --mixed_precision False").fields
    assert (fields["method"], fields["quantization"], fields["double_quantization"]) == ("qlora", "nf4", False)
    assert read(f"{PEFT} --quantization 4bit").fields["quantization"] == "fp4"
    with pytest.raises(ConfigFileError, match="quant_type is 'int4'"):
        read(f"{PEFT} --quantization 4bit --quant_type int4")


@pytest.mark.parametrize("flag", ["--quantization 8bit", "--quantization"])
def test_eight_bits_are_not_modelled(flag):
    part = read(f"{SINGLE} {flag}", 1)
    assert part.fields["method"] == "lora"
    assert "8-bit weights" in messages(part, "unmodelled")[0]


def test_bare_and_dotted_names():
    fields = read(f"{PEFT} --lora_config.r 16 --lora_alpha 64 --lora_config.target_modules '[q_proj,k_proj]'").fields
    assert (fields["lora_rank"], fields["lora_alpha"], fields["lora_targets"]) == (16, 64, "q_proj,k_proj")
    assert read(f"{PEFT} --lora_config.target_modules all-linear").fields["lora_targets"] == "all-linear"
    assert read(f"{PEFT} --train_config.batch_size_training 2").fields["micro_batch"] == 2
    off = read(f"{PEFT} --fsdp_config.fsdp_activation_checkpointing False --fsdp_config.fsdp_cpu_offload").fields
    assert (off["gradient_checkpointing"], off["offload"]) == (False, "optimizer+params")
    assert read(f"{PEFT} --norun_validation").fields["evaluates"] is False


def test_padding_leaves_the_length_to_the_data():
    part = read(f"{PEFT} --batching_strategy padding")
    assert part.fields["padding"] is True
    assert "padding cuts no sample" in messages(part, "unresolved")[0]
    assert read(f"{PEFT} --batching_strategy padding --batch_size_training 1").fields["padding"] is False


def test_any_precision_keeps_its_moments_in_16_bits_and_goes_one_by_one():
    assert read(f"{FSDP} --pure_bf16 --fsdp_config.optimizer anyprecision").fields["optimizer"] == "adamw_torch_fused"
    assert read(f"{FSDP} --fsdp_config.optimizer anyprecision").fields["optimizer"] == "adamw_torch"


@pytest.mark.parametrize(
    ("strategy", "sharding"),
    [
        ("FULL_SHARD", "fsdp2"),
        ("SHARD_GRAD_OP", "fsdp2-grad-op"),
        ("NO_SHARD", "ddp"),
        ("HYBRID_SHARD", "hsdp"),
        ("ShardingStrategy.SHARD_GRAD_OP", "fsdp2-grad-op"),
    ],
)
def test_strategies_are_read_though_the_command_line_cannot_set_them(strategy, sharding):
    part = read(f"{PEFT} --fsdp_config.sharding_strategy {strategy}")
    assert part.fields["sharding"] == sharding
    assert "FSDP takes no sharding strategy as the word" in messages(part, "conflict")[0]


def test_a_strategy_that_is_none():
    with pytest.raises(ConfigFileError, match="'ZERO' is no sharding strategy"):
        read(f"{PEFT} --sharding_strategy zero")


def test_hybrid_groups_that_are_no_machines():
    base = f"{PEFT} --fsdp_config.hsdp --sharding_strategy HYBRID_SHARD --replica_group_size 2"
    assert "sharding_group_size" in [each.key for each in read(f"{base} --sharding_group_size 2").problems]
    same = read(f"{base} --sharding_group_size 4")
    assert not messages(same, "unmodelled")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{FSDP} --use_peft --peft_method llama_adapter", "llama_adapter is not supported with FSDP"),
        (f"{SINGLE} --peft_method prefix", "prefix tuning is not supported"),
        (f"{SINGLE} --peft_method ia3", "no such peft_method"),
        (f"{PEFT} --quantization 8bit", "8-bit quantization is not supported with FSDP"),
        (f"{PEFT} --quantization int4", "either 4bit or 8bit"),
        (f"{PEFT} --flop_counter --use_profiler", "cannot be used both"),
        (f"{PEFT} --use_profiler --max_train_step 5", "at least 7"),
        (f"{PEFT} --flop_counter --max_train_step 3", "flop_counter_start"),
        (f"{PEFT} --batching_strategy bucket", "either packing or padding"),
        (f"{PEFT} --fsdp_config.checkpoint_type FULL_STATE_DICT", "full spelling"),
        (f"{PEFT} --hsdp --sharding_strategy HYBRID_SHARD", "sizes of its groups"),
        (f"{SINGLE} --enable_fsdp", "environment that torchrun sets"),
        (PEFT.replace(" --enable_fsdp", ""), "all on the first card"),
    ],
)
def test_what_it_refuses(command, message):
    found = [each for each in read(command).problems if each.kind == "conflict"]
    assert any(message in each.message for each in found)
    assert all(each.source.startswith("llama-cookbook") for each in found)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ("--peft_method prefix", "peft_method"),
        ("--from_peft_checkpoint old", "from_peft_checkpoint"),
        ("--freeze_layers", "freeze_layers"),
        ("--use_profiler", "use_profiler"),
    ],
)
def test_what_is_not_modelled(flags, key):
    assert key in [each.key for each in read(f"{SINGLE} {flags}", 1).problems if each.kind == "unmodelled"]


def test_llama_adapter_trains_prompts_in_the_weights_dtype():
    command = SINGLE.replace("--peft_method lora", "--peft_method llama_adapter")
    part = read(f"{command} --llama_adapter_config.adapter_len 16 --adapter_layers 20", 1)
    config = RunConfig.model_validate(dict(part.fields))
    assert (config.method, config.adapter_len, config.adapter_layers) == ("llama-adapter", 16, 20)
    assert (config.adapter_dtype, config.precision, config.gradient_checkpointing) == ("bf16", "none", False)
    assert {problem.kind for problem in part.problems} == {"assumption"}
    packed = RunConfig.model_validate(dict(read(f"{command} --quantization 4bit", 1).fields))
    assert (packed.method, packed.quantization, packed.adapter_layers) == ("llama-adapter", "fp4", 30)


def test_four_bit_weights_without_adapters_do_not_train():
    part = read(f"{FSDP} --quantization 4bit")
    assert part.fields["method"] == "full"
    assert "do not train" in messages(part, "unmodelled")[0]


def test_an_unknown_key_is_named():
    assert "batch_size_trainig" in messages(read(f"{PEFT} --batch_size_trainig 2"), "unknown-key")[0]


PLAIN = RunConfig(
    model="meta-llama/Llama-3.1-8B",
    method="lora",
    lora_targets="qv",
    precision="bf16",
    sharding="fsdp2",
    sync_each_batch=True,
    stack="cookbook",
    evaluates=True,
    seq_len=2048,
    accumulation=2,
)


def test_a_written_command():
    files = rendered(cookbook.FORMAT, PLAIN, Target(per_node=4))
    assert set(files) == {"launch.sh"}
    script = files["launch.sh"]
    assert "torchrun --nnodes 1 --nproc_per_node 4 -m llama_cookbook.finetuning --model_name" in script
    assert "--enable_fsdp --low_cpu_fsdp" in script
    assert "export FSDP_CPU_RAM_EFFICIENT_LOADING=1" in script
    assert "--lora_config.target_modules '[q_proj,v_proj]'" in script


PROMPTS = RunConfig(
    model="meta-llama/Llama-3.1-8B",
    method="llama-adapter",
    adapter_len=16,
    precision="none",
    gradient_checkpointing=False,
    stack="cookbook",
    seq_len=2048,
)


def test_a_written_command_of_llama_adapter():
    script = rendered(cookbook.FORMAT, PROMPTS, Target())["launch.sh"]
    assert "--use_peft --peft_method llama_adapter --llama_adapter_config.adapter_len 16" in script
    assert "--llama_adapter_config.adapter_layers 30" in script
    assert "lora_config" not in script


@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if each.emit and name not in ADAPTERS_UNSAID])
def test_no_other_format_says_llama_adapter(name):
    config = PROMPTS.model_copy(update={"stack": FORMATS[name].pins("lora").get("stack", "trainer")})
    with pytest.raises(CannotExpressError) as caught:
        rendered(FORMATS[name], config, Target())
    assert "method" in caught.value.fields


def test_a_file_of_instructions_takes_the_place_of_alpacas():
    script = rendered(cookbook.FORMAT, PLAIN, Target(per_node=4, dataset="data.json"))["launch.sh"]
    assert "--dataset alpaca_dataset --alpaca_dataset.data_path data.json" in script


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sharding": "hsdp"}, "sharding"),
        ({"sharding": "zero2"}, "sharding"),
        ({"method": "full"}, "precision"),
        ({"adapter_dtype": "bf16"}, "adapter_dtype"),
        ({"weights_dtype": "fp32"}, "weights_dtype"),
        ({"optimizer": "adamw_bnb_8bit"}, "optimizer"),
        ({"packing": True}, "packing"),
        ({"attention": "eager"}, "attention"),
        ({"kernels": "liger", "loss_path": "liger"}, "kernels"),
        ({"offload": "optimizer"}, "offload"),
        ({"stack": "trainer"}, "stack"),
    ],
)
def test_what_the_command_cannot_say_is_named(changes, field):
    with pytest.raises(CannotExpressError) as caught:
        rendered(cookbook.FORMAT, PLAIN.model_copy(update=changes), Target(per_node=4))
    assert field in caught.value.fields
