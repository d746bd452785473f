"""A training script's literal arguments, read without running it.

Looks for calls of the libraries' argument classes and functions and takes keyword arguments whose values are literals,
names that the module sets to a literal once, or defaults of its own command-line arguments. Anything else stays
`unresolved`.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.python_values import Values, called
from ftplan.launcher.formats.reading import shown
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.units import KIB
from ftplan.verdicts import Place

ARGUMENTS: Final[Mapping[str, str]] = {
    "TrainingArguments": "transformers",
    "Seq2SeqTrainingArguments": "transformers",
    "SFTConfig": "trl",
    "SFTTrainer": "trl",
}
"""Names whose use shows whose trainer a script has; a parser gets the classes without a call."""
OTHER_TRAINER: Final = re.compile(r"\w+Trainer")
PARSERS: Final = ("HfArgumentParser", "TrlParser")
LORA: Final[Mapping[str, str]] = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
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
LONGEST_SCRIPT: Final = 128 * KIB
"""A syntax tree takes up to 600 times the memory of its text."""
LOADING: Final[Mapping[str, str]] = {
    "attn_implementation": "attn_implementation",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
}
MODEL_CLASSES: Final = ("ForCausalLM", "ForConditionalGeneration", "ForImageTextToText")


@dataclass
class Script:
    """What a script says: settings under TRL's and transformers' names, and whose trainer it uses.

    ``arguments`` names the command-line argument behind a setting, ``declared`` those that only this script has;
    ``other`` is a trainer that does no supervised fine-tuning.
    """

    settings: Settings = field(default_factory=Settings)
    framework: str = ""
    other: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    declared: frozenset[str] = frozenset()

    def under(self, flags: Settings, known: Collection[str]) -> Settings:
        """Its settings with the command's ``flags`` over them, but for its own that no framework knows."""
        meant = {key: replace(flags[name], key=key) for key, name in self.arguments.items() if name in flags}
        others = {key: each for key, each in flags.items() if key in known or key not in self.declared}
        return self.settings.replaced(others).replaced(meant)


def read_script(text: str, path: Path) -> Script:
    """The literal arguments in ``text``; raises ConfigFileError for what is no Python."""
    if len(text) > LONGEST_SCRIPT:
        message = f"{shown(path)} is no training script: it has more than {LONGEST_SCRIPT // KIB} KiB"
        raise ConfigFileError(message, file=str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a script's odd escapes are its own affair
            tree = ast.parse(text)
        found = _Reader(path, tree).read()
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", 0) or 0
        raise ConfigFileError(f"{shown(path)} is no Python that can be read", file=str(path), line=line) from error
    return found


class _Reader:
    """Walks over the calls of one script."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.path = path
        self.tree = tree
        self.values = Values(tree)
        self.names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self.names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        self.parses = bool(self.names.intersection(PARSERS))
        self.found: dict[str, Setting] = {}
        self.arguments: dict[str, str] = {}
        self.loads = False

    def read(self) -> Script:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                self._call(node, called(node.func))
        if self.loads:
            self.found = {key: each for key, each in self.found.items() if not key.startswith("model_init_kwargs")}
        frameworks = {framework for name, framework in ARGUMENTS.items() if name in self.names}
        framework = "trl" if "trl" in frameworks else next(iter(frameworks), "")
        other = next((name for name in sorted(self.names) if OTHER_TRAINER.fullmatch(name)), "")
        declared = frozenset(self.values.declared)
        return Script(Settings(self.found), framework, "" if framework else other, self.arguments, declared)

    def _call(self, node: ast.Call, name: str) -> None:
        last = name.rsplit(".", 1)[-1]
        if last in ARGUMENTS and last != "SFTTrainer":
            self._take(node, None)
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
            for key, value in self.values.keywords(node):
                if key == "model":
                    self._set("model_name_or_path", value, only=str)

    def _loaded(self, node: ast.Call) -> None:
        """A model that the script loads itself: then the trainer's own arguments for that are not used."""
        self.loads = True
        self._take(node, LOADING)
        self._fill(node, {"dtype": "auto"})
        if any(name in ("load_in_4bit", "load_in_8bit") for name, _ in self.values.keywords(node)):
            self._fill(node, WITHOUT_BITS_ARGUMENTS)
        if node.args:
            self._set("model_name_or_path", node.args[0], only=str)
        for name, value in self.values.keywords(node):
            if name == "pretrained_model_name_or_path":
                self._set("model_name_or_path", value, only=str)

    def _fill(self, node: ast.Call, defaults: Mapping[str, Any]) -> None:
        """What ``node`` does not say, as its class has it; what a parser's class says is that class's default."""
        for key, value in defaults.items():
            if key not in self.arguments:
                self.found.setdefault(key, Setting(key, value, self._place(node)))

    def _take(self, node: ast.Call, names: Mapping[str, str] | None) -> None:
        for name, value in self.values.keywords(node):
            key = name if names is None else names.get(name)
            if key is not None:
                self._set(key, value)

    def _set(self, key: str, value: ast.expr, only: type | None = None) -> None:
        argument = self.values.argument(value)
        if argument and (argument in self.values.declared or self.parses):
            self.arguments[key] = argument
            if argument not in self.values.declared:
                return  # of the parser's classes, whose default holds where the command does not give it
        known, plain = self.values.literal(value)
        if only is not None and (not known or not isinstance(plain, only)):
            return
        if known:
            self.found[key] = Setting(key, plain, self._place(value))
            if isinstance(plain, dict):
                self._unknown_items(key, value)
        else:
            self.found.setdefault(key, Setting(key, None, self._place(value), ast.unparse(value)[:60]))

    def _unknown_items(self, key: str, value: ast.expr) -> None:
        for name, item in self.values.items(value):
            argument = self.values.argument(item)
            if not self.values.literal(item)[0] and not (argument and self.parses):
                told = Setting(f"{key}.{name}", None, self._place(item), ast.unparse(item)[:60])
                self.found.setdefault(told.key, told)

    def _place(self, node: ast.AST) -> Place:
        return Place(shown(self.path), getattr(node, "lineno", 0))


def _loads_model(name: str) -> bool:
    """Whether ``name`` is ``from_pretrained`` of a class of models."""
    of = name.split(".")[-2] if "." in name else ""
    return "AutoModel" in name or of.endswith(MODEL_CLASSES)
