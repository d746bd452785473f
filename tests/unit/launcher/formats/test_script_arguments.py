import textwrap

import pytest

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.python_source import read_script
from ftplan.launcher.formats.sources import opened


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def script(folder, text):
    path = folder / "train.py"
    path.write_text(textwrap.dedent(text), "utf-8")
    return read_script(path.read_text("utf-8"), path)


def values(found):
    return {key: each.value for key, each in found.settings.items() if not each.unresolved}


QLORA = """
    import torch
    name = "Qwen/Qwen2.5-7B"
    more = dict(max_length=2048, packing=True)
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        name, quantization_config=bits, torch_dtype=torch.bfloat16, **{"attn_implementation": "eager"}
    )
    args = SFTConfig(f"out-{name}", per_device_train_batch_size=2, **more, **{"gradient_accumulation_steps": 4})
    adapters = LoraConfig(r=32, target_modules=["q_proj", "v_proj"])
    trainer = SFTTrainer(model=model, args=args, peft_config=adapters)
"""


def test_literals_names_and_unpacked_mappings(folder):
    found = values(script(folder, QLORA))
    assert found["model_name_or_path"] == "Qwen/Qwen2.5-7B"
    assert (found["max_length"], found["packing"], found["gradient_accumulation_steps"]) == (2048, True, 4)
    assert (found["attn_implementation"], found["dtype"]) == ("eager", "bfloat16")
    assert (found["lora_r"], found["lora_target_modules"]) == (32, ["q_proj", "v_proj"])


def test_what_peft_and_bitsandbytes_take_where_a_script_says_nothing(folder):
    found = values(script(folder, "LoraConfig()\nBitsAndBytesConfig(load_in_4bit=True)\nSFTConfig()"))
    assert (found["use_peft"], found["lora_r"], found["lora_alpha"], found["lora_dropout"]) == (True, 8, 8, 0.0)
    assert (found["bnb_4bit_quant_type"], found["use_bnb_nested_quant"]) == ("fp4", False)


def test_a_script_is_a_configuration(folder):
    script(folder, QLORA)
    source = opened(["train.py"], Files())
    fields = source.understood(1).fields
    assert source.format.name == "trl"
    assert (fields["method"], fields["quantization"], fields["weights_dtype"]) == ("qlora", "nf4", "bf16")
    assert (fields["seq_len"], fields["packing"], fields["lora_alpha"]) == (2048, True, 8)


def test_what_cannot_be_told_stays_unresolved(folder):
    found = script(folder, "SFTConfig(output_dir=f'x{1}', max_length=find(), learning_rate=2 * rate)").settings
    assert {key for key, each in found.items() if each.unresolved} == {"output_dir", "max_length", "learning_rate"}


def test_only_what_costs_memory_is_worth_a_warning(folder):
    script(folder, "SFTConfig(output_dir=where(), max_length=find())")
    problems = {each.key: each for each in opened(["train.py"], Files()).understood(1).problems}
    assert problems["max_length"].may_need_more
    assert not problems["output_dir"].may_need_more


def test_items_of_a_mapping_that_cannot_be_told_are_named(folder):
    found = script(folder, "SFTConfig(model_init_kwargs=dict(dtype=pick(), use_cache=False))").settings
    assert found["model_init_kwargs"].value == {"use_cache": False}
    assert found["model_init_kwargs.dtype"].unresolved == "pick()"


def test_a_model_that_is_loaded_by_the_script_has_the_checkpoints_dtype(folder):
    found = values(script(folder, """
        model = LlamaForCausalLM.from_pretrained("m")
        SFTConfig(model_init_kwargs={"dtype": "float16"})
    """))  # fmt: skip
    assert found["dtype"] == "auto"
    assert "model_init_kwargs" not in found


ARGPARSE = """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-id", default="m")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--length", type=int)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model_id)
    SFTTrainer(model, SFTConfig(packing=args.packed, max_length=args.length), peft_config=LoraConfig(r=args.rank))
"""


def test_a_scripts_own_arguments_have_defaults(folder):
    found = script(folder, ARGPARSE)
    assert values(found)["lora_r"] == 64
    assert values(found)["model_name_or_path"] == "m"
    assert values(found)["packing"] is False
    assert found.settings["max_length"].unresolved == "args.length"


def test_a_command_takes_the_place_of_them(folder):
    script(folder, ARGPARSE)
    words = ["python", "train.py", "--rank", "8", "--model_id", "other", "--length", "99", "--packed"]
    part = opened(words, Files()).understood(1)
    assert (part.fields["lora_rank"], part.fields["model"], part.fields["seq_len"]) == (8, "other", 99)
    assert part.fields["packing"]
    assert not [each for each in part.problems if each.kind in ("unknown-key", "unresolved")]


def test_fields_of_a_scripts_own_dataclass(folder):
    found = script(folder, """
        @dataclass
        class Mine:
            model: str = field(default="m", metadata={})
            rank: int = 4
        mine, training = HfArgumentParser((Mine, TrainingArguments)).parse_args_into_dataclasses()
        model = AutoModelForCausalLM.from_pretrained(mine.model)
        LoraConfig(r=mine.rank)
    """)  # fmt: skip
    assert found.framework == "transformers"
    assert (values(found)["model_name_or_path"], values(found)["lora_r"]) == ("m", 4)


PARSED = """
    script, training, model = TrlParser((ScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config()
    dtype = model.dtype if model.dtype in ["auto", None] else getattr(torch, model.dtype)
    training.model_init_kwargs = dict(dtype=dtype)
    loaded = AutoModelForCausalLM.from_pretrained(model.model_name_or_path, dtype=dtype)
    SFTTrainer(model=loaded, args=training, peft_config=get_peft_config(model))
"""


def test_what_a_parsers_classes_say_is_their_default_or_the_commands(folder):
    script(folder, PARSED)
    fields = opened(["train.py"], Files()).understood(1).fields
    assert (fields["weights_dtype"], fields["method"]) == ("fp32", "full")
    words = ["accelerate", "launch", "train.py", "--dtype", "bfloat16", "--use_peft", "--lora_r", "4"]
    fields = opened(words, Files()).understood(1).fields
    assert (fields["weights_dtype"], fields["method"], fields["lora_rank"]) == ("bf16", "lora", 4)


def test_the_trainer_with_adapters(folder):
    script(folder, """
        model = AutoModelForCausalLM.from_pretrained("m", load_in_4bit=True, dtype="bfloat16")
        model = prepare_model_for_kbit_training(model)
        model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
        args = TrainingArguments("out", per_device_train_batch_size=1, fp16=True, optim="paged_adamw_8bit")
        Trainer(model=model, args=args)
    """)  # fmt: skip
    source = opened(["train.py"], Files())
    part = source.understood(1)
    assert source.format.name == "transformers"
    assert (part.fields["method"], part.fields["quantization"], part.fields["prepare_kbit"]) == ("qlora", "fp4", True)
    assert (part.fields["precision"], part.fields["stack"], part.fields["loss_path"]) == ("fp16", "trainer", "full")
    assert not [each for each in part.problems if each.kind == "unknown-key"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("DPOTrainer(model='m', args=DPOConfig())", "trains by DPOTrainer, which is no supervised fine-tuning"),
        ("model = AutoModelForCausalLM.from_pretrained('m')", "by a loop of its own, or not at all"),
        ("def f(:\n", "no Python that can be read"),
    ],
)
def test_scripts_that_train_otherwise_are_refused_by_name(folder, text, reason):
    (folder / "train.py").write_text(text, "utf-8")
    with pytest.raises(ConfigFileError, match=reason):
        opened(["train.py"], Files())


def test_a_script_beside_the_training_is_passed_over(folder):
    (folder / "data.py").write_text("import os\n", "utf-8")
    script(folder, QLORA)
    (folder / "run.sh").write_text('python data.py\npython train.py "$@"\n', "utf-8")
    assert opened(["run.sh"], Files()).understood(1).fields["lora_rank"] == 32


def test_nothing_is_executed(folder):
    script(folder, "open('made', 'w')\nSFTConfig(max_length=__import__('os').getpid(), packing=eval('True'))")
    assert opened(["train.py"], Files()).understood(1).fields["packing"] is False
    assert not (folder / "made").exists()


def test_names_that_refer_to_one_another_have_an_end(folder):
    found = script(folder, "a = b\nb = a\nc = dict(**d)\nd = dict(**c)\nSFTConfig(max_length=a, **c, **{**d})")
    assert found.settings["max_length"].unresolved
