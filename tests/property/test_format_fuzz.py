"""Readers of other tools' files on anything at all: a value or an `FtplanError`, and nothing else."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftplan import cli
from ftplan.errors import FtplanError
from ftplan.launcher.formats.arguments import argument_settings, plain_value
from ftplan.launcher.formats.document import parse_document
from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.json_text import without_comments
from ftplan.launcher.formats.launch import launches, taken_apart
from ftplan.launcher.formats.python_source import read_script
from ftplan.launcher.formats.sources import opened
from ftplan.launcher.formats.words import as_command, commands
from ftplan.profiles.frameworks import load_vocabulary

TRAIN = {
    "model_name_or_path": "gpt2",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_target": "all",
    "lora_dropout": 0.05,
    "quantization_bit": 4,
    "quantization_method": "bnb",
    "double_quantization": True,
    "cutoff_len": 64,
    "packing": False,
    "neat_packing": False,
    "flash_attn": "auto",
    "enable_liger_kernel": False,
    "disable_gradient_checkpointing": False,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-4,
    "optim": "adamw_torch",
    "bf16": True,
    "fp16": False,
    "pure_bf16": False,
    "eval_strategy": "steps",
    "val_size": 0.1,
    "deepspeed": None,
    "fsdp": "",
    "fsdp_config": {},
    "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    "output_dir": "out",
}
YAML = yaml.safe_dump(TRAIN)
JSON = json.dumps(
    {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": "auto"}}
)
SHELL = """export A=1 B='x y'
CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node ${A:-2} train.py --lr 1e-4 --x "$(nproc)" \\
  --bf16 True > log 2>&1 &
cat <<EOF
text
EOF
srun -N 2 accelerate launch --config_file a.yaml -m pkg.train a=b | tee log
"""
PYTHON = """A = 5
args = TrainingArguments(per_device_train_batch_size=A, bf16=True, learning_rate=2e-4, **extra)
model = AutoModelForCausalLM.from_pretrained("gpt2", torch_dtype=torch.bfloat16)
peft = LoraConfig(r=8, target_modules=["q_proj", *more])
"""
PIECES = [
    *(
        "[",
        "]",
        "{",
        "}",
        ":",
        ": ",
        ",",
        "\n",
        " ",
        "- ",
        "#",
        "&a ",
        "*a",
        "<<: *a\n",
        "!!int ",
        "!x ",
        "|\n ",
        "? ",
        "%",
        "---\n",
    ),
    *(
        "'",
        '"',
        "\\",
        "//",
        "/*",
        "*/",
        "$(",
        ")",
        "`",
        "${",
        "${A:-",
        "}",
        "<<EOF\n",
        ">",
        "&&",
        ";",
        "=",
        "--",
        "@",
        "(",
        "\t",
    ),
    *(
        "0x",
        "1e999",
        "1:1",
        ".inf",
        ".nan",
        "~",
        "true",
        "\0",
        "\x1b",
        "\x85",
        "\u2028",
        "\ufeff",
        "𝔘",
        "\udcff",
        "9" * 50,
        "-1",
    ),
]


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """A valid text with some of it cut out, repeated, or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 20)))
        put = draw(st.sampled_from(PIECES) | st.text(max_size=5) | st.just(text[start:end] * 2))
        text = text[:start] + put + text[end:]
    return text


def texts(valid: str) -> st.SearchStrategy[str]:
    return st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | mutated(valid)


@settings(max_examples=300)
@given(texts(YAML))
def test_yaml(text):
    with contextlib.suppress(FtplanError):
        parse_document(text, Path("a.yaml"))


@settings(max_examples=300)
@given(texts(JSON))
def test_json(text):
    assert len(without_comments(text)) == len(text)
    with contextlib.suppress(FtplanError):
        parse_document(text, Path("a.json"))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**60), 10**60) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(max_codepoint=0xD7FF, min_codepoint=32), max_size=5), JSON_VALUES))
def test_json_is_read_as_python_reads_it(data):
    """But for what YAML cannot hold: control characters, and pairs of surrogates spelled out."""
    text = json.dumps(data, ensure_ascii=False)
    try:
        found = parse_document(text, Path("a.json")).data
    except FtplanError:
        assert not text.isprintable() or any(len(number) > 50 for number in text.split())
        return
    assert json.dumps(found, sort_keys=True) == json.dumps(data, sort_keys=True)


@settings(max_examples=300)
@given(texts(SHELL))
def test_shell(text):
    with contextlib.suppress(FtplanError):
        for command in commands(text):
            for word in command.words:
                assert 0 <= word.start <= word.end <= len(text)
                assert 0 < word.line <= text.count("\n") + 1
    with contextlib.suppress(FtplanError):
        for launch in launches(commands(text), "run.sh"):
            argument_settings(launch.arguments, launch.script)


@given(st.lists(st.sampled_from([*SHELL.split(), *PIECES]) | st.text(max_size=10), max_size=12))
def test_command_lines(words):
    with contextlib.suppress(FtplanError):
        launch = taken_apart(as_command(words))
        argument_settings(launch.arguments)


@given(st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_plain_values(text):
    str(plain_value(text))


@settings(max_examples=200)
@given(texts(PYTHON))
def test_python(text):
    with contextlib.suppress(FtplanError):
        read_script(text, Path("train.py"))


@pytest.mark.parametrize(("name", "valid"), [("a.yaml", YAML), ("a.json", JSON), ("a.sh", SHELL), ("a.py", PYTHON)])
def test_files_on_disk(name, valid):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name

        @settings(max_examples=100)
        @given(texts(valid) | st.binary(max_size=60))
        def check(content):
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
            with contextlib.suppress(FtplanError):
                opened([str(path)], Files()).understood(2)

        check()


ODD = st.sampled_from(
    [
        "",
        "auto",
        "none",
        "x" * 5000,
        "a\nb",
        "\x1b[31m",
        "../../etc/passwd",
        "/dev/zero",
        0,
        -1,
        1,
        3,
        10**12,
        10**18,
        10**60,
    ]
)


BASES = {
    "llamafactory": TRAIN,
    "axolotl": {"base_model": "gpt2", "adapter": "lora", "lora_r": 8, "sequence_len": 64, "micro_batch_size": 1},
    "trl": {"model_name_or_path": "gpt2", "dataset_name": "x", "use_peft": True, "max_length": 64, "bf16": True},
    "swift": {"model": "gpt2", "tuner_type": "lora", "max_length": 64, "torch_dtype": "bfloat16"},
    "transformers": {"model_name_or_path": "gpt2", "output_dir": "x", "per_device_train_batch_size": 1},
    "torchtune": {
        "model": {"_component_": "torchtune.models.llama3_2.lora_llama3_2_1b", "lora_attn_modules": ["q_proj"]},
        "tokenizer": {"_component_": "torchtune.models.llama3.llama3_tokenizer", "max_seq_len": 64},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4},
        "batch_size": 1,
        "dtype": "bf16",
    },
    "accelerate": {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 2}},
    "deepspeed": {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}},
}


@pytest.mark.parametrize("framework", BASES)
def test_check_answers_whatever_a_configuration_holds(tmp_path, capsys, framework):
    base = BASES[framework]
    keys = st.sampled_from(list(base)) | st.sampled_from(sorted(load_vocabulary(framework).defaults))
    path = tmp_path / "train.yaml"

    @settings(max_examples=25 if framework == "llamafactory" else 10, suppress_health_check=[HealthCheck.too_slow])
    @given(st.dictionaries(keys, JSON_VALUES | ODD, min_size=1, max_size=3), st.booleans())
    def check(changes, as_json):
        path.write_text(json.dumps({**base, **changes}), encoding="utf-8")
        given_model = [] if "gpt2" in base.values() else ["--model", "gpt2"]
        code = cli.run(["check", str(path), "--gpus", "2x24GB", *given_model, *(["--json"] if as_json else [])])
        answer = capsys.readouterr()
        assert code in (0, 1, 2)
        assert "Traceback" not in answer.out + answer.err
        assert "\x1b" not in answer.out + answer.err
        assert answer.err.startswith("error:") == (code == 2)
        if as_json and code != 2:
            json.loads(answer.out)

    check()
