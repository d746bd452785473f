"""Which adapters are merged, and what they change; those that mean something else than plain LoRA are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ftplan.errors import InputError
from ftplan.launcher.train.adapter_files import CONFIG, WEIGHTS, Change, read_changes
from ftplan.launcher.weight_files import Planned, header_of

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": True}
Q = "base_model.model.model.layers.0.self_attn.q_proj"
PAIR = {f"{Q}.lora_A.weight": (4, 16), f"{Q}.lora_B.weight": (16, 4)}
WEIGHT = "model.layers.0.self_attn.q_proj.weight"


def adapter(folder: Path, tensors: dict[str, tuple[int, ...]], **config: Any) -> dict[str, Change]:
    (folder / CONFIG).write_text(json.dumps(LORA | config))
    planned = [Planned(name, "F32", shape, 4 * math.prod(shape)) for name, shape in tensors.items()]
    (folder / WEIGHTS).write_bytes(header_of(planned) + bytes(sum(one.size_bytes for one in planned)))
    return read_changes(folder)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 16}}, 4.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 4, "v_proj": 100}}, 1.0),
        ({"alpha_pattern": {"k_proj": 100}}, 2.0),
        ({"r": 64, "rank_pattern": {"q_proj": 4}}, 2.0),
    ],
)
def test_how_much_is_added(config: dict[str, Any], scaling: float, tmp_path: Path) -> None:
    changes = adapter(tmp_path, PAIR, **config)
    assert list(changes) == [WEIGHT]
    lora = changes[WEIGHT].lora
    assert lora is not None
    assert (lora.scaling, lora.a.shape, lora.b.shape, lora.embedding) == (scaling, (4, 16), (16, 4), False)


def test_whole_weights_take_the_place_of_the_base_s(tmp_path: Path) -> None:
    head, bias = "base_model.model.lm_head.weight", f"{Q}.base_layer.bias"
    changes = adapter(tmp_path, PAIR | {head: (9, 16), bias: (16,)}, bias="lora_only", modules_to_save=["lm_head"])
    assert set(changes) == {WEIGHT, "lm_head.weight", WEIGHT.replace("weight", "bias")}
    replacement = changes["lm_head.weight"].replacement
    assert replacement is not None
    assert replacement.shape == (9, 16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "ADAPTION_PROMPT"}, "ADAPTION_PROMPT adapter cannot be merged: its prompts join the attention"),
        ({"peft_type": "PREFIX_TUNING"}, "adds keys and values"),
        ({"peft_type": "IA3"}, "only LoRA and DoRA"),
        ({"init_lora_weights": "pissa"}, "changed the base's weights before the training"),
        ({"init_lora_weights": "olora"}, "changed the base's weights"),
        ({"target_parameters": ["experts.w1"]}, "target_parameters = "),
        ({"lora_bias": True}, "lora_bias = true"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"a_setting_of_next_year": True}, "a_setting_of_next_year"),
        ({"use_dora": True}, "contradict each other"),
    ],
)
def test_what_is_not_plain_lora_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        adapter(tmp_path, PAIR, **config)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.lora_A.weight": (4, 16)}, "lacks a part"),
        ({f"{Q}.lora_A.weight": (4, 16), f"{Q}.lora_B.weight": (16, 8)}, "no two matrices"),
        ({f"{Q}.lora_A.weight": (4, 16, 1, 1), f"{Q}.lora_B.weight": (16, 4, 1, 1)}, "no two matrices"),
        (PAIR | {f"{Q}.lora_C.weight": (4, 4)}, "of a kind that is not merged"),
    ],
)
def test_tensors_that_are_no_lora_are_refused(
    tensors: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        adapter(tmp_path, tensors)


@pytest.mark.parametrize("content", ["", "[]", "null"])
def test_a_broken_configuration_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(InputError, match=r"is not JSON|no adapter's configuration"):
        read_changes(tmp_path)


def test_an_adapter_without_safetensors_is_told(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(LORA))
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors"):
        read_changes(tmp_path)
