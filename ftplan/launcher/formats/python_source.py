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
WITHOUT_LORA_ARGUMENTS: Final[Mapping[str, Any]] = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
"""LoraConfig's own defaults (peft 0.21), which are not ModelConfig's."""
WITHOUT_BITS_ARGUMENTS: Final[Mapping[str, Any]] = {"bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": False}
"""BitsAndBytesConfig's (transformers 5.23 utils/quantization_config.py)."""
LOADING: Final[Mapping[str, str]] = {
    "attn_implementation": "attn_implementation",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
}


MODEL_CLASSES: Final = ("ForCausalLM", "ForConditionalGeneration", "ForImageTextToText")
DEEPEST: Final = 4
"""How many names or mappings within one another are followed."""


@dataclass
class Script:
    """What a script says: settings under TRL's and transformers' names, and whose trainer it uses."""

    settings: Settings = field(default_factory=Settings)
    framework: str = ""


def read_script(text: str, path: Path) -> Script:
    """The literal arguments in ``text``; raises ConfigFileError for what is no Python."""
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
        self.loads = False

    def read(self, tree: ast.Module) -> Script:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                self._call(node, _called(node.func))
        if self.loads:
            self.found = {key: each for key, each in self.found.items() if not key.startswith("model_init_kwargs")}
        return Script(Settings(self.found), self.framework)

    def _call(self, node: ast.Call, name: str) -> None:
        last = name.rsplit(".", 1)[-1]
        if last in ARGUMENTS:
            self._take(node, None)
            if self.framework != "trl":
                self.framework = ARGUMENTS[last]
        elif last == "LoraConfig":
            self._take(node, LORA)
            self._fill(node, {"use_peft": True, **WITHOUT_LORA_ARGUMENTS})
        elif last == "BitsAndBytesConfig":
            self._take(node, BITS)
            self._fill(node, WITHOUT_BITS_ARGUMENTS)
        elif last == "prepare_model_for_kbit_training":
            self.found["prepare_kbit"] = Setting("prepare_kbit", True, self._place(node))
        elif last == "from_pretrained" and _loads_model(name):
            self._loaded(node)
        elif last == "SFTTrainer":
            self.framework = "trl"
            for keyword in node.keywords:
                if keyword.arg == "model":
                    self._set("model_name_or_path", keyword.value, only=str)

    def _loaded(self, node: ast.Call) -> None:
        """A model that the script loads itself: then the trainer's own arguments for that are not used."""
        self.loads = True
        self._take(node, LOADING)
        self._fill(node, {"dtype": "auto"})
        if any(name in ("load_in_4bit", "load_in_8bit") for name, _ in self._keywords(node)):
            self._fill(node, WITHOUT_BITS_ARGUMENTS)
        self._model(node)

    def _fill(self, node: ast.Call, defaults: Mapping[str, Any]) -> None:
        """What ``node`` does not say, as its class has it."""
        for key, value in defaults.items():
            self.found.setdefault(key, Setting(key, value, self._place(node)))

    def _model(self, node: ast.Call) -> None:
        if node.args:
            self._set("model_name_or_path", node.args[0], only=str)
        for keyword in node.keywords:
            if keyword.arg == "pretrained_model_name_or_path":
                self._set("model_name_or_path", keyword.value, only=str)

    def _take(self, node: ast.Call, names: Mapping[str, str] | None) -> None:
        for name, value in self._keywords(node):
            key = name if names is None else names.get(name)
            if key is not None:
                self._set(key, value)

    def _keywords(self, node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
        """Keyword arguments, those unpacked from a literal mapping among them."""
        for keyword in node.keywords:
            if keyword.arg is not None:
                yield keyword.arg, keyword.value
            else:
                yield from self._items(keyword.value)

    def _items(self, value: ast.expr, depth: int = 0) -> Iterator[tuple[str, ast.expr]]:
        """The items of ``{...}`` or ``dict(...)``, or of a name that is set to one once."""
        if isinstance(value, ast.Name) and value.id in self.constants and depth < DEEPEST:
            yield from self._items(self.constants[value.id], depth + 1)
        elif isinstance(value, ast.Dict) and depth < DEEPEST:
            for key, item in zip(value.keys, value.values, strict=True):
                if key is None:
                    yield from self._items(item, depth + 1)
                elif isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, item
        elif isinstance(value, ast.Call) and _called(value.func) == "dict" and depth < DEEPEST:
            for keyword in value.keywords:
                if keyword.arg is not None:
                    yield keyword.arg, keyword.value
                else:
                    yield from self._items(keyword.value, depth + 1)

    def _set(self, key: str, value: ast.expr, only: type | None = None) -> None:
        known, plain = self._literal(value)
        if only is not None and (not known or not isinstance(plain, only)):
            return
        if known:
            self.found[key] = Setting(key, plain, self._place(value))
            if isinstance(plain, dict):
                self._unknown_items(key, value)
        else:
            self.found.setdefault(key, Setting(key, None, self._place(value), ast.unparse(value)[:60]))

    def _unknown_items(self, key: str, value: ast.expr) -> None:
        for name, item in self._items(value):
            if not self._literal(item)[0]:
                told = Setting(f"{key}.{name}", None, self._place(item), ast.unparse(item)[:60])
                self.found.setdefault(told.key, told)

    def _literal(self, value: ast.expr, depth: int = 0) -> tuple[bool, Any]:
        """Whether ``value`` is known without running anything, and what it is."""
        if depth >= DEEPEST:
            return False, None
        if isinstance(value, ast.Name) and value.id in self.constants:
            return self._literal(self.constants[value.id], depth + 1)
        if isinstance(value, ast.Attribute) and _called(value).startswith("torch.") and value.attr in DTYPES:
            return True, DTYPES[value.attr]
        if isinstance(value, ast.Dict) or (isinstance(value, ast.Call) and _called(value.func) == "dict"):
            return self._mapping(value, depth)
        try:
            plain = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError):
            return False, None
        if isinstance(plain, tuple | set):
            plain = sorted(plain, key=str) if isinstance(plain, set) else list(plain)
        return isinstance(plain, str | int | float | bool | list | None), plain

    def _mapping(self, value: ast.expr, depth: int) -> tuple[bool, Any]:
        """A mapping by its literal items; those that are none are left out, as ``**`` of unknown things is."""
        found = {}
        for key, item in self._items(value):
            known, plain = self._literal(item, depth + 1)
            if known:
                found[key] = plain
        return True, found

    def _place(self, node: ast.AST) -> Place:
        return Place(shown(self.path), getattr(node, "lineno", 0))


def _loads_model(name: str) -> bool:
    """Whether ``name`` is ``from_pretrained`` of a class of models."""
    of = name.split(".")[-2] if "." in name else ""
    return "AutoModel" in name or of.endswith(MODEL_CLASSES)


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
