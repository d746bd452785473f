"""The model of a trace: the real architecture with the real adapters and 4-bit layers, on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from peft import AdaptionPromptConfig, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ftplan.errors import InputError
from ftplan.estimators.trace import layers as decoder
from ftplan.estimators.trace.recorder import Recorder
from ftplan.estimators.trace.settings import TraceSettings
from ftplan.spec import RunConfig

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Built:
    """The model with its adapters, the base model inside it, its decoder layers and how they were reduced."""

    model: torch.nn.Module
    base: PreTrainedModel
    layers: torch.nn.ModuleList
    reduction: decoder.Reduction
    layer_count: int
    total_params: int
    trainable_params: int


def build(settings: TraceSettings) -> Built:
    """Build the model on the meta device, with as few layers as can stand for all of them.

    Raises InputError for an architecture that transformers does not ship.
    """
    config = settings.config
    with torch.device("meta"):
        base = _base(settings)
        found = decoder.decoder_layers(base)
        count, total = len(found), sum(parameter.numel() for parameter in base.parameters())
        reduced = decoder.whole(count)
        if not settings.whole:
            units = decoder.KEPT_UNITS if config.sharding in ("none", "ddp") else decoder.KEPT_SHARDED_UNITS
            reduced = decoder.reduction(_fingerprints(base, found, config), units)
            if reduced.copies:
                decoder.keep(base, found, reduced.kept)
        if config.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=_checkpointing(settings))
        if config.kernels == "liger":
            _with_liger(base)
        if config.quantization != "none":
            _to_4bit(base, config)
        prompted = sum(index >= count - config.adapter_layers for index in reduced.kept)
        model = _with_adapters(base, settings, prompted) if config.trains_adapters else base
    if settings.stack.upcasts(config) and config.sharding != "zero3":
        _cast([p for p in model.parameters() if p.requires_grad], torch.float32)
    trainable = _trainable_params(model, found, reduced)
    return Built(model, base, found, reduced, count, total, trainable)


def _fingerprints(base: PreTrainedModel, layers: torch.nn.ModuleList, config: RunConfig) -> list[tuple[object, ...]]:
    """What tells layers apart, before they have adapters: prompts are in the last ones only."""
    prints = decoder.fingerprints(base, layers)
    if not config.trains_prompts:
        return prints
    first = len(prints) - config.adapter_layers
    return [(index >= first, *each) for index, each in enumerate(prints)]


def _trainable_params(model: torch.nn.Module, layers: torch.nn.ModuleList, reduced: decoder.Reduction) -> int:
    """Trainable elements of the whole model: what the traced layers have, and the lower middle one's for each copy."""
    traced = sum(int(parameter.numel()) for parameter in model.parameters() if parameter.requires_grad)
    repeated = (layer for layer, unit in zip(layers, reduced.units, strict=True) if unit == reduced.lower)
    middle = sum(int(p.numel()) for layer in repeated for p in layer.parameters() if p.requires_grad)
    return traced + reduced.copies * middle


def _base(settings: TraceSettings) -> PreTrainedModel:
    config = settings.config
    shape = dict(settings.model)
    kind = shape.pop("model_type")
    shape.pop("auto_map", None)
    try:
        parsed = AutoConfig.for_model(kind, **shape)
    except ValueError as error:
        raise InputError(
            f"transformers has no architecture {kind!r} of its own, so it cannot be traced",
            hint="use --estimator analytic",
            field="estimator",
        ) from error
    parsed.use_cache = False
    parsed.get_text_config(decoder=True).use_cache = False
    kinds = AutoModelForCausalLM if type(parsed) in AutoModelForCausalLM._model_mapping else AutoModelForImageTextToText
    attention = "eager" if config.attention == "flash_attention_2" else config.attention
    try:
        model = kinds.from_config(parsed, dtype=DTYPES[config.weights_dtype], attn_implementation=attention)
    except ValueError:  # an architecture without this kernel runs eager attention, as the analytic estimate says
        model = kinds.from_config(parsed, dtype=DTYPES[config.weights_dtype], attn_implementation="eager")
    if config.attention == "flash_attention_2":
        for each in {id(c): c for c in (model.config, model.config.get_text_config(decoder=True))}.values():
            each._attn_implementation = "flash_attention_2"
    return model


def _with_liger(base: PreTrainedModel) -> None:
    """Liger's layers and loss in place of the model's, as Trainer's ``use_liger_kernel`` puts them in.

    Raises InputError for an architecture that Liger does not know.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if base.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError(f"Liger has no kernels for {base.config.model_type}", hint="kernels: none", field="kernels")
    _apply_liger_kernel_to_instance(model=base)


def _checkpointing(settings: TraceSettings) -> dict[str, bool]:
    return {"use_reentrant": settings.stack.reenters(settings.config)}


def _with_adapters(base: PreTrainedModel, settings: TraceSettings, prompted: int) -> torch.nn.Module:
    """``base`` with LoRA's adapters, or with prompts in its last ``prompted`` layers."""
    config = settings.config
    if config.prepare_kbit:
        base = prepare_model_for_kbit_training(
            base,
            use_gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs=_checkpointing(settings),
        )
    elif config.gradient_checkpointing:
        base.enable_input_require_grads()
    model = _with_prompts(base, config, prompted) if config.trains_prompts else _with_lora(base, config)
    _cast([*_adapters(model)], DTYPES[config.adapter_dtype])
    return model


def _with_lora(base: PreTrainedModel, config: RunConfig) -> torch.nn.Module:
    try:
        return get_peft_model(base, lora_config(config))
    except ValueError as error:  # names that no module has
        raise InputError(f"lora_targets: {error}", hint="all-linear fits any model", field="lora_targets") from error


def _with_prompts(base: PreTrainedModel, config: RunConfig, layers: int) -> torch.nn.Module:
    prompts = AdaptionPromptConfig(adapter_len=config.adapter_len, adapter_layers=layers, task_type="CAUSAL_LM")
    try:
        return get_peft_model(base, prompts)
    except ValueError as error:  # an architecture that it does not know, or fewer layers than are asked for
        raise InputError(f"llama-adapter: {error}", hint="use --method lora", field="method") from error


def lora_config(config: RunConfig) -> LoraConfig:
    """The adapters as peft is told about them."""
    names: str | list[str] = "all-linear" if config.lora_targets == "all-linear" else list(config.target_names)
    if names == ["qv"]:
        names = ["q_proj", "v_proj"]
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=names,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _cast(parameters: list[torch.nn.Parameter], dtype: torch.dtype) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is peft's: LoRA's matrices, or a prompt and its gate."""
    return "lora_" in name or ".adaption_" in name


def _adapters(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    return (parameter for name, parameter in model.named_parameters() if is_adapter(name))


def _to_4bit(model: PreTrainedModel, config: RunConfig) -> None:
    """Linear4bit in place of every plain Linear but the head, as transformers' bitsandbytes integration does."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    compute = DTYPES[config.precision if config.precision != "none" else config.weights_dtype]
    for module in list(model.modules()):
        for name, linear in list(module.named_children()):
            if (type(linear) is torch.nn.Linear or isinstance(linear, Conv1D)) and linear is not head:
                columns, rows = reversed(linear.weight.shape) if isinstance(linear, Conv1D) else linear.weight.shape
                packed = bnb.nn.Linear4bit(
                    rows,
                    columns,
                    bias=linear.bias is not None,
                    compute_dtype=compute,
                    compress_statistics=config.double_quantization,
                    quant_type=config.quantization,
                    device="meta",
                )
                if linear.bias is not None:
                    packed.bias = torch.nn.Parameter(linear.bias.data, requires_grad=False)
                packed.support_avx512bf16_for_cpu = False  # else an evaluation packs weights for this CPU
                packed.unpacked_dtype = linear.weight.dtype
                setattr(module, name, packed)
    model.is_loaded_in_4bit = True
    model.is_quantized = True
    model.quantization_method = "bitsandbytes"


# ---------------------------------------------------------------------- onto the device


class Loader:
    """Gives a model's meta tensors fake memory, in the order in which they reach a device."""

    def __init__(self, built: Built, settings: TraceSettings, recorder: Recorder) -> None:
        self._built, self._settings, self._recorder = built, settings, recorder
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """What a meta tensor became, by its id; it is kept so that its id stays its own."""
        self._names = {id(parameter): name for name, parameter in built.model.named_parameters()}
        self._unit_of = {
            id(module): unit
            for layer, unit in zip(built.layers, built.reduction.units, strict=True)
            for module in layer.modules()
        }

    def load(self) -> None:
        """Weights first, packed on the way or afterwards; then the adapters."""
        self._load_base()
        self._load_adapters()
        self._categorize()

    def _load_base(self) -> None:
        waiting = []
        for module in self._built.model.modules():
            with self._in_layer(module):
                for name, tensor, holder in _tensors(module):
                    if is_adapter(self._name(tensor)):
                        continue
                    if not hasattr(module, "unpacked_dtype") or name != "weight":
                        self._place(holder, name, tensor)
                        continue
                    unpacked = torch.empty(module.out_features, module.in_features, dtype=module.unpacked_dtype)
                    if self._settings.load == "built":
                        waiting.append((module, unpacked))
                    else:
                        self._pack(module, unpacked)
                    del unpacked
        for module, unpacked in waiting:
            with self._in_layer(module):
                self._pack(module, unpacked)

    def _load_adapters(self) -> None:
        """peft makes adapters where and how the base weight is, then casts one by one."""
        moved = []
        config = self._settings.config
        first = DTYPES[config.weights_dtype]
        casts = self._settings.load == "built" and config.quantization == "none"
        for module in self._built.model.modules():
            with self._in_layer(module):
                for name, tensor, holder in _tensors(module):
                    if casts and tensor.dtype != first:
                        moved.append((module, name, holder, tensor))
                        holder[name] = torch.empty(tensor.shape, dtype=first)
                    else:
                        self._place(holder, name, tensor)
        for module, name, holder, tensor in moved:
            with self._in_layer(module):
                self._place(holder, name, tensor)

    def _name(self, tensor: torch.Tensor) -> str:
        name: str = self._names.get(id(tensor), "")
        return name

    @contextmanager
    def _in_layer(self, module: torch.nn.Module) -> Iterator[None]:
        outer = self._recorder.layer
        self._recorder.layer = self._unit_of.get(id(module), outer)
        try:
            yield
        finally:
            self._recorder.layer = outer

    def _place(self, holder: dict[str, Any], name: str, tensor: torch.Tensor) -> None:
        if id(tensor) not in self._made:
            made: torch.Tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
            self._made[id(tensor)] = (made, tensor)
        holder[name] = self._made[id(tensor)][0]

    def _pack(self, module: Any, unpacked: torch.Tensor) -> None:
        """Pack through bitsandbytes' own operators, whose fakes give the sizes."""
        import bitsandbytes as bnb

        config = self._settings.config
        sharded = config.sharding in ("fsdp2", "fsdp2-grad-op", "hsdp", "zero3")
        packed, state = bnb.functional.quantize_4bit(
            unpacked,
            blocksize=64,
            compress_statistics=config.double_quantization,
            quant_type=config.quantization,
            quant_storage=DTYPES[config.weights_dtype] if sharded else torch.uint8,
        )
        # A Params4bit cannot be made of a fake tensor: a plain parameter with its attributes serves.
        weight = torch.nn.Parameter(packed, requires_grad=False)
        weight.__dict__.update(
            quant_state=state,
            bnb_quantized=True,
            blocksize=64,
            compress_statistics=config.double_quantization,
            quant_type=config.quantization,
            quant_storage=packed.dtype,
            module=module,
        )
        module._parameters["weight"] = weight
        module.quant_state = state

    def _categorize(self) -> None:
        for name, parameter in self._built.model.named_parameters():
            self._recorder.categorize(parameter, "adapters" if is_adapter(name) else "weights")
            state = getattr(parameter, "quant_state", None)
            for tensor in _state_tensors(state):
                self._recorder.categorize(tensor, "weights")
        for buffer in self._built.model.buffers():
            self._recorder.categorize(buffer, "weights")


def _state_tensors(state: Any) -> Iterator[torch.Tensor]:
    while state is not None:
        for tensor in (state.absmax, state.code, state.offset):
            if isinstance(tensor, torch.Tensor):
                yield tensor
        state = state.state2


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
    for holder in (module._parameters, module._buffers):
        for name, tensor in list(holder.items()):
            if tensor is not None and tensor.device.type == "meta":
                yield name, tensor, holder
