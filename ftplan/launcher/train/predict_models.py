"""The models of a prediction, one after the other: the base, and the trained one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from ftplan.errors import InputError
from ftplan.launcher.job import Source
from ftplan.launcher.predict_job import PredictJob, Side
from ftplan.launcher.train import card
from ftplan.launcher.train.model import DTYPES, from_config, keep_packing, quantization_of

_T = TypeVar("_T")


def ask_each(job: PredictJob, ask: Callable[[Side, Any], _T]) -> dict[Side, _T]:
    """What ``ask`` says of each model that is asked for, on its device; a whole model is gone before the next comes."""
    if job.is_adapter:
        return _ask_adapted(job, ask)
    said: dict[Side, _T] = {}
    if job.before and job.base is not None:
        said["before"] = ask("before", _base(job, job.base))
        card.forget()
    said["after"] = ask("after", _loaded(job, job.trained))
    return said


def _ask_adapted(job: PredictJob, ask: Callable[[Side, Any], _T]) -> dict[Side, _T]:
    assert job.base is not None, "an adapter has a base"
    model = PeftModel.from_pretrained(_base(job, job.base), job.trained).eval()
    said: dict[Side, _T] = {}
    if job.before:
        with model.disable_adapter():
            said["before"] = ask("before", model)
    said["after"] = ask("after", model)
    return said


def place() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _dtype(job: PredictJob) -> torch.dtype | str:
    """16 bits on a GPU; on a CPU, where they are slow, what the weights were trained in."""
    if place().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return DTYPES[job.training.config.weights_dtype] if job.training is not None else "auto"


def _base(job: PredictJob, base: Source) -> PreTrainedModel:
    if base.kind != "config":
        return _loaded(job, base.location, quantized=True)
    assert job.training is not None, "random weights are those of a run"
    # They are drawn in the dtype of the training: in another one they would be others.
    config = job.training.config.model_copy(update={"attention": "sdpa"})
    model = from_config(job.training.model_copy(update={"config": config}))
    dtype = _dtype(job)
    return model.to(place(), dtype if isinstance(dtype, torch.dtype) else model.dtype).eval()


def _loaded(job: PredictJob, location: str, *, quantized: bool = False) -> PreTrainedModel:
    """The model at ``location``, 4-bit where the adapter was trained on one that was."""
    quantization = quantization_of(job.training.config) if quantized and job.training is not None else None
    try:
        model = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=_dtype(job),
            quantization_config=quantization,
            device_map={"": place()},
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot load the model of {location}: {first}", field="base") from error
    keep_packing(model)
    return model.eval()
