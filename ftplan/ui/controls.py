"""The controls of the plan, in the order they stand: what each is called, holds, and starts with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, get_args

import gradio as gr

from ftplan import spec
from ftplan.profiles.gpus import list_gpus
from ftplan.profiles.models import list_models
from ftplan.ui.asking import OPEN
from ftplan.workflows.planning import DEFAULT_SEQ_LEN

SIZES: Final = ("12GB", "16GB", "24GB", "32GB", "40GB", "48GB", "80GB")
"""Cards by their size alone."""
RANKS: Final = ("auto", "4", "8", "16", "32", "64", "128", "256")
OPTIMIZERS: Final = (
    *("adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),
    *("adafactor", "sgd"),
)


@dataclass(frozen=True)
class Control:
    """A control: the name that `asking` knows it by, and what makes it. ``group`` is the fold that it lies in."""

    name: str
    make: Callable[[], gr.components.Component]
    group: str = ""


def controls(*, hosted: bool) -> tuple[Control, ...]:
    """All of them. A ``hosted`` page offers the catalogue's models alone."""
    models = [model.id for model in list_models()]
    return (
        Control(
            "model",
            lambda: gr.Dropdown(
                models,
                value="Qwen/Qwen2.5-7B",
                label="Model",
                info="type to search" if hosted else "type to search, or write a hub id or a folder",
                allow_custom_value=True,
            ),
        ),
        Control(
            "card",
            lambda: gr.Dropdown(
                [*SIZES, *list_gpus()], value="24GB", label="Card", info="or its size", allow_custom_value=True
            ),
        ),
        Control("count", lambda: _slider(1, 16, value=2, step=1, label="Cards in a machine")),
        Control("machines", lambda: _slider(1, 8, value=1, step=1, label="Machines")),
        Control("global_batch", lambda: _slider(0, 512, value=32, step=2, label="Global batch, samples a step")),
        Control(
            "seq_len", lambda: _slider(128, 32768, value=DEFAULT_SEQ_LEN, step=128, label="Sequence length, tokens")
        ),
        Control("method", lambda: _radio(spec.PlanRequest.model_fields["method"].annotation, "auto", "Method")),
        Control("objective", lambda: _radio(spec.Objective, "throughput", "Objective")),
        Control("lora_rank", lambda: _choice(RANKS, "LoRA rank", "auto: the highest that costs little speed"), "Pins"),
        Control("lora_targets", lambda: _choice(("all-linear", "qv"), "LoRA targets", custom=True), "Pins"),
        Control("sharding", lambda: _choice(get_args(spec.Sharding), "Sharding"), "Pins"),
        Control("offload", lambda: _choice(get_args(spec.Offload), "Offload"), "Pins"),
        Control("micro_batch", lambda: gr.Number(None, label="Micro-batch", precision=0), "Pins"),
        Control("gradient_checkpointing", lambda: _choice(("on", "off"), "Gradient checkpointing"), "Pins"),
        Control("packing", lambda: _choice(("on", "off"), "Packing"), "Pins"),
        Control("padding", lambda: _choice(("on", "off"), "Padding"), "Pins"),
        Control("evaluates", lambda: _choice(("on", "off"), "Evaluations"), "Pins"),
        Control("optimizer", lambda: _choice(OPTIMIZERS, "Optimizer", custom=True), "Pins"),
        Control("kernels", lambda: _choice(get_args(spec.Kernels), "Kernels"), "Pins"),
        Control("attention", lambda: _choice(get_args(spec.Attention), "Attention"), "Pins"),
        Control("precision", lambda: _choice(get_args(spec.Precision), "Autocast"), "Pins"),
        Control("weights_dtype", lambda: _choice(get_args(spec.Dtype), "Weights"), "Pins"),
        Control("quantization", lambda: _choice(get_args(spec.Quantization), "Quantization"), "Pins"),
        Control(
            "inventory",
            lambda: gr.Textbox("", label="Devices in words", info="in place of the sliders: 1xA100-80GB+1xRTX3090"),
            "Machine and training",
        ),
        Control(
            "margin", lambda: _slider(0, 40, value=3, step=1, label="Kept free, % of a card"), "Machine and training"
        ),
        Control(
            "host_memory",
            lambda: gr.Textbox("", label="Host RAM", info="of a machine, such as 64GB"),
            "Machine and training",
        ),
        Control(
            "link",
            lambda: gr.Radio(list(get_args(spec.Link)), value="auto", label="Link between cards"),
            "Machine and training",
        ),
        Control(
            "samples",
            lambda: gr.Number(None, label="Training samples", info="tells time and cost", precision=0),
            "Machine and training",
        ),
        Control("epochs", lambda: gr.Number(None, label="Epochs"), "Machine and training"),
        Control("price", lambda: gr.Number(None, label="Dollars an hour for a card"), "Machine and training"),
    )


def _radio(values: Any, value: str, label: str) -> gr.Radio:
    return gr.Radio(list(get_args(values)), value=value, label=label)


def _choice(values: tuple[str, ...], label: str, info: str = "", *, custom: bool = False) -> gr.Dropdown:
    return gr.Dropdown([OPEN, *values], value=OPEN, label=label, info=info or None, allow_custom_value=custom)


def _slider(minimum: float, maximum: float, **given: Any) -> gr.Slider:
    """A slider whose box takes numbers beyond its ends: what cannot be planned, the plan says."""
    made = gr.Slider(minimum, maximum, **given)
    # A subclass would do, but Gradio writes a stub file beside the module of each.
    made.preprocess = lambda payload: payload
    return made
