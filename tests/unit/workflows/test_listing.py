from dataclasses import fields

import pytest

from ftplan.errors import InputError
from ftplan.profiles import store
from ftplan.profiles.calibration import Calibration, DeviceFigures
from ftplan.profiles.gpus import list_gpus, load_gpu
from ftplan.profiles.models import list_models, load_model
from ftplan.units import MIB
from ftplan.workflows.listing_gpus import GpuRow, find_gpus, gpus_document
from ftplan.workflows.listing_models import ModelRow, find_models, models_document


def ids(*search, **limits):
    return [row.id for row in find_models(search, **limits).rows]


def names(*search, **limits):
    return [row.name for row in find_gpus(search, **limits).rows]


def test_without_words_every_model_is_found_by_family_and_size():
    rows = find_models().rows
    assert len(rows) == len(list_models())
    assert [(row.model_type, row.total_params) for row in rows] == sorted(
        (row.model_type, row.total_params) for row in rows
    )


def test_all_words_have_to_match_in_any_case_and_place():
    assert ids("QWEN2.5", "14b") == ids("qwen2.5 14B") == ids("n2.5-14b") == ["Qwen/Qwen2.5-14B"]
    assert ids("qwen2.5", "mixtral") == []


@pytest.mark.parametrize("word", ["qwq-32b", "Qwen2.5-Coder-32B-Instruct", "qwen25-32b", "Qwen/Qwen2.5-32B"])
def test_every_name_of_a_model_finds_it(word):
    assert ids(word) == ["Qwen/Qwen2.5-32B"]


def test_architectures_are_searched_as_well():
    assert ids("GptOssForCausalLM") == ids("gpt_oss") == ["openai/gpt-oss-20b", "openai/gpt-oss-120b"]


@pytest.mark.parametrize("entry", list_models(), ids=lambda entry: entry.id)
def test_a_row_agrees_with_the_profile(entry):
    (row,) = (row for row in find_models((entry.id,)).rows if row.id == entry.id)
    model = load_model(entry.id)
    assert (row.total_params, row.layers, row.vocab_size) == (entry.total_params, model.layer_count, model.vocab_size)
    assert row.weights_16bit_bytes == 2 * entry.total_params
    assert row.total_params / 2 < row.weights_4bit_bytes <= row.weights_16bit_bytes
    assert 0 < row.active_params <= row.total_params
    assert all(load_model(name).id == entry.id for name in row.names)


def test_limits_of_parameters_are_inclusive():
    exact = str(load_model("Qwen2.5-7B").total_params)
    assert "Qwen/Qwen2.5-7B" in ids(min_params=exact, max_params=exact)
    assert ids("meta-llama", "8b", max_params="8B") == []
    assert ids("meta-llama", "8b", max_params="8.1B") == ["meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3-8B"]
    assert all(row.total_params < 500_000_000 for row in find_models(max_params="500M").rows)


def test_a_model_that_is_missing_gets_near_names():
    listing = find_models(("Qwen2.5-8B",))
    assert listing.rows == ()
    assert listing.hint.startswith("did you mean qwen2.5-7b, ")


def test_limits_that_exclude_all_are_named():
    assert find_models(("mixtral",), max_params="1B").hint == "2 found without --min-params and --max-params"
    assert find_gpus(("t4",), min_memory="80GB").hint == "1 found without --min-memory"


@pytest.mark.parametrize("text", ["", "seven", "7GB", "-1B"])
def test_limits_that_are_none_are_refused(text):
    with pytest.raises(InputError) as caught:
        find_models(max_params=text)
    assert (caught.value.field, caught.value.hint) == ("max_params", "for example 7B or 500M")


def test_without_words_every_card_is_found_in_the_catalogue_s_order():
    assert names() == list(list_gpus())


@pytest.mark.parametrize("words", [("rtx4090d",), ("RTX 4090 D",), ("rtx-4090-d",), ("NVIDIA GeForce RTX 4090 D",)])
def test_cards_are_found_by_words_and_by_every_spelling_of_inventories(words):
    assert names(*words) == ["RTX4090D"]


def test_makers_are_words_as_well():
    assert {row.kind for row in find_gpus(("amd",)).rows} == {"rocm"}
    assert {row.kind for row in find_gpus(("nvidia",)).rows} == {"cuda"}


def test_a_size_finds_its_class_and_the_cards_that_are_called_so():
    assert names("80GB")[0] == "80GB"
    assert set(names("80GB")[1:]) >= {"A100-80GB-PCIe", "H100-SXM"}
    (row,) = find_gpus(("24gb",)).rows
    assert (row.link, row.dollars_per_hour, row.provenance) == ("PCIe", None, "assumed")
    assert row.memory_bytes == load_gpu("24GB").memory_bytes


def test_memory_is_at_least_what_was_asked_for():
    assert names(min_memory="24GB") == [name for name in list_gpus() if load_gpu(name).memory_bytes >= 24 * 10**9]


@pytest.mark.parametrize(
    ("name", "link", "rate"),
    [("H100-SXM", "NVLink", 450e9), ("MI300X", "Infinity Fabric", 448e9), ("RTX3090", "PCIe", 31.5e9)],
)
def test_a_link_is_nvlink_or_fabric_or_else_pcie(name, link, rate):
    row = next(row for row in find_gpus((name,)).rows if row.name == name)
    assert (row.link, row.link_bytes_per_second) == (link, rate)


def test_what_this_user_calibrated_is_in_its_place():
    figures = DeviceFigures(context_bytes=600 * MIB, memory_bytes_per_second=1e12, link_bytes_per_second=1e9)
    before = {row.name: row for row in find_gpus().rows}
    store.keep_calibration(Calibration("H100-SXM", "580", "2.11.0", "2026-11-22T10:00:00+00:00", figures))
    after = {row.name: row for row in find_gpus().rows}
    assert [name for name in after if after[name] != before[name]] == ["H100-SXM"]
    row = after["H100-SXM"]
    assert (before["H100-SXM"].provenance, row.provenance) == ("measured", "calibrated")
    assert row.calibrated.figures == ("context", "memory bandwidth")
    assert row.memory_bytes_per_second < before["H100-SXM"].memory_bytes_per_second
    assert row.link_bytes_per_second == before["H100-SXM"].link_bytes_per_second
    assert find_gpus(("nvidia-h100-sxm5",)).rows == (row,)


def test_a_card_that_is_missing_gets_near_names():
    assert find_gpus(("RTX4900",)).hint.startswith("did you mean RTX4090")


@pytest.mark.parametrize("text", ["", "lots", "24", "0GB", "-1GB"])
def test_memory_that_is_none_is_refused(text):
    with pytest.raises(InputError) as caught:
        find_gpus(min_memory=text)
    assert (caught.value.field, caught.value.hint) == ("min_memory", "for example 24GB")


def test_documents_hold_the_rows_with_integers():
    for key, document, row in (
        ("models", models_document(find_models()), ModelRow),
        ("gpus", gpus_document(find_gpus()), GpuRow),
    ):
        assert list(document) == [key]
        assert all(list(each) == [field.name for field in fields(row)] for each in document[key])
        numbers = [
            value for each in document[key] for name, value in each.items() if "bytes" in name or "params" in name
        ]
        assert {type(value) for value in numbers} == {int}
