from pathlib import Path

import pytest

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.python_source import LONGEST_SCRIPT, read_script


def read(text):
    found = read_script(text, Path("train.py"))
    return {key: each.value for key, each in found.settings.items()}, found


SCRIPT = """
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments
MODEL: str = "Qwen/Qwen2.5-7B"
BATCH = 4
quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=quant, torch_dtype=torch.bfloat16)
model = peft.prepare_model_for_kbit_training(model)
peft_config = LoraConfig(r=16, lora_alpha=32, target_modules=("q_proj", "v_proj"), bias="none")


def main(args):
    training = transformers.TrainingArguments(
        output_dir="out",
        per_device_train_batch_size=BATCH,
        learning_rate=2e-4,
        bf16=True,
        warmup_steps=args.warmup,
        **extra,
    )
"""


def test_a_script_of_one_s_own():
    values, found = read(SCRIPT)
    assert values == {
        "lora_dropout": 0.0,
        "use_bnb_nested_quant": False,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "model_name_or_path": "Qwen/Qwen2.5-7B",
        "dtype": "bfloat16",
        "prepare_kbit": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_modules": ["q_proj", "v_proj"],
        "use_peft": True,
        "output_dir": "out",
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-4,
        "bf16": True,
        "warmup_steps": None,
        "TrainingArguments(**extra)": None,
    }
    assert found.framework == "transformers"
    assert found.settings["warmup_steps"].unresolved == "args.warmup"
    assert str(found.settings.place("bf16")) == "train.py:17"


def test_trl_s_trainer():
    values, found = read("SFTTrainer(model='gpt2', args=SFTConfig(packing=True, max_length=1024))")
    assert values == {"model_name_or_path": "gpt2", "packing": True, "max_length": 1024}
    assert found.framework == "trl"


@pytest.mark.parametrize(
    "text", ["A = 1\nA = 2\nSFTConfig(x=A)", "SFTConfig(x=A)", "SFTConfig(x=f())", "SFTConfig(x=1 if y else 2)"]
)
def test_what_is_no_literal_stays_open(text):
    values, found = read(text)
    assert values == {"x": None}
    assert found.settings["x"].unresolved


@pytest.mark.parametrize("text", ["A = B\nB = A\nSFTConfig(x=A)", "A = A\nSFTConfig(x=A)"])
def test_names_in_a_circle(text):
    assert read(text)[0] == {"x": None}


@pytest.mark.parametrize(
    ("spelled", "value"),
    [
        ("-1", -1),
        ("{'b', 'a'}", ["a", "b"]),
        ("(1, 2)", [1, 2]),
        ("None", None),
        ("{'a': [1]}", {"a": [1]}),
        ("'a' 'b'", "ab"),
        ("torch.float16", "float16"),
    ],
)
def test_literals(spelled, value):
    assert read(f"SFTConfig(x={spelled})")[0] == {"x": value}


@pytest.mark.parametrize(
    "spelled", ["b'x'", "1j", "...", "0x" + "f" * 100, "[10**3]", "[0x" + "f" * 100 + "]", "x" + ".a" * 50]
)
def test_values_that_no_configuration_has(spelled):
    _, found = read(f"SFTConfig(x={spelled})")
    assert found.settings["x"].unresolved


@pytest.mark.parametrize(
    "text",
    [
        "def",
        "x = (",
        "(" * 100_000,
        "-" * 100_000 + "1",
        "1+" * 50_000 + "1",
        "x" + ".a" * 60_000,
        "x = '\0'",
        "SFTConfig(x=0x" + "f" * 100_000 + ")",
        "x = " + "9" * 5000,
        "#" * (LONGEST_SCRIPT + 1),
        "\ud800",
        "".join(" " * depth + "if 1:\n" for depth in range(200)),
    ],
)
def test_what_cannot_be_read(text):
    with pytest.raises(ConfigFileError):
        read(text)


def test_a_constant_is_read_once():
    """It took a second for each hundred uses."""
    values, _ = read("A = [" + "1," * 20_000 + "]\n" + "SFTConfig(a=A)\n" * 5_000)
    assert len(values["a"]) == 20_000


def test_nothing_is_executed(tmp_path):
    canary = tmp_path / "canary"
    read(f"__import__('os').system('touch {canary}')\nTrainingArguments(x=open({str(canary)!r}, 'w'))")
    assert not canary.exists()


def test_warnings_of_a_script_are_its_own():
    assert read("SFTConfig(x='\\d')\nassert (1, 2)")[0] == {"x": "\\d"}
