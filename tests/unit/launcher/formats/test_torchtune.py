from pathlib import Path

import pytest

from ftplan.errors import CannotExpressError, ConfigFileError
from ftplan.launcher.formats import torchtune
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.rendering import rendered
from ftplan.launcher.formats.sources import opened
from ftplan.launcher.formats.torchtune_models import builder_for, builder_of, builders
from ftplan.profiles.models import load_model
from ftplan.spec import RunConfig

LORA = """\
# To start on several devices:
#   tune run --nproc_per_node 2 lora_finetune_distributed --config here.yaml
output_dir: out
model:
  _component_: torchtune.models.llama3_1.lora_llama3_1_8b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  lora_rank: 8
  lora_alpha: 16
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: weights/tokenizer.model
  max_seq_len: 2048
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: weights/Meta-Llama-3.1-8B-Instruct/
  output_dir: ${output_dir}
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: False
batch_size: 2
gradient_accumulation_steps: 8
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  lr: 3e-4
loss:
  _component_: torchtune.modules.loss.LinearCrossEntropyLoss
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: ${output_dir}/logs
device: cuda
dtype: bf16
enable_activation_checkpointing: True
"""
FULL = """\
# tune run --nproc_per_node 4 full_finetune_distributed --config here.yaml
model:
  _component_: torchtune.models.llama3_1.llama3_1_8b
tokenizer:
  max_seq_len: 4096
batch_size: 1
gradient_accumulation_steps: 1
optimizer:
  _component_: torch.optim.AdamW
  lr: 2e-5
loss:
  _component_: torchtune.modules.loss.LinearCrossEntropyLoss
dtype: bf16
"""
HERE = Path("here.yaml")


def source(text, *words, before=()):
    files = Files({HERE: text, Path.cwd() / HERE: text})
    return opened([*before, str(HERE), *words], files)


def read(text, *words, ranks=2, before=()):
    return source(text, *words, before=before).understood(ranks)


def messages(part, kind):
    return [problem.message for problem in part.problems if problem.kind == kind]


def config(part):
    return RunConfig.model_validate(dict(part.fields))


def test_lora_on_several_devices():
    part = read(LORA)
    assert config(part) == RunConfig(
        model="meta-llama/Meta-Llama-3.1-8B-Instruct",
        method="lora",
        lora_rank=8,
        lora_alpha=16,
        lora_targets="q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        adapter_dtype="bf16",
        weights_dtype="bf16",
        precision="none",
        optimizer="adamw_torch_fused",
        gradient_checkpointing=True,
        seq_len=2048,
        micro_batch=2,
        accumulation=8,
        loss_path="chunked",
        sharding="fsdp2",
        sync_each_batch=True,
        stack="torchtune",
    )
    assert part.beside == {"eval_micro_batch": 2, "learning_rate": 3e-4}
    assert part.origins["micro_batch"].place.line == LORA.splitlines().index("batch_size: 2") + 1


def test_every_configuration_is_said_to_be_read_and_not_measured():
    found = next(each for each in read(LORA).problems if "not measured" in each.message)
    assert (found.kind, found.within, found.may_need_more, found.may_need_less) == ("assumption", 0.1, True, True)


def test_known_files_have_no_other_problems_than_assumptions():
    assert {problem.kind for problem in read(LORA).problems} == {"assumption"}


def test_a_loss_that_holds_all_logits_is_bounded_by_the_weights():
    part = read(LORA, "loss=torchtune.modules.loss.CEWithChunkedOutputLoss")
    found = next(each for each in part.problems if each.key == "loss._component_")
    logits = 2 * 128256 * 2 * 2048
    assert found.within == pytest.approx(logits * 2 / (2 * load_model("Llama-3.1-8B").total_params))
    assert found.may_need_more
    assert not found.may_need_less
    offloaded = read(LORA, "loss=torchtune.modules.loss.CEWithChunkedOutputLoss", "fsdp_cpu_offload=True")
    assert next(each for each in offloaded.problems if each.key == "loss._component_").within is None


def test_the_recipe_of_the_files_own_comments_decides_how_many_processes_start():
    single = LORA.replace("--nproc_per_node 2 lora_finetune_distributed", "lora_finetune_single_device")
    assert source(single).shape.per_node == 1
    assert read(single, ranks=1).fields["sharding"] == "none"
    assert source(LORA).shape.per_node is None
    assert read(LORA, ranks=1).fields["sharding"] == "none"


def test_settings_on_the_command_line_win():
    words = ("batch_size=8", "fsdp_cpu_offload=True", "model.lora_rank=32", "optimizer=bitsandbytes.optim.AdamW8bit")
    command = ("tune", "run", "--nnodes", "1", "--nproc_per_node", "2", "lora_finetune_distributed", "--config")
    found = source(LORA, *words, before=command)
    assert (found.shape.nodes, found.shape.per_node) == (1, 2)
    fields = found.understood(2).fields
    assert fields["micro_batch"] == 8
    assert fields["offload"] == "optimizer+params"
    assert fields["lora_rank"] == 32
    assert fields["optimizer"] == "adamw_bnb_8bit"


def test_tune_run_without_numbers_starts_one_process():
    found = source(LORA, before=("tune", "run", "lora_finetune_single_device", "--config"))
    assert (found.shape.nodes, found.shape.per_node) == (1, 1)


def test_a_recipe_run_as_a_script_is_read_too():
    found = source(
        FULL, before=("torchrun", "--nproc_per_node", "4", "recipes/full_finetune_distributed.py", "--config")
    )
    assert found.format.name == "torchtune"
    assert found.understood(4).fields["sharding"] == "fsdp2"


def test_a_name_inside_the_package_cannot_be_read():
    with pytest.raises(ConfigFileError, match="inside torchtune's package") as caught:
        opened(["tune", "run", "lora_finetune_single_device", "--config", "llama3_1/8B_lora"], Files()).understood(1)
    assert "tune cp llama3_1/8B_lora" in caught.value.hint


def test_a_name_inside_the_package_is_read_where_its_file_lies(tmp_path, monkeypatch):
    folder = tmp_path / "recipes" / "configs" / "llama3_1"
    folder.mkdir(parents=True)
    (folder / "8B_lora.yaml").write_text(LORA)
    monkeypatch.chdir(tmp_path)
    words = ["tune", "run", "lora_finetune_single_device", "--config", "llama3_1/8B_lora", "batch_size=4"]
    fields = opened(words, Files()).understood(1).fields
    assert (fields["micro_batch"], fields["lora_rank"]) == (4, 8)


def test_full_fine_tuning_keeps_everything_in_one_dtype():
    fields = read(FULL, ranks=4).fields
    assert fields["method"] == "full"
    assert (fields["weights_dtype"], fields["precision"]) == ("bf16", "none")
    assert fields["optimizer"] == "adamw_torch"
    assert read(FULL, "dtype=fp32", ranks=4).fields["weights_dtype"] == "fp32"


def test_qlora_packs_nf4_with_scales_in_eight_bits():
    qlora = read(LORA.replace("lora_llama3_1_8b", "qlora_llama3_1_8b")).fields
    assert (qlora["method"], qlora["quantization"], qlora["double_quantization"]) == ("qlora", "nf4", True)
    asked = read(LORA, "model.quantize_base=True").fields
    assert asked["method"] == "qlora"


@pytest.mark.parametrize(
    ("words", "sharding"),
    [
        (("fsdp_reshard_after_forward=False",), "fsdp2-grad-op"),
        (("data_parallel_replicate_dim=2",), "hsdp"),
        (("data_parallel_replicate_dim=4", "data_parallel_shard_dim=1"), "ddp"),
    ],
)
def test_meshes(words, sharding):
    assert read(FULL, *words, ranks=4).fields["sharding"] == sharding


def test_replicas_that_are_no_machines_are_not_modelled():
    part = read(FULL, "data_parallel_replicate_dim=2", ranks=4)
    assert [each.key for each in part.problems if each.kind == "unmodelled"] == ["data_parallel_replicate_dim"]


@pytest.mark.parametrize(
    ("attention", "mlp", "targets"),
    [
        ("[q_proj,v_proj]", False, "q_proj,v_proj"),
        ("[q_proj,k_proj,v_proj,output_proj]", True, "all-linear"),
        ("[q_proj,k_proj,v_proj,output_proj]", False, "q_proj,k_proj,v_proj,o_proj"),
    ],
)
def test_targets_have_transformers_names(attention, mlp, targets):
    words = (f"model.lora_attn_modules={attention}", f"model.apply_lora_to_mlp={mlp}")
    assert read(LORA, *words).fields["lora_targets"] == targets


def test_targets_of_a_fused_matrix():
    part = read(LORA.replace("llama3_1.lora_llama3_1_8b", "phi3.lora_phi3_mini"))
    assert part.fields["lora_targets"] == "qkv_proj,o_proj,gate_up_proj,down_proj"
    assert any("fused" in message for message in messages(part, "assumption"))


def test_unknown_targets_are_refused():
    with pytest.raises(ConfigFileError, match="lora_attn_modules is wqkv"):
        read(LORA, "model.lora_attn_modules=[wqkv]")


@pytest.mark.parametrize(
    ("loss", "path"),
    [
        ("torchtune.modules.loss.LinearCrossEntropyLoss", "chunked"),
        ("torchtune.modules.loss.CEWithChunkedOutputLoss", "chunked"),
        ("torch.nn.CrossEntropyLoss", "full"),
    ],
)
def test_losses(loss, path):
    assert read(LORA, f"loss={loss}").fields["loss_path"] == path


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        ("bitsandbytes.optim.PagedAdamW8bit", "paged_adamw_8bit"),
        ("bitsandbytes.optim.PagedAdamW", "paged_adamw_32bit"),
        ("torch.optim.SGD", "sgd"),
    ],
)
def test_optimizers(optimizer, name):
    assert read(LORA, f"optimizer={optimizer}").fields["optimizer"] == name


def test_an_optimizer_that_is_not_modelled_is_named():
    part = read(LORA, "optimizer=torch.optim.Adagrad")
    assert "torch.optim.Adagrad is estimated as adamw_torch_fused" in messages(part, "unmodelled")[0]


def test_a_length_that_only_the_data_knows():
    part = read(LORA.replace("max_seq_len: 2048", "max_seq_len: null"))
    assert part.fields["seq_len"] == torchtune.USUAL_LENGTH
    assert "no max_seq_len is set" in messages(part, "unresolved")[0]


def test_evaluations_take_the_training_batch_by_reference():
    extra = "run_val_every_n_steps: 50\nbatch_size_val: ${batch_size}\ndataset_val:\n  split: test\n"
    part = read(LORA + extra)
    assert part.fields["evaluates"] is True
    assert part.beside["eval_micro_batch"] == 2


def test_a_reference_in_a_longer_text_stays_text():
    with pytest.raises(ConfigFileError, match=r"batch_size is '\$\{other\}x'"):
        read(LORA, "batch_size=${other}x")


def test_several_data_sets():
    several = LORA.replace(
        "dataset:\n  _component_: torchtune.datasets.alpaca_cleaned_dataset\n  packed: False\n",
        "dataset:\n  - _component_: torchtune.datasets.alpaca_dataset\n    packed: True\n",
    )
    part = read(several)
    assert part.fields["packing"] is True
    assert messages(part, "unknown-key") == []


@pytest.mark.parametrize(
    ("words", "effect"),
    [
        (("compile=True",), "either"),
        (("enable_activation_offloading=True",), "less"),
        (("custom_sharded_layers=[output]",), "less"),
        (("context_parallel_dim=2",), "less"),
        (("quantizer._component_=torchtune.training.quantization.Int8DynActInt4WeightQATQuantizer",), "more"),
        (("model.use_dora=True",), "more"),
        (("profiler.enabled=True",), "more"),
        (("ac_mode=selective",), "either"),
        (("device=cpu",), "either"),
    ],
)
def test_what_costs_memory_and_is_not_modelled(words, effect):
    found = [each for each in read(LORA, *words).problems if each.kind == "unmodelled"]
    assert found
    assert any(each.may_need_more for each in found) is (effect in ("more", "either"))
    assert any(each.may_need_less for each in found) is (effect in ("less", "either"))


def test_the_optimizer_in_the_backward_needs_less():
    found = [each for each in read(FULL, "optimizer_in_bwd=True").problems if each.kind == "unmodelled"]
    assert [(each.key, each.may_need_more, each.may_need_less) for each in found] == [("optimizer_in_bwd", False, True)]


def test_an_old_key_is_named():
    assert "fsdp_cpu_offload" in messages(read(LORA, "fsdp.cpu_offload=True"), "renamed-key")[0]


DISTRIBUTED = ("tune", "run", "--nproc_per_node", "2", "lora_finetune_distributed", "--config")


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (LORA, ("dtype=fp16",), "fp16 training"),
        (LORA, ("enable_activation_checkpointing=False", "enable_activation_offloading=True"), "needs enable_activ"),
        (FULL, ("optimizer_in_bwd=True", "clip_grad_norm=1.0"), "gradient clipping"),
        (FULL, ("optimizer_in_bwd=True", "gradient_accumulation_steps=2"), "gradient accumulation"),
        (FULL, ("optimizer_in_bwd=True", "compile=True"), "compiled optimizer step"),
        (FULL, ("tensor_parallel_dim=2",), "tensor_parallel_plan"),
        (LORA, ("tensor_parallel_dim=2",), "no tensor parallelism"),
        (LORA, ("run_val_every_n_steps=5",), "needs dataset_val"),
        (LORA, ("dataset.packed=True", "tokenizer.max_seq_len=null"), "max_seq_len"),
        (LORA.replace("lora_finetune", "qat_lora_finetune"), (), "needs a quantizer"),
        (FULL.replace("full_finetune", "qat"), ("compile=True",), "compile is not supported"),
        (FULL, ("enable_fp8_training=True", "context_parallel_dim=2"), "fp8"),
        (FULL, ("data_parallel_shard_dim=3",), "do not multiply"),
        (FULL, ("context_parallel_dim=3",), "do not multiply"),
        (FULL, ("data_parallel_shard_dim=1", "data_parallel_replicate_dim=2"), "nothing reduces its gradients"),
        (
            LORA.replace("llama3_1.lora_llama3_1_8b", "llama3_2.lora_llama3_2_1b"),
            ("model.apply_lora_to_output=True",),
            "tied to the embeddings",
        ),
        (LORA, ("checkpointer.model_type=LLAMA4",), "saves adapters only"),
        (LORA, ("collate_fn=torchtune.data.left_pad_sequence",), "inference only"),
    ],
)
def test_what_recipes_refuse(text, words, message):
    assert any(message in each for each in messages(read(text, *words), "conflict"))


def test_each_rule_names_its_source():
    part = read(LORA, "dtype=fp16")
    assert all(each.source.startswith("torchtune 0.7") for each in part.problems if each.kind == "conflict")


def test_launches_that_a_recipe_refuses():
    bare = source(LORA, before=("tune", "run", "lora_finetune_distributed", "--config")).understood(1)
    assert "under a launcher only" in messages(bare, "conflict")[0]
    options = ("tune", "run", "--nproc_per_node", "2", "lora_finetune_single_device", "--config")
    assert "none of torchrun's options" in messages(source(LORA, before=options).understood(2), "conflict")[0]
    several = (*DISTRIBUTED[:2], "--nnodes", "2", *DISTRIBUTED[2:])
    assert "one machine" in messages(source(LORA, before=several).understood(4), "conflict")[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LORA.replace("lora_finetune", "lora_dpo"), "preferences"),
        (LORA.replace("torchtune.modules.loss.LinearCrossEntropyLoss", "torchtune.rlhf.loss.DPOLoss"), "preferences"),
        (LORA + "ppo_epochs: 2\n", "PPO"),
        (LORA.replace("lora_finetune_distributed", "eleuther_eval"), "evaluates"),
        (LORA.replace("optimizer:\n  _component_: torch.optim.AdamW\n", "optimizer:\n"), "no optimizer"),
    ],
)
def test_other_tasks_are_refused(text, reason):
    with pytest.raises(ConfigFileError, match=reason):
        read(text)


def test_a_dtype_that_is_none():
    with pytest.raises(ConfigFileError, match="dtype is 'fp8'"):
        read(LORA, "dtype=fp8")


def test_every_builder_makes_a_model_of_the_catalogue():
    for name, builder in builders().items():
        assert load_model(builder.id).total_params
        assert builder_of(builder.component("full")) == (builder, "")
        found, kind = builder_of(builder.component("qlora"))
        assert found == builder
        assert kind == ("lora" if builder.quantizes_by_argument else "qlora")
        assert builder_for(builder.id) == builder, name


def test_a_builder_that_is_not_known_keeps_its_name_for_the_catalogue_to_refuse():
    part = read(LORA.replace("llama3_1.lora_llama3_1_8b", "llama4.lora_llama4_scout_17b_16e"))
    assert part.fields["model"] == "meta-llama/Meta-Llama-3.1-8B-Instruct"  # the folder's name is of the catalogue
    part = read(LORA.replace("llama3_1.lora_llama3_1_8b", "mine.lora_mine"), "checkpointer.checkpoint_dir=other")
    assert part.fields["model"] == "torchtune.models.mine.lora_mine"


def test_a_folder_of_another_shape_does_not_change_the_model():
    part = read(LORA, "checkpointer.checkpoint_dir=weights/Qwen2.5-7B")
    assert part.fields["model"] == "meta-llama/Llama-3.1-8B"


PLAIN = RunConfig(
    model="Llama-3.1-8B-Instruct",
    method="qlora",
    adapter_dtype="bf16",
    precision="none",
    loss_path="chunked",
    sharding="fsdp2",
    sync_each_batch=True,
    seq_len=2048,
    accumulation=4,
    stack="torchtune",
)


def test_a_written_configuration_is_whole():
    files = rendered(torchtune.FORMAT, PLAIN, Target(per_node=4, dataset="data.json"))
    assert set(files) == {"torchtune.yaml", "launch.sh"}
    main, script = files["torchtune.yaml"], files["launch.sh"]
    assert "tune run --nnodes 1 --nproc_per_node 4 lora_finetune_distributed --config torchtune.yaml" in script
    assert "torchtune.models.llama3_1.qlora_llama3_1_8b" in main
    assert "Llama-3.1-8B-Instruct/original/tokenizer.model" in main
    assert "_component_: torchtune.models.llama3.llama3_tokenizer" in main
    assert 'max_filename: "00004"' in main or "max_filename: '00004'" in main
    assert "data_files: data.json" in main


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "Mixtral-8x7B-v0.1"}, "model"),
        ({"precision": "bf16"}, "precision"),
        ({"quantization": "fp4"}, "quantization"),
        ({"double_quantization": False}, "double_quantization"),
        ({"adapter_dtype": "fp32"}, "adapter_dtype"),
        ({"lora_targets": "q_proj,up_proj"}, "lora_targets"),
        ({"optimizer": "adafactor"}, "optimizer"),
        ({"kernels": "liger", "loss_path": "liger"}, "kernels"),
        ({"attention": "eager"}, "attention"),
        ({"sharding": "zero3"}, "sharding"),
        ({"sharding": "ddp"}, "sharding"),
        ({"offload": "optimizer"}, "offload"),
        ({"padding": True}, "padding"),
        ({"sync_each_batch": False}, "sync_each_batch"),
        ({"stack": "trl"}, "stack"),
    ],
)
def test_what_its_files_cannot_say_is_named(changes, field):
    with pytest.raises(CannotExpressError) as caught:
        rendered(torchtune.FORMAT, PLAIN.model_copy(update=changes), Target(per_node=4))
    assert field in caught.value.fields


def test_pins_are_what_the_files_say():
    config = PLAIN.model_copy(update=dict(torchtune.pins("lora")))
    assert rendered(torchtune.FORMAT, config, Target(per_node=4))
