"""A training script's literal arguments, read without running it.

Looks for calls of the libraries' argument classes and functions and takes keyword arguments whose values are literals,
or names that the module sets to a literal once. Anything else stays `unresolved`.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.reading import shown
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.units import KIB
from ftplan.verdicts import Place

DTYPES: Final = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
}
ARGUMENTS: Final = {"TrainingArguments": "transformers", "Seq2SeqTrainingArguments": "transformers", "SFTConfig": "trl"}
LORA: Final[Mapping[str, str]] = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
    "modules_to_save": "lora_modules_to_save",
}
"""peft's LoraConfig, under the names of TRL's ModelConfig."""
BITS: Final[Mapping[str, str]] = {
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
    "bnb_4bit_quant_type": "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
}
LONGEST_SCRIPT: Final = 128 * KIB
"""A syntax tree takes up to 600 times the memory of its text."""
LARGEST: Final = 10**18
"""No integer of a training comes near it."""
LOADING: Final[Mapping[str, str]] = {
    "attn_implementation": "attn_implementation",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
}


@dataclass
class Script:
    """What a script says: settings under TRL's and transformers' names, and whose trainer it uses."""

    settings: Settings = field(default_factory=Settings)
    framework: str = ""


def read_script(text: str, path: Path) -> Script:
    """The literal arguments in ``text``; raises ConfigFileError for what is no Python."""
    if len(text) > LONGEST_SCRIPT:
        message = f"{shown(path)} is no training script: it has more than {LONGEST_SCRIPT // KIB} KiB"
        raise ConfigFileError(message, file=str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a script's odd escapes are its own affair
            tree = ast.parse(text)
        found = _Reader(path, _constants(tree)).read(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", 0) or 0
        raise ConfigFileError(f"{shown(path)} is no Python that can be read", file=str(path), line=line) from error
    return found


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Names that are set once in the module, to anything."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            values.setdefault(node.target.id, []).append(node.value)
    return {name: each[0] for name, each in values.items() if len(each) == 1}


class _Reader:
    """Walks over the calls of one script."""

    def __init__(self, path: Path, constants: Mapping[str, ast.expr]) -> None:
        self.path = path
        self.constants = constants
        self.found: dict[str, Setting] = {}
        self.framework = ""
        self.known: dict[str, tuple[bool, Any]] = {}

    def read(self, tree: ast.Module) -> Script:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                self._call(node, _called(node.func))
        return Script(Settings(self.found), self.framework)

    def _call(self, node: ast.Call, name: str) -> None:
        last = name.rsplit(".", 1)[-1]
        if last in ARGUMENTS:
            self._take(node, None)
            if self.framework != "trl":
                self.framework = ARGUMENTS[last]
        elif last == "LoraConfig":
            self._take(node, LORA)
            self.found.setdefault("use_peft", Setting("use_peft", True, self._place(node)))
        elif last == "BitsAndBytesConfig":
            self._take(node, BITS)
        elif last == "prepare_model_for_kbit_training":
            self.found["prepare_kbit"] = Setting("prepare_kbit", True, self._place(node))
        elif last == "from_pretrained" and "AutoModel" in name:
            self._take(node, LOADING)
            self._model(node)
        elif last == "SFTTrainer":
            self.framework = "trl"
            for keyword in node.keywords:
                if keyword.arg == "model":
                    self._set("model_name_or_path", keyword.value, only=str)

    def _model(self, node: ast.Call) -> None:
        if node.args:
            self._set("model_name_or_path", node.args[0], only=str)
        for keyword in node.keywords:
            if keyword.arg == "pretrained_model_name_or_path":
                self._set("model_name_or_path", keyword.value, only=str)

    def _take(self, node: ast.Call, names: Mapping[str, str] | None) -> None:
        for keyword in node.keywords:
            if keyword.arg is None:
                continue  # **kwargs
            key = keyword.arg if names is None else names.get(keyword.arg)
            if key is not None:
                self._set(key, keyword.value)

    def _set(self, key: str, value: ast.expr, only: type | None = None) -> None:
        known, plain = self._literal(value)
        if only is not None and (not known or not isinstance(plain, only)):
            return
        if known:
            self.found[key] = Setting(key, plain, self._place(value))
        else:
            self.found.setdefault(key, Setting(key, None, self._place(value), ast.unparse(value)[:60]))

    def _literal(self, value: ast.expr, depth: int = 0) -> tuple[bool, Any]:
        if isinstance(value, ast.Name) and value.id in self.constants and depth < 4:
            if value.id not in self.known:
                self.known[value.id] = self._literal(self.constants[value.id], depth + 1)
            return self.known[value.id]
        if isinstance(value, ast.Attribute) and _called(value).startswith("torch.") and value.attr in DTYPES:
            return True, DTYPES[value.attr]
        try:
            plain = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError):
            return False, None
        if isinstance(plain, tuple | set):
            plain = (
                sorted(plain)
                if isinstance(plain, set) and all(isinstance(each, str) for each in plain)
                else list(plain)
            )
        return isinstance(plain, str | int | float | bool | list | dict | None) and _is_usual(plain), plain

    def _place(self, node: ast.AST) -> Place:
        return Place(shown(self.path), getattr(node, "lineno", 0))


def _is_usual(value: Any) -> bool:
    """Whether a literal can be printed and compared: 0xfff... may have as many digits as the file."""
    if isinstance(value, list | dict):
        return all(_is_usual(each) for each in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or abs(value) < LARGEST


def _called(function: ast.expr) -> str:
    """A dotted name such as ``transformers.TrainingArguments``; empty for anything else."""
    parts = list(_dotted(function))
    return ".".join(reversed(parts))


def _dotted(node: ast.expr) -> Iterator[str]:
    while isinstance(node, ast.Attribute):
        yield node.attr
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id
