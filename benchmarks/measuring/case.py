"""What is measured: cases as lines of JSON, in the words that the rows of ``benchmarks/data`` use."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

MODELS: Final = Path(__file__).resolve().parent.parent / "data" / "measured_models.json"

FEATURES: Final = ("packing", "flash", "sync_each_batch", "trl", "eval", "save", "override")
"""Fields that a row names only where they are set."""


@dataclass(frozen=True)
class Case:
    """One run of the plain Hugging Face stack. Every line states ``id`` and ``model``; the rest has defaults.

    Attributes:
        model: a name in ``measured_models.json``; ``override`` changes fields of its config.
        adapter_fp32: peft keeps adapters in fp32.
        amp: autocast dtype of the Trainer.
        seq, micro, accum: tokens of a sample, samples of a micro-batch, micro-batches of a step.
        kbit_prepare: peft's prepare_model_for_kbit_training is called.
        pad: rows carry an attention mask with zeros at the end.
        cap_gib: what the caching allocator may reserve, None for all of the card.
        packing: a row holds two samples, told by their positions.
        flash: cuDNN's attention is left out, as on cards that lack it.
        trl: TRL's SFTTrainer trains.
        eval, save: an evaluation and a save follow the training.
        tries: capped runs that look for the limit (``--caps``).
    """

    id: str
    model: str
    method: Literal["full", "lora", "qlora"] = "lora"
    rank: int = 16
    alpha: int = 32
    targets: str | list[str] = "all-linear"
    dropout: float = 0.0
    adapter_fp32: bool = True
    weights: Literal["fp32", "bf16", "fp16"] = "bf16"
    amp: Literal["none", "bf16", "fp16"] = "bf16"
    optim: str = "adamw_torch"
    ckpt: bool = True
    seq: int = 1024
    micro: int = 1
    accum: int = 1
    attn: str = "sdpa"
    liger: bool = False
    kbit_prepare: bool = False
    parallel: str = "none"
    steps: int = 4
    pad: bool = False
    cap_gib: float | None = None
    offload: bool = False
    packing: bool = False
    flash: bool = False
    sync_each_batch: bool = False
    trl: bool = False
    eval: bool = False
    save: bool = False
    override: Mapping[str, Any] | None = None
    tries: int = 4

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The case of one line; raises ValueError for a name that no field has."""
        given = json.loads(line)
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"a case has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**given)

    def as_row(self) -> dict[str, Any]:
        """The case as rows hold it."""
        stated = dataclasses.asdict(self)
        del stated["tries"]
        return {name: value for name, value in stated.items() if value or name not in FEATURES}

    def as_line(self) -> str:
        """The case as a line that `from_json` reads."""
        return json.dumps(self.as_row())

    def capped(self, cap_gib: float) -> Self:
        """The same case with ``cap_gib`` GiB for the allocator, and an id that says so."""
        return dataclasses.replace(self, id=f"{self.id}-cap{cap_gib}", cap_gib=cap_gib)

    @property
    def is_fsdp(self) -> bool:
        """Whether FSDP2 shards, in any form."""
        return self.parallel in ("fsdp2", "fsdp2-grad-op", "hsdp")

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage, 0 without DeepSpeed."""
        return int(self.parallel[4]) if self.parallel.startswith("zero") else 0


def read_cases(path: Path) -> list[Case]:
    """The cases of a file, blank lines and those that begin with # left out."""
    lines = path.read_text("utf-8").splitlines()
    return [Case.from_json(line) for line in lines if line.strip() and not line.startswith("#")]


def model_config_fields(case: Case) -> dict[str, Any]:
    """transformers' config fields of the case's model, ``model_type`` among them."""
    models = json.loads(MODELS.read_text("utf-8"))
    return {**models[case.model], **(case.override or {})}
