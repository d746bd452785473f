"""Coverage-guided fuzzing of the readers of other tools' files: nothing but an FtplanError may leave them.

Needs atheris, which the project does not depend on::

    python -m venv /tmp/atheris && /tmp/atheris/bin/pip install atheris pydantic pyyaml
    PYTHONPATH=. /tmp/atheris/bin/python benchmarks/fuzz_formats.py document -max_total_time=300 CORPUS_FOLDER

The first argument is an entry point of `TARGETS`, what follows is libFuzzer's. Findings do not stop it: each kind is
written once to ``fuzz-findings/`` with its traceback, and so is an input that takes longer than `SLOW_SECONDS`.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["ftplan.launcher.formats", "yaml"]):
    from ftplan.errors import FtplanError
    from ftplan.launcher.formats.arguments import argument_settings
    from ftplan.launcher.formats.document import parse_document
    from ftplan.launcher.formats.files import Files
    from ftplan.launcher.formats.launch import launches
    from ftplan.launcher.formats.python_source import read_script
    from ftplan.launcher.formats.sources import opened
    from ftplan.launcher.formats.words import commands

SLOW_SECONDS: Final = 2.0
FINDINGS: Final = Path("fuzz-findings")
SUFFIXES: Final = (".yaml", ".json", ".sh", ".py")
SEEDS: Final = {
    "document": (
        "Ya: 1\nb: &x [1, 2.5, yes]\nc: {d: *x, <<: {e: ~}}\nf: |\n  text\n# end\n",
        'J{"a": {"b": [1, 2e5, true, null, "x"]}, // c\n "d": "auto", /* e */ }\n',
        "Ymodel_name_or_path: Qwen/Qwen2.5-7B\nfinetuning_type: lora\ncutoff_len: 2_048\nbf16: true\n",
    ),
    "commands": (
        "export A=1 B='x y'\nC=${A:-2} torchrun --nproc_per_node $A train.py --lr 1 \\\n --bf16 True > log 2>&1 &\n",
        "cat <<EOF\ntext\nEOF\nCUDA_VISIBLE_DEVICES=0,1 accelerate launch --config_file a.yaml t.py --x=$(n) | tee\n",
        'deepspeed --include localhost:0,1 train.py --deepspeed "ds.json" `which x` && srun -N 2 env A=1 python -m m\n',
    ),
    "script": (
        "A = 5\nargs = TrainingArguments(per_device_train_batch_size=A, bf16=True, deepspeed='d.json')\n"
        "m = AutoModelForCausalLM.from_pretrained('Qwen/Qwen2.5-7B', torch_dtype=torch.bfloat16)\n",
        "p = LoraConfig(r=8, target_modules=['q_proj'])\nSFTTrainer(model='gpt2', args=SFTConfig(packing=True, **k))\n",
    ),
    "opened": (
        "\0model_name_or_path: gpt2\nfinetuning_type: lora\nstage: sft\ndo_train: true\ndeepspeed: input.json\n",
        '\1{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": "auto"}}',
        "\2llamafactory-cli train --model_name_or_path gpt2 --do_train --stage sft --lora_rank 8\nbash input.sh\n",
        "\3args = TrainingArguments(per_device_train_batch_size=2, bf16=True)\n",
    ),
}

TOKENS: Final = (
    *(
        "<<: ",
        "*x",
        "&x ",
        "!!int ",
        "!!float ",
        "!!bool ",
        "!!python/name:os.system ",
        "? ",
        "- ",
        ": ",
        "|\n",
        ">-\n",
    ),
    *("%TAG ! x\n", "---\n", "...\n", "{a: 1}", "0x1f", "1:30", "1e999", ".nan", "~", "2001-01-01", "/*", "*/", "//"),
    *(
        "${A:-",
        "${A}",
        "$(",
        "`",
        "<<E\n",
        "2>&1",
        "&&",
        "export ",
        "declare ",
        "env ",
        "srun ",
        "bash -c ",
        "python -m ",
    ),
    *("torch.distributed.run ", "--nproc_per_node=", "--include localhost:", "accelerate launch ", "--config_file "),
    *(
        "TrainingArguments(",
        "LoraConfig(",
        "SFTConfig(",
        "BitsAndBytesConfig(",
        "**{",
        "lambda: ",
        "f'{",
        "torch.bfloat16",
    ),
    *("llamafactory-cli train ", "input.sh", "input.yaml", "input.json", "input.py", "deepspeed: ", "fsdp_config: "),
    *(
        "per_device_train_batch_size: ",
        "quantization_bit: ",
        "distributed_type: ",
        "zero_optimization: ",
        "lora_target: ",
    ),
)
"""What random bytes rarely spell: libFuzzer's dictionary."""


def read_document(data: bytes) -> None:
    """The first byte chooses between YAML and JSON."""
    name = "input.json" if data[:1] == b"J" else "input.yaml"
    parse_document(data[1:].decode(errors="replace"), Path(name))


def read_commands(data: bytes) -> None:
    """Shell text as commands, each taken apart, with its arguments."""
    for launch in launches(commands(data.decode(errors="replace")), "input.sh"):
        argument_settings(launch.arguments, launch.script)


def read_python(data: bytes) -> None:
    """A training script."""
    read_script(data.decode(errors="replace"), Path("input.py"))


def open_file(data: bytes) -> None:
    """A file on disk, of a kind that the first byte chooses, to the fields that it says."""
    path = _FOLDER / f"input{SUFFIXES[data[0] % len(SUFFIXES)]}" if data else _FOLDER / "input.yaml"
    path.write_bytes(data[1:])
    opened([str(path)], Files()).understood(2)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "document": read_document,
    "commands": read_commands,
    "script": read_python,
    "opened": open_file,
}
_FOLDER: Final = Path(tempfile.mkdtemp(prefix="ftplan-fuzz-"))


class Watch:
    """Runs a target; counts what it answers, and keeps the first input of each kind of failure."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.target = TARGETS[name]
        self.known: set[str] = set()

    def __call__(self, data: bytes) -> None:
        """One input."""
        started = time.process_time()
        try:
            self.target(data)
        except FtplanError:
            pass
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            self.found(
                f"{type(error).__name__}-{Path(frame.filename).stem}-{frame.lineno}", data, traceback.format_exc()
            )
        if time.process_time() - started > SLOW_SECONDS:
            self.found("slow", data, f"{time.process_time() - started:.1f} s")

    def found(self, kind: str, data: bytes, told: str) -> None:
        """Write an input and what it did, the first time."""
        if kind in self.known:
            return
        self.known.add(kind)
        FINDINGS.mkdir(exist_ok=True)
        (FINDINGS / f"{self.name}-{kind}").write_bytes(data)
        (FINDINGS / f"{self.name}-{kind}.txt").write_text(told, encoding="utf-8")
        print(f"FINDING {self.name}: {kind}", file=sys.stderr, flush=True)


def main() -> None:
    name, *rest = sys.argv[1:]
    for folder in (Path(each) for each in rest if not each.startswith("-")):
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS[name]):
            (folder / f"seed-{number}").write_bytes(seed.encode())
    words = _FOLDER / "words.dict"
    spelled = ("".join(f"\\x{byte:02x}" for byte in token.encode()) for token in TOKENS)
    words.write_text("".join(f'"{token}"\n' for token in spelled), encoding="utf-8")
    atheris.Setup([sys.argv[0], f"-dict={words}", *rest], Watch(name))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
