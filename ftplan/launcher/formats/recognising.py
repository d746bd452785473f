"""Whose configuration a file or a command line is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ftplan.launcher.formats.launch import Launch
from ftplan.profiles.frameworks import load_vocabulary

_Sign = Callable[[Mapping[str, Any]], bool]


def _has(*keys: str) -> _Sign:
    return lambda data: any(key in data for key in keys)


def _components(data: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) and "_component_" in value for value in data.values())


SIGNS: Final[tuple[tuple[str, _Sign], ...]] = (
    ("plan", lambda data: "request" in data and "search" in data),
    ("ftplan", lambda data: "micro_batch" in data and "model" in data and ("sharding" in data or "method" in data)),
    ("torchtune", _components),
    ("accelerate", _has("distributed_type", "compute_environment")),
    ("deepspeed", _has("zero_optimization", "train_micro_batch_size_per_gpu")),
    ("llamafactory-v1", lambda data: "model" in data and ("dist_config" in data or "model_class" in data)),
    ("axolotl", _has("base_model")),
    (
        "llamafactory",
        lambda data: (
            "model_name_or_path" in data
            and _has("finetuning_type", "stage", "template", "cutoff_len", "dataset_dir", "quantization_bit")(data)
        ),
    ),
    (
        "swift",
        lambda data: "model" in data and _has("tuner_type", "train_type", "quant_bits", "attn_impl", "sft_type")(data),
    ),
    (
        "trl",
        lambda data: (
            "model_name_or_path" in data
            and _has("use_peft", "max_length", "max_seq_length", "dataset_name", "load_in_4bit", "lora_r", "packing")(
                data
            )
        ),
    ),
    ("transformers", _has("per_device_train_batch_size", "output_dir", "gradient_accumulation_steps")),
)
"""What a framework's own file has and another's has not, the most particular first."""

PROGRAMS: Final[Mapping[str, str]] = {
    "llamafactory-cli": "llamafactory",
    "lmf": "llamafactory",
    "train_bash.py": "llamafactory",
    "llamafactory.cli": "llamafactory",
    "llamafactory.launcher": "llamafactory",
    "axolotl": "axolotl",
    "axolotl.cli.train": "axolotl",
    "swift": "swift",
    "swift.cli.sft": "swift",
    "swift.cli.pt": "swift",
    "trl": "trl",
    "sft.py": "trl",
    "trl.scripts.sft": "trl",
    "tune run": "torchtune",
    "finetuning.py": "cookbook",
    "llama_finetuning.py": "cookbook",
    "llama_recipes.finetuning": "cookbook",
    "llama_cookbook.finetuning": "cookbook",
}
BY_ARGUMENTS: Final = ("llamafactory", "cookbook", "trl", "swift", "transformers")
"""Frameworks that scripts of other names are tried for, by how many of the arguments are theirs."""
TRAINING_KEYS: Final = frozenset(
    {
        *(
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "learning_rate",
            "num_train_epochs",
            "max_steps",
        ),
        *("batch_size_training", "num_epochs", "lr", "per_gpu_train_batch_size", "use_peft", "enable_fsdp"),
    }
)
"""Arguments of which a training has at least one."""
MOST_STRANGERS: Final = 0.25
"""Part of a command's arguments that a framework may not know and still be the one."""


def framework_of(data: Mapping[str, Any]) -> str:
    """The framework whose file holds ``data``, empty if it is nobody's."""
    return next((name for name, sign in SIGNS if sign(data)), "")


def framework_of_launch(launch: Launch, keys: frozenset[str]) -> str:
    """The framework that ``launch`` starts, by the program's name or its arguments; empty if it is none."""
    if launch.program in PROGRAMS:
        return PROGRAMS[launch.program]
    name = launch.program.rsplit("/", 1)[-1]
    if "llamafactory" in launch.program and name in ("launcher.py", "cli.py"):
        return "llamafactory"
    if "swift/cli/" in launch.program:
        return "swift" if name in ("sft.py", "pt.py", "main.py") else ""
    if name in PROGRAMS:
        return PROGRAMS[name]
    if not keys & TRAINING_KEYS:
        return ""
    strangers = {each: sum(key not in load_vocabulary(each) for key in keys) / len(keys) for each in BY_ARGUMENTS}
    best = min(BY_ARGUMENTS, key=strangers.__getitem__)
    return best if strangers[best] <= MOST_STRANGERS else ""
