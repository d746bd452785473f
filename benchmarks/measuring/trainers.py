"""The loop that trains a case, and the marks it leaves at each step."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.measuring.case import Case
from benchmarks.measuring.device import Device
from benchmarks.measuring.tokens import Tokens


@dataclass
class Marks:
    """What a run leaves while it trains: bytes when training begins, and the seconds and bytes of each step."""

    prepared_alloc: int | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def step_seconds(self) -> float | None:
        """The median step without the first."""
        later = sorted(step["s"] for step in self.steps[1:])
        return later[len(later) // 2] if later else None


class Marking(TrainerCallback):  # type: ignore[misc]
    """Fills `Marks`. Several ranks begin their peaks anew once the model is sharded."""

    def __init__(self, marks: Marks, device: Device, world_size: int) -> None:
        self._marks, self._device, self._world_size = marks, device, world_size
        self._begun = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The model is prepared."""
        self._marks.prepared_alloc = self._device.allocated()
        if self._world_size > 1:
            gc.collect()
            self._device.give_back()
            self._device.reset_peaks()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A step's first micro-batch begins."""
        self._device.wait()
        self._begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The optimizer has stepped."""
        self._device.wait()
        self._marks.steps.append(
            {
                "s": round(time.perf_counter() - self._begun, 5),
                "alloc": self._device.allocated(),
                "peak_alloc": self._device.peak_allocated(),
                "peak_reserved": self._device.peak_reserved(),
            }
        )


def trainer_for(case: Case, model: Any, arguments: TrainingArguments, tokens: Tokens, marking: Marking) -> Trainer:
    """The Trainer, or TRL's SFTTrainer over ready tokens."""
    if case.trl:
        return _sft_trainer(model, arguments, tokens, marking)
    return Trainer(model=model, args=arguments, train_dataset=tokens, callbacks=[marking])


def _sft_trainer(model: Any, arguments: TrainingArguments, tokens: Tokens, marking: Marking) -> Trainer:
    from datasets import Dataset
    from transformers import default_data_collator
    from trl import SFTTrainer

    rows = [tokens[index] for index in range(len(tokens))]
    data = Dataset.from_dict({name: [row[name].tolist() for row in rows] for name in rows[0]})
    data = data.add_column("attention_mask", [[1] * len(row["input_ids"]) for row in rows])
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=default_data_collator,
        callbacks=[marking],
        processing_class=_tiny_tokenizer(),
    )


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"a": 0, "<p>": 1, "<e>": 2}, unk_token="a")  # noqa: S106 - no password
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="<p>", eos_token="<e>")  # noqa: S106
