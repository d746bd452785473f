"""The trace as an `Estimate`: the same document as the analytic one, with its figures traced."""

import json

import pytest

from ftplan.errors import InputError, ModelConfigError
from ftplan.estimators import analytic
from ftplan.estimators.trace.estimate import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.hf_config import profile_from_config
from ftplan.profiles.models import load_hf_config, load_model
from ftplan.results import Phase, Provenance, Timeline
from ftplan.spec import RunConfig

MODEL = "SmolLM2-135M"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FTPLAN_CACHE", str(tmp_path_factory.getbasetemp() / "traces"))


def traced(gpus="1xH100-80GB", model=MODEL, **fields):
    config = RunConfig(model=model, **{"seq_len": 512, **fields})
    return estimate(config, load_model(model), load_hf_config(model), resolve_inventory(parse_inventory(gpus)))


def test_its_figures_agree_with_one_another():
    told = traced(method="full")
    assert told.estimator == "trace"
    assert told.provenance is Provenance.TRACED
    timeline = Timeline(told.terms)
    assert timeline.peak == (told.peak_phase, told.peak_allocated_bytes)
    assert told.peak_allocated_bytes <= told.peak_reserved_bytes <= told.process_bytes
    assert set(timeline.by_phase) == set(Phase)
    assert any("traced 4 of 30 layers" in note for note in told.notes)


def test_parameters_are_those_of_the_profile():
    model = load_model(MODEL)
    for fields in ({}, {"method": "full"}, {"lora_targets": "qv", "lora_rank": 8}):
        told, first = traced(**fields), analytic_of(model, **fields)
        assert told.total_params == first.total_params
        assert told.trainable_params == first.trainable_params


def analytic_of(model, **fields):
    cluster = resolve_inventory(parse_inventory("1xH100-80GB"))
    return analytic.estimate(RunConfig(model=MODEL, seq_len=512, **fields), model, cluster)


def test_an_older_card_has_a_smaller_workspace_and_another_attention():
    hopper, ampere = traced(), traced("1xA100-80GB")
    parts = [next(term.bytes for term in told.terms if term.name == "workspace") for told in (hopper, ampere)]
    assert parts[0] == 64 << 20
    assert parts[1] < 20 << 20


def test_unequal_cards_are_traced_each():
    told = traced("1xA100-80GB+1xH100-80GB", sharding="ddp")
    assert [rank.device for rank in told.ranks] == ["A100-80GB-SXM", "H100-SXM"] or len(told.ranks) == 2
    assert told.ranks[0].peak_allocated_bytes != told.ranks[1].peak_allocated_bytes


def test_query_and_value_by_whatever_name():
    """GPT-2 has one projection for both and the key."""
    told = traced(model="gpt2", lora_targets="qv", seq_len=128)
    assert told.trainable_params == 12 * 16 * (768 + 3 * 768)


def test_targets_that_no_module_has():
    config = RunConfig(model="small", seq_len=128, lora_targets="wq")
    cluster = resolve_inventory(parse_inventory("1xA100-80GB"))
    with pytest.raises(InputError, match="lora_targets"):
        estimate(config, None, load_hf_config("gpt2"), cluster)


def test_a_card_that_is_too_small():
    assert not traced("1x8GB", method="full", seq_len=2048, micro_batch=16).fits


def test_cpus_have_no_such_allocator():
    with pytest.raises(InputError, match="CPU"):
        traced("1xcpu:8GB")


def test_an_architecture_the_catalogue_lacks(tmp_path):
    """Only its config.json is known: StableLM, with partial rotary embeddings and LayerNorm."""
    shape = {
        "model_type": "stablelm",
        "vocab_size": 5000,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 1024,
        "partial_rotary_factor": 0.25,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    cluster = resolve_inventory(parse_inventory("1xA100-80GB"))
    config = RunConfig(model=str(tmp_path), method="full", seq_len=256)
    with pytest.raises(ModelConfigError):
        load_model(str(tmp_path))
    told = estimate(config, None, load_hf_config(str(tmp_path)), cluster)
    assert told.step_seconds > 0
    assert told.host.peak_bytes > 2 * told.total_params
    assert told.trainable_params == told.total_params > 2 * 5000 * 512
    assert told.peak_allocated_bytes > 8 * told.total_params


def test_the_config_is_the_catalogues():
    assert profile_from_config(load_hf_config(MODEL), id="x", source="x").layer_count == load_model(MODEL).layer_count
