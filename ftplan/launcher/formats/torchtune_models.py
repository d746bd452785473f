"""torchtune's model builders, and the catalogue's names for what they build (``data/torchtune_models.json``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from ftplan.profiles.models import hub_id, list_models
from ftplan.profiles.packaged import packaged_json

_DATA: Final = "torchtune_models.json"
PREFIX: Final = "torchtune.models."
ATTENTION: Final[Mapping[str, str]] = {
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "output_proj": "o_proj",
}
"""``lora_attn_modules`` and transformers' names for them."""
MLP: Final = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Builder:
    """A builder without its ``lora_`` or ``qlora_``: the hub id of its shape, and what its family needs beside it.

    ``files`` are the tokenizer's arguments with the checkpoint's files for them. ``fused`` are modules that
    transformers has in one with others, such as Phi's ``qkv_proj``.
    """

    name: str
    id: str
    family: str
    tokenizer: str
    files: Mapping[str, str]
    model_type: str
    fused: Mapping[str, str] = field(default_factory=dict)

    def component(self, method: str) -> str:
        """Its dotted path for a method; families without a ``qlora_`` builder have ``quantize_base`` in the other."""
        kind = {"full": "", "lora": "lora_"}.get(method, "lora_" if self.quantizes_by_argument else "qlora_")
        return f"{PREFIX}{self.family}.{kind}{self.name}"

    @property
    def quantizes_by_argument(self) -> bool:
        """Whether only an argument of the LoRA builder makes the base 4-bit."""
        return self.family.startswith("qwen")

    def module(self, name: str) -> str:
        """transformers' name of a module that torchtune calls ``name``."""
        return self.fused.get(name, ATTENTION.get(name, name))


@cache
def builders() -> Mapping[str, Builder]:
    """Every builder by its name."""
    data = packaged_json(_DATA)
    return {
        name: Builder(name, row["id"], row["family"], **_family(data, row["family"]))
        for name, row in data["builders"].items()
    }


def _family(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    row: dict[str, Any] = data["families"][name]
    return row


def builder_of(component: str) -> tuple[Builder | None, str]:
    """The builder that a ``model._component_`` names, None if it is not known, and ``lora``, ``qlora`` or nothing."""
    name = component.rsplit(".", 1)[-1]
    kind = next((each for each in ("qlora", "lora") if name.startswith(f"{each}_")), "")
    return builders().get(name.removeprefix(f"{kind}_") if kind else name), kind


def builder_for(model: str) -> Builder | None:
    """The builder of a model by its catalogue name: the one of that very checkpoint, or else of its shape."""
    row = _rows().get(model.strip().lower())
    alike = [each for each in builders().values() if row is not None and _rows()[each.id.lower()] == row]
    return next((each for each in alike if each.id == hub_id(model)), alike[0] if alike else None)


def model_of(builder: Builder | None, component: str, folder: str) -> str:
    """The model's name: that of the checkpoint's folder where it is one of this shape, else the builder's.

    A builder that is not known leaves its own name, which no catalogue has, unless the folder's is known.
    """
    parts = [part for part in folder.split("/") if part]
    for name in (folder.rstrip("/"), "/".join(parts[-2:]), "".join(parts[-1:])):
        known = _published().get(name.lower())
        if known is not None and (builder is None or _rows()[known.lower()] == _rows()[builder.id.lower()]):
            return name if name.lower() in _rows() else known
    return component if builder is None else builder.id


@cache
def _rows() -> Mapping[str, str]:
    """Every name of the catalogue in lower case, and the row it belongs to."""
    return {
        name.lower(): entry.id for entry in list_models() for name in (entry.id, *entry.aliases, *entry.same_shape_ids)
    }


@cache
def _published() -> Mapping[str, str]:
    """The catalogue's names, and those of the folders that checkpoints are usually in, with a name that it knows."""
    folders = {
        each.split("/")[-1].lower(): each for entry in list_models() for each in (*entry.same_shape_ids, entry.id)
    }
    return {**folders, **{name: name for name in _rows()}}
