"""What a merge writes: each tensor of the new model, where its values come from, and what is done to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ftplan.errors import InputError
from ftplan.launcher.merge_job import MergeDtype
from ftplan.launcher.train.adapter_files import Change
from ftplan.launcher.train.checkpoint_names import Names
from ftplan.launcher.weight_files import ITEM_BYTES, Planned, Stored

FLOATS: Final = ("F64", "F32", "F16", "BF16")
STORED_DTYPES: Final[Mapping[MergeDtype, str]] = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
SHOWN: Final = 5
"""Names that an error tells in full."""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to be written: ``source`` with ``change``, under another name or dtype where it says so.

    ``transposed``: the weight is stored [in, out].
    """

    planned: Planned
    source: Stored
    change: Change
    transposed: bool

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of the source."""
        return self.change == Change() and self.planned.dtype == self.source.dtype


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Every tensor of the new model. ``unties``: input and output embeddings are no longer the same values."""

    outputs: tuple[Output, ...]
    unties: bool

    @property
    def changed(self) -> int:
        """Weights that differ from the base's."""
        return sum(output.change != Change() for output in self.outputs)


def plan_merge(
    stored: Mapping[str, Stored], names: Names, changes: Mapping[str, Change], dtype: MergeDtype
) -> MergePlan:
    """Put every change on the tensor it belongs to; raises InputError naming those that have none, or another shape."""
    unties = any(name in changes for pair in names.tied.items() for name in pair)
    places = _places(names, unties=unties)
    _check_places(names, places, changes)
    parameter_of = {stored_name: parameter for parameter, stored_name in names.stored_as.items()}
    sources: list[tuple[str, str | None, Stored]] = [(key, parameter_of.get(key), one) for key, one in stored.items()]
    sources += [
        (name, name, stored[place]) for name, place in places.items() if place not in (name, names.stored_as.get(name))
    ]
    outputs = []
    for key, parameter, source in sources:
        change = changes.get(parameter or "", Change())
        transposed = parameter in names.transposed
        _check_shapes(parameter or key, source, change, transposed=transposed)
        outputs.append(Output(_planned(key, source, dtype), source, change, transposed))
    return MergePlan(tuple(outputs), unties)


def _places(names: Names, *, unties: bool) -> dict[str, str]:
    """The stored tensor of each parameter; where tied ones part, that of the other for the one that is not stored."""
    places = dict(names.stored_as)
    if unties:
        for target, source in names.tied.items():
            for one, other in ((target, source), (source, target)):
                if one not in places and other in names.stored_as:
                    places[one] = names.stored_as[other]
    return places


def _check_places(names: Names, places: Mapping[str, str], changes: Mapping[str, Change]) -> None:
    converted = sorted(name for name in changes if name in names.converted)
    if converted:
        raise InputError(
            f"the base stores {_listed(converted)} in another form, which transformers converts while it loads",
            hint="merge it in memory with peft's merge_and_unload",
            field="base",
        )
    lost = sorted(name for name in changes if name not in places)
    if lost:
        raise InputError(
            f"the adapter changes {_listed(lost)}, which the base does not have",
            hint="is it another model's adapter, or one of another version of transformers? name its base with --base",
            field="base",
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _check_shapes(name: str, source: Stored, change: Change, *, transposed: bool) -> None:
    if change == Change():
        return
    if source.dtype not in FLOATS:
        raise InputError(
            f"the base's {name} is {source.dtype}: it is quantized",
            hint="name the 16-bit model it was made of with --base",
            field="base",
        )
    if change.replacement is not None and change.replacement.shape != source.shape:
        raise InputError(
            f"the adapter's {name} has shape {list(change.replacement.shape)}, the base's {list(source.shape)}",
            hint="an adapter with a resized vocabulary is merged with peft's merge_and_unload",
            field="base",
        )
    if change.lora is not None:
        out, given = change.lora.b.shape[0], change.lora.a.shape[1]
        expected = (given, out) if transposed or change.lora.embedding else (out, given)
        if source.shape != expected:
            raise InputError(
                f"the adapter of {name} is for a weight of shape {list(expected)}, the base's has {list(source.shape)}",
                hint="it is another model's adapter: name its base with --base",
                field="base",
            )
        if change.lora.magnitude is not None and (transposed or change.lora.embedding):
            raise InputError(
                f"DoRA on {name}, which is no linear layer, is not merged here",
                hint="merge it with peft's merge_and_unload",
                field="adapter",
            )


def _planned(name: str, source: Stored, dtype: MergeDtype) -> Planned:
    if dtype == "keep" or source.dtype not in FLOATS:
        return Planned(name, source.dtype, source.shape, source.size_bytes)
    stored = STORED_DTYPES[dtype]
    elements = source.size_bytes // ITEM_BYTES[source.dtype]
    return Planned(name, stored, source.shape, elements * ITEM_BYTES[stored])
