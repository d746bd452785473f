"""A model with random weights where it will train, in the time it takes to fill memory.

Nothing goes through disk, nor are billions of random numbers drawn on a CPU.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from ftplan.launcher.job import TrainJob
from ftplan.launcher.train.handing_on import is_handed_on
from ftplan.launcher.train.model import DTYPES, from_config, keep_packing, quantization_of

SPREAD: Final = 0.02
"""Standard deviation of weights, as most configs have it."""
BLOCK: Final = 2**20
"""Elements that differ from one another on a CPU; the rest repeats them."""


def random_model(job: TrainJob, device: torch.device) -> PreTrainedModel:
    """The model of ``job`` before its adapters, on ``device``, quantized if the job says so.

    Two kinds begin elsewhere. ZeRO-3 shards a model while transformers builds it. With FSDP2 accelerate hands rank 0's
    weights on from the CPU, each in its turn, and never reads those of other ranks: they stay untouched memory.
    """
    config = job.config
    if config.sharding == "zero3":
        assert config.quantization == "none", "ZeRO-3 shards weights before they could be quantized"
        return from_config(job)
    handed_on = is_handed_on(config)
    with init_empty_weights(include_buffers=False):
        model = from_config(job)
    quantizer = _quantizer(job, model, device)
    place = torch.device("cpu") if handed_on else device
    read = not handed_on or torch.distributed.get_rank() == 0
    materialise(model, place, DTYPES[config.weights_dtype], read=read)
    model.tie_weights()
    if quantizer is not None:
        quantizer.postprocess_model(model)
        keep_packing(model)
    return model


def materialise(model: torch.nn.Module, place: torch.device, dtype: torch.dtype, *, read: bool = True) -> None:
    """Give every parameter of ``model``, which has none yet, memory on ``place``, and move its buffers there.

    Values are random, of norms 1 and of biases 0; undefined unless they are ``read``.
    """
    for module in model.modules():
        for name, empty in module._parameters.items():
            if empty is not None:
                module._parameters[name] = _parameter(empty, name, place, dtype, read=read)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(place)


def _parameter(
    empty: torch.nn.Parameter, name: str, place: torch.device, dtype: torch.dtype, *, read: bool
) -> torch.nn.Parameter:
    values = torch.empty(empty.shape, dtype=dtype, device=place)
    if read:
        _fill(values, name)
    if hasattr(empty, "quant_state"):
        # As transformers quantizes while it loads: a weight is packed when it moves.
        packed = type(empty)(values, requires_grad=False, **empty.__dict__).to(place)
        assert isinstance(packed, torch.nn.Parameter)
        return packed
    return torch.nn.Parameter(values, requires_grad=empty.requires_grad)


def _fill(values: torch.Tensor, name: str) -> None:
    if values.dim() < 2:
        values.fill_(0.0 if name.endswith("bias") else 1.0)
    elif values.device.type != "cpu":
        values.normal_(0.0, SPREAD)
    else:
        _repeat(values.view(-1), torch.empty(BLOCK, dtype=values.dtype).normal_(0.0, SPREAD))


def _repeat(values: torch.Tensor, block: torch.Tensor) -> None:
    """Fill ``values`` with copies of ``block``, the last one cut."""
    whole = math.floor(len(values) / len(block)) * len(block)
    values[:whole].view(-1, len(block)).copy_(block)
    values[whole:].copy_(block[: len(values) - whole])


def _quantizer(job: TrainJob, model: PreTrainedModel, device: torch.device) -> Any:
    """transformers' quantizer, with its layers in the place of the model's; None where nothing is quantized."""
    quantization = quantization_of(job.config)
    if quantization is None:
        return None
    quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    dtype = DTYPES[job.config.weights_dtype]
    quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": device}, checkpoint_files=None)
    model.hf_quantizer = quantizer
    return quantizer
