import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meta_parts import catalogue, count_parts, meta_model

from ftplan.errors import ModelConfigError
from ftplan.profiles.hf_config import FAMILIES, profile_from_config
from ftplan.profiles.models import load_model

ROWS = catalogue()
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 256,
    "intermediate_size": 128,
}


def profile(config, **changes):
    return profile_from_config({**config, **changes}, id="test", source="test")


def layer(config, **changes):
    return profile(config, **changes).layers[0]


def names(profile_layer):
    return [each.name for each in profile_layer.linears]


def config_of(slug):
    return ROWS[slug]["config"]


def test_every_family_of_the_catalogue_is_mapped():
    assert {row["config"]["model_type"] for row in ROWS.values()} <= set(FAMILIES)


def test_llama_by_hand():
    model = profile(LLAMA, num_key_value_heads=2)
    per_layer = 64 * 64 * 2 + 2 * 64 * 16 + 3 * 64 * 128 + 2 * 64
    assert model.total_params == 2 * 256 * 64 + 3 * per_layer + 64
    assert not model.tied
    assert model.checkpoint_dtype == "bf16"
    assert model.layers[0].attention.rotary_dim == 8


@pytest.mark.parametrize(
    ("changes", "added_per_layer"),
    [
        ({"attention_bias": True}, 4 * 64),
        ({"mlp_bias": True}, 2 * 128 + 64),
        ({"head_dim": 16}, 4 * 64 * 64),
        ({"num_key_value_heads": 1}, -2 * 64 * 56),
    ],
)
def test_llama_fields_change_what_they_should(changes, added_per_layer):
    assert layer(LLAMA, **changes).params - layer(LLAMA).params == added_per_layer


@pytest.mark.parametrize(
    ("slug", "modules"),
    [
        ("llama-2-7b", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_proj", "c_fc", "c_proj"]),
        ("gpt-j-6b", ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"]),
        ("pythia-1b", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        ("opt-1.3b", ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
        ("bloom-560m", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        ("falcon-7b", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        ("phi-2", ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]),
        ("phi-3-mini", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        ("starcoder2-3b", ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"]),
        ("qwen-7b", ["c_attn", "c_proj", "w1", "w2", "c_proj"]),
        ("baichuan2-7b", ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("chatglm3-6b", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        ("internlm2-7b", ["wqkv", "wo", "w1", "w3", "w2"]),
        ("mixtral-8x7b", ["q_proj", "k_proj", "v_proj", "o_proj"]),
    ],
)
def test_module_names_are_those_of_the_code(slug, modules):
    assert names(load_model(slug).layers[0]) == modules


@pytest.mark.parametrize(
    ("slug", "supports"),
    [
        ("llama-3.1-8b", {"sdpa", "eager", "flash_attention_2"}),
        ("gemma-2-9b", {"eager", "flash_attention_2"}),
        ("gpt-j-6b", {"eager", "flash_attention_2"}),
        ("gpt-oss-20b", {"eager"}),
        ("bloom-560m", {"eager"}),
        ("baichuan2-13b", {"eager"}),
        ("baichuan2-7b", {"sdpa"}),
        ("qwen-7b", {"sdpa", "flash_attention_2"}),
    ],
)
def test_attention_kernels(slug, supports):
    assert set(load_model(slug).layers[0].attention.supports) == supports


@pytest.mark.parametrize(
    ("slug", "windows"),
    [
        ("mistral-7b-v0.1", {4096: 32}),
        ("mistral-7b-v0.3", {None: 32}),
        ("gemma-2-2b", {4096: 13, None: 13}),
        ("gemma-3-1b", {512: 22, None: 4}),
        ("gemma-3-27b", {1024: 52, None: 10}),
        ("gpt-oss-20b", {128: 12, None: 12}),
        ("phi-3-mini", {2047: 32}),
        ("starcoder2-3b", {4096: 30}),
        ("qwen2.5-7b", {None: 28}),
    ],
)
def test_sliding_windows(slug, windows):
    assert {group.layer.attention.window: group.count for group in load_model(slug).groups} == windows


def test_qwen2_window_starts_at_max_window_layers():
    model = profile(config_of("qwen2-0.5b"), use_sliding_window=True, sliding_window=99, max_window_layers=20)
    assert [(group.count, group.layer.attention.window) for group in model.groups] == [(20, None), (4, 99)]


def test_layer_types_decide_over_the_default():
    types = ["sliding_attention", "full_attention", "full_attention"]
    model = profile(LLAMA, model_type="gemma3_text", layer_types=types, sliding_window=8, head_dim=8)
    assert [(group.count, group.layer.attention.window) for group in model.groups] == [(1, 8), (2, None)]


@pytest.mark.parametrize(
    "types", [["full_attention"], ["full_attention", "linear_attention", "full_attention"], "full"]
)
def test_bad_layer_types(types):
    with pytest.raises(ModelConfigError):
        profile(LLAMA, model_type="qwen3", layer_types=types)


def test_positions():
    attention = {slug: load_model(slug).layers[0].attention for slug in ROWS}
    assert {slug for slug, each in attention.items() if each.positions == "alibi"} == {
        "bloom-560m",
        "bloom-7b1",
        "baichuan2-13b",
    }
    assert {slug for slug, each in attention.items() if each.positions == "learned"} == {
        *(slug for slug in ROWS if slug.startswith(("gpt2", "opt-")))
    }
    rotary = {"pythia-1b": 64, "phi-2": 32, "phi-4-mini": 96, "chatglm2-6b": 64, "gpt-j-6b": 64, "deepseek-v3": 64}
    assert {slug: attention[slug].rotary_dim for slug in rotary} == rotary


def test_experts():
    model = load_model("deepseek-v3")
    dense, routed = model.groups
    assert (dense.count, routed.count) == (3, 58)
    assert dense.layer.mlp.experts is None
    experts = routed.layer.mlp.experts
    assert (experts.count, experts.per_token, experts.intermediate_size, experts.fused) == (256, 8, 2048, True)
    assert experts.params == 256 * 3 * 7168 * 2048
    assert [each.path for each in routed.layer.linears if each.part == "mlp"] == [
        "mlp.shared_experts.gate_proj",
        "mlp.shared_experts.up_proj",
        "mlp.shared_experts.down_proj",
    ]
    assert routed.layer.mlp.intermediate_size == 2048


def test_dense_layers_of_qwen3_moe():
    model = profile(config_of("qwen3-30b-a3b"), mlp_only_layers=[0, 5])
    assert [(group.count, group.layer.mlp.experts is None) for group in model.groups] == [(2, True), (46, False)]


def test_gpt_oss_sinks_are_parameters_of_attention():
    attention = load_model("gpt-oss-20b").layers[0].attention
    assert attention.sinks
    assert attention.extra_params == attention.heads


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        ("float16", "fp16"),
        ("torch.bfloat16", "bf16"),
        ("float32", "fp32"),
        (None, "bf16"),
        ("auto", "bf16"),
        (7, "bf16"),
    ],
)
def test_checkpoint_dtype(given_dtype, dtype):
    assert profile(LLAMA, torch_dtype=given_dtype).checkpoint_dtype == dtype
    assert profile(LLAMA, dtype=given_dtype).checkpoint_dtype == dtype


def test_published_gemma3_file_relies_on_class_defaults():
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    config = {**config_of("gemma-3-4b"), "text_config": {**text, "model_type": "gemma3_text"}}
    del config["tie_word_embeddings"]
    assert profile(config).total_params == ROWS["gemma-3-4b"]["total_params"]


def test_qwen_vl_with_a_nested_text_config():
    flat = config_of("qwen2.5-vl-7b")
    outer = {key: flat[key] for key in ("model_type", "architectures", "vision_config", "tie_word_embeddings")}
    nested = {**outer, "text_config": {key: value for key, value in flat.items() if key not in outer}}
    assert profile(nested).total_params == ROWS["qwen2.5-vl-7b"]["total_params"]


@pytest.mark.parametrize("model_type", ["granite", "smollm3", "brand_new", ""])
def test_unknown_type_of_llamas_shape(model_type):
    assert profile(LLAMA, model_type=model_type).total_params == profile(LLAMA).total_params


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 8},
        {"num_local_experts": 8, "num_experts_per_tok": 2},
        {"moe_intermediate_size": 64},
        {"kv_lora_rank": 16},
        {"mamba_d_state": 16},
        {"ssm_state_size": 16},
        {"conv_kernel": 4, "state_size": 8},
        {"linear_conv_kernel_dim": 4},
        {"layers_block_type": ["mamba"]},
        {"vision_config": {"depth": 2}},
        {"text_config": {"hidden_size": 8}},
        {"is_encoder_decoder": True},
        {"alibi": True},
        {"parallel_attn": True},
        {"use_qk_norm": True},
        {"layer_norm_eps": 1e-5},
        {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
        {"model_type": "cohere"},
        {"model_type": "glm4"},
    ],
)
def test_unknown_type_with_a_sign_of_another_shape_is_refused(changes):
    with pytest.raises(ModelConfigError):
        profile({**LLAMA, "model_type": "brand_new"}, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "abc"},
        {"hidden_size": -8},
        {"hidden_size": 0},
        {"hidden_size": 64.0},
        {"hidden_size": True},
        {"hidden_size": [64]},
        {"hidden_size": 60},
        {"num_attention_heads": 7},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 0},
        {"num_hidden_layers": 10**9},
        {"vocab_size": {}},
        {"attention_bias": "yes"},
        {"tie_word_embeddings": 1},
        {"model_type": 5},
        {"model_type": "mistral", "sliding_window": "wide"},
        {"rope_parameters": 3},
        {"rope_parameters": {"partial_rotary_factor": 2.5}},
        {"model_type": "gpt2", "n_positions": None},
        {"model_type": "opt", "word_embed_proj_dim": 32, "max_position_embeddings": 8},
        {"model_type": "gemma3"},
        {"model_type": "qwen2_vl"},
        {"model_type": "qwen2_vl", "vision_config": []},
        {"model_type": "mixtral", "num_local_experts": -1},
        {"model_type": "deepseek_v2"},
        {"model_type": "chatglm", "multi_query_attention": True},
        {"model_type": "qwen", "intermediate_size": 127},
    ],
)
def test_bad_configs_are_refused(changes):
    with pytest.raises(ModelConfigError) as caught:
        profile(LLAMA, **changes)
    assert str(caught.value)


@pytest.mark.parametrize("config", [[], None, "llama", 3])
def test_a_config_that_is_no_object(config):
    with pytest.raises(ModelConfigError):
        profile_from_config(config, id="test", source="test")


@pytest.mark.parametrize("slug", ["llama-2-7b", "gpt2", "falcon-7b", "gemma-3-4b", "qwen2.5-vl-7b", "deepseek-v2-lite"])
def test_missing_fields_are_all_listed(slug):
    config = config_of(slug)
    with pytest.raises(ModelConfigError) as caught:
        profile({"model_type": config["model_type"]})
    assert caught.value.missing


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_config_maps_or_raises_one_error(data):
    config = dict(config_of(data.draw(st.sampled_from(sorted(ROWS)))))
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3, unique=True)):
        if data.draw(st.booleans()):
            del config[key]
        else:
            config[key] = data.draw(ANYTHING)
    try:
        model = profile_from_config(config, id="test", source="test")
    except ModelConfigError:
        return
    assert model.total_params > 0


@settings(max_examples=100, deadline=None)
@given(
    heads=st.integers(1, 16),
    dim=st.integers(1, 64).map(lambda half: 2 * half),
    layers=st.integers(1, 40),
    width=st.integers(1, 512),
    vocab=st.integers(1, 5000),
)
def test_total_grows_by_one_layer_and_one_token(heads, dim, layers, width, vocab):
    config = {**LLAMA, "num_attention_heads": heads, "hidden_size": heads * dim, "intermediate_size": width}
    model = profile(config, num_hidden_layers=layers, vocab_size=vocab)
    deeper = profile(config, num_hidden_layers=layers + 1, vocab_size=vocab)
    wider = profile(config, num_hidden_layers=layers, vocab_size=vocab + 1)
    assert deeper.total_params - model.total_params == model.layers[0].params
    assert wider.total_params - model.total_params == 2 * heads * dim


LIVE = {
    "llama": {**LLAMA, "architectures": ["LlamaForCausalLM"], "attention_bias": True, "num_key_value_heads": 2},
    "mistral": {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral"},
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "vocab_size": 100,
    },
    "falcon": {
        **LLAMA,
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "parallel_attn": False,
        "multi_query": False,
        "bias": True,
        "alibi": True,
        "intermediate_size": 256,
    },
    "gemma3": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {**LLAMA, "model_type": "gemma3_text", "head_dim": 16, "num_key_value_heads": 2},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
    },
    "mixtral": {**LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4},
    "deepseek_v2": {**config_of("deepseek-v2-lite"), "num_hidden_layers": 3, "q_lora_rank": 32, "vocab_size": 100},
    "phi": {**config_of("phi-2"), "qk_layernorm": True, "num_hidden_layers": 2, "vocab_size": 100},
}


@pytest.mark.parametrize("family", LIVE)
def test_parts_agree_with_transformers_now_installed(family):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = LIVE[family]
    assert count_parts(meta_model(json.loads(json.dumps(config)))) == dict(profile(config).params_by_part)


def test_bitsandbytes_replaces_all_linears_but_falcons():
    # As replace_with_bnb_linear of transformers 5.23 does: it compares types exactly, and FalconLinear is a subclass.
    quantizable = {slug: all(each.quantizable for each in load_model(slug).layers[0].linears) for slug in ROWS}
    assert {slug for slug, is_replaced in quantizable.items() if not is_replaced} == {"falcon-7b", "falcon-40b"}


def test_profiles_compare_by_value():
    model = profile(LLAMA)
    assert model == profile(LLAMA)
    assert model != replace(model, tied=True)
