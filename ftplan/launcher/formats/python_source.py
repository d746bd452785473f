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
from ftplan.launcher.formats.script_code import CODE, branched, overrides
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
DONE: Final[Mapping[str, str]] = {
    "torch.compile": "torch_compile",
    "gradient_checkpointing_enable": "activation_checkpointing",
}
"""Functions and methods that do to a model what an argument asks for."""
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
        self.loading: dict[str, Setting] = {}
        self.loads = False

    def read(self) -> Script:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                self._call(node, called(node.func))
        if self.loads:
            self.found = {key: each for key, each in self.found.items() if not key.startswith("model_init_kwargs")}
        self._assigned()
        self._done_to_the_model()
        for key, at in overrides(self.tree):
            self.found[key] = Setting(key, None, self._place(at), CODE)
        self.found |= self.loading
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

    def _assigned(self) -> None:
        """``args.key = value`` after ``args = TrainingArguments(...)``: the last one counts, or none can be told."""
        names = {name for name, value in self.values.constants.items() if _is_arguments(value)}
        branches = branched(self.tree)
        for node in ast.walk(self.tree):
            for target in _targets(node):
                if not isinstance(target.value, ast.Name) or target.value.id not in names:
                    continue
                self.arguments.pop(target.attr, None)
                self.found.pop(target.attr, None)
                if isinstance(node, ast.Assign) and id(node) not in branches:
                    self._set(target.attr, node.value)
                else:
                    told = ast.unparse(node)[:60]
                    self.found[target.attr] = Setting(target.attr, None, self._place(node), told)

    def _done_to_the_model(self) -> None:
        """Checkpointing and compilation that the script asks of the model itself."""
        branches = branched(self.tree)
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Call):
                continue
            name = called(node.func)
            key = DONE.get(name, DONE.get(name.rsplit(".", 1)[-1] if "." in name else "", ""))
            if key and id(node) in branches:
                if key not in self.found:
                    self.found[key] = Setting(key, None, self._place(node), ast.unparse(node)[:60])
            elif key:
                self.found[key] = Setting(key, True, self._place(node))

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
            elif name == "quantization_config":
                self._quantized(node, value)
            elif name == "device_map":
                self._placed(value)

    def _quantized(self, node: ast.Call, value: ast.expr) -> None:
        """Bits in a mapping, which transformers makes a BitsAndBytesConfig of; other methods are not modelled."""
        items = dict(self.values.items(value))
        for name, item in items.items():
            if name in BITS:
                self._set(BITS[name], item)
        if "load_in_4bit" in items or "load_in_8bit" in items:
            self._fill(node, WITHOUT_BITS_ARGUMENTS)
        elif items:
            key = "model_init_kwargs.quantization_config"
            self.loading[key] = Setting(key, self.values.literal(value)[1], self._place(value))

    def _placed(self, value: ast.expr) -> None:
        """A map of devices, unless it puts the whole model on one."""
        known, plain = self.values.literal(value)
        if list(dict(self.values.items(value))) == [""] or (known and plain is None):
            return
        key = "model_init_kwargs.device_map"
        self.loading[key] = Setting(key, plain if known else ast.unparse(value)[:60], self._place(value))

    def _fill(self, node: ast.Call, defaults: Mapping[str, Any]) -> None:
        """What ``node`` does not say, as its class has it; what a parser's class says is that class's default."""
        for key, value in defaults.items():
            if key not in self.arguments:
                self.found.setdefault(key, Setting(key, value, self._place(node)))

    def _take(self, node: ast.Call, names: Mapping[str, str] | None) -> None:
        for unpacked in self.values.opaque(node):
            told = f"{called(node.func).rsplit('.', 1)[-1]}(**{ast.unparse(unpacked)[:40]})"
            self.found[told] = Setting(told, None, self._place(unpacked), CODE)
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


def _is_arguments(value: ast.expr) -> bool:
    """Whether ``value`` makes training arguments."""
    name = called(value.func).rsplit(".", 1)[-1] if isinstance(value, ast.Call) else ""
    return name in ARGUMENTS and name != "SFTTrainer"


def _targets(node: ast.AST) -> list[ast.Attribute]:
    """The attributes that a statement sets."""
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    return [target for target in found if isinstance(target, ast.Attribute)]


def _loads_model(name: str) -> bool:
    """Whether ``name`` is ``from_pretrained`` of a class of models."""
    of = name.split(".")[-2] if "." in name else ""
    return "AutoModel" in name or of.endswith(MODEL_CLASSES)
