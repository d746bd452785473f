import json
import timeit

import pytest
from meta_lora import CASES, DATA, count_trainable

from ftplan.errors import InputError
from ftplan.estimators.params import (
    active_params,
    expert_targets,
    layer_targets,
    params_by_part,
    target_modules,
    targeted_linears,
    total_params,
    trainable_params,
)
from ftplan.profiles.models import list_models, load_model
from ftplan.spec import RunConfig

MEASURED = json.loads(DATA.read_text("utf-8"))["cases"]


def config(**changes):
    return RunConfig(model="any", **changes)


def lora(targets, rank=16):
    return config(lora_targets=targets, lora_rank=rank)


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: f"{case['model']}-{case['lora_targets']}")
def test_trainable_params_are_pefts(case):
    wanted = lora(case["lora_targets"], case["lora_rank"])
    assert trainable_params(load_model(case["model"]), wanted) == case["trainable_params"]


def test_every_case_is_measured():
    assert [(case["model"], case["lora_targets"], case["lora_rank"]) for case in MEASURED] == list(CASES)


def test_published_figure():
    assert trainable_params(load_model("Qwen/Qwen2.5-7B"), lora("all-linear", 16)) == 40_370_176


def test_full_trains_everything():
    model = load_model("gpt2")
    assert trainable_params(model, config(method="full")) == total_params(model) == sum(params_by_part(model).values())


@pytest.mark.parametrize("entry", list_models(), ids=lambda entry: entry.id)
@pytest.mark.parametrize("targets", ["all-linear", "qv"])
def test_every_model_has_targets(entry, targets):
    model, wanted = load_model(entry.id), lora(targets)
    linears = sum(count * (each.in_features + each.out_features) for count, each in targeted_linears(model, wanted))
    experts = sum(
        group.count * each.params_per_rank for group in model.groups for each in expert_targets(group.layer, wanted)
    )
    assert 0 < trainable_params(model, wanted) == 16 * (linears + experts)
    assert trainable_params(model, lora(targets, 32)) == 2 * trainable_params(model, wanted)
    by_layer = sum(group.count * len(layer_targets(group.layer, wanted)) for group in model.groups)
    assert by_layer == sum(count for count, each in targeted_linears(model, wanted) if each.part != "vision")


@pytest.mark.parametrize("entry", list_models(), ids=lambda entry: entry.id)
def test_qv_is_the_names_it_stands_for(entry):
    model = load_model(entry.id)
    names = ",".join(target_modules(model, lora("qv")))
    assert trainable_params(model, lora("qv")) == trainable_params(model, lora(names))


@pytest.mark.parametrize(
    ("slug", "modules"),
    [
        ("llama-2-7b", ("q_proj", "v_proj")),
        ("phi-2", ("q_proj", "v_proj")),
        ("gpt2", ("c_attn",)),
        ("phi-3-mini", ("qkv_proj",)),
        ("pythia-1b", ("query_key_value",)),
        ("baichuan2-7b", ("W_pack",)),
        ("internlm2-7b", ("wqkv",)),
        ("deepseek-v2-lite", ("q_proj", "kv_b_proj")),
        ("deepseek-v3", ("q_b_proj", "kv_b_proj")),
    ],
)
def test_what_qv_stands_for(slug, modules):
    assert target_modules(load_model(slug), lora("qv")) == modules


def test_targets_of_a_layer():
    layer = load_model("deepseek-v2-lite").groups[1].layer
    wanted = lora("all-linear")
    assert [each.name for each in layer_targets(layer, wanted)] == [
        "q_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "o_proj",
    ]
    assert [(each.weight.name, each.copies, each.rank_factor) for each in expert_targets(layer, wanted)] == [
        ("gate_up_proj", 64, 2),
        ("down_proj", 64, 1),
        ("gate", 1, 1),
    ]


@pytest.mark.parametrize(
    ("slug", "targets", "message", "hint"),
    [
        ("qwen2.5-7b", "q_prj", "q_prj", "q_proj"),
        ("qwen2.5-7b", "q_proj,c_attn", "c_attn", "down_proj"),
        ("qwen2.5-7b", "lm_head", "not modelled", "all-linear"),
        ("qwen2.5-7b", "proj", "'proj'", "q_proj"),
        ("mixtral-8x7b", "gate_proj", "gate_proj", "w1"),
        ("qwen3-30b-a3b", "gate_proj", "without up_proj", "add up_proj"),
        ("gpt-oss-20b", "experts", "experts", "o_proj"),
    ],
)
def test_names_that_match_nothing(slug, targets, message, hint):
    with pytest.raises(InputError, match=message) as caught:
        trainable_params(load_model(slug), lora(targets))
    assert hint in caught.value.hint
    assert caught.value.field == "lora_targets"
    assert layer_targets(load_model(slug).layers[0], lora("no_such_module")) == ()


def test_fast_enough_for_a_search():
    model, wanted = load_model("qwen2.5-7b"), lora("all-linear")
    assert min(timeit.repeat(lambda: trainable_params(model, wanted), number=1000, repeat=5)) / 1000 < 20e-6


@pytest.mark.parametrize(
    ("slug", "targets"),
    [("gpt2", "all-linear"), ("pythia-160m", "dense"), ("gemma-3-1b", "qv"), ("qwen3-30b-a3b", "all-linear")],
)
@pytest.mark.filterwarnings("ignore")
def test_agrees_with_peft_now_installed(slug, targets):
    for library in ("torch", "transformers", "peft"):
        pytest.importorskip(library)
    model = load_model(slug)
    small = {**json.loads(json.dumps(dict(model.config))), "num_hidden_layers": 2, "n_layer": 2}
    small.pop("layer_types", None)
    names = ",".join(target_modules(model, lora(targets)))
    per_layer = trainable_params(model, lora(targets, 4)) // model.layer_count
    assert count_trainable(small, names, 4) == 2 * per_layer


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Mixtral-8x7B", 12.9),
        ("Mixtral-8x22B", 39.2),
        ("DeepSeek-V3", 37.6),
        ("Qwen3-30B-A3B", 3.35),
        ("Qwen3-235B", 22.2),
    ],
)
def test_active_parameters_are_those_that_the_authors_tell(name, billions):
    assert active_params(load_model(name)) == pytest.approx(billions * 1e9, rel=0.004)


def test_without_experts_all_parameters_are_active():
    model = load_model("Qwen2.5-7B")
    assert active_params(model) == total_params(model)
