import json
import os
import time
import urllib.error
import urllib.request
from email.message import Message
from io import BytesIO
from pathlib import Path

import pytest
from meta_parts import DATA, catalogue

from ftplan.errors import InputError, ModelConfigError, UnknownNameError
from ftplan.profiles import hub
from ftplan.profiles.model_schema import PARTS
from ftplan.profiles.models import ModelEntry, hub_id, list_models, load_model

ROWS = catalogue()
PARTS_OF = json.loads(DATA.read_text("utf-8"))["parts"]
TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "intermediate_size": 16,
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    tokens = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN")
    caches = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", *tokens, *caches):
        monkeypatch.delenv(name, raising=False)


def names(row):
    return [row["id"], *row["aliases"], *row.get("same_shape_ids", ())]


def test_catalogue_is_whole():
    assert len(ROWS) == 116
    assert sum(len(names(row)) for row in ROWS.values()) > 400


@pytest.mark.parametrize("slug", ROWS)
def test_total_is_exact_by_every_name(slug):
    row = ROWS[slug]
    for name in [slug, *names(row)]:
        for spelling in (name, name.lower(), name.upper()):
            assert load_model(spelling).total_params == row["total_params"], spelling


@pytest.mark.parametrize("slug", ROWS)
def test_breakdown_is_the_catalogues(slug):
    model, wanted = load_model(slug), ROWS[slug]["param_breakdown"]
    parts = model.params_by_part
    assert parts["embedding"] - model.position_params == wanted["input_embedding"]
    assert parts["head"] == wanted["lm_head"]
    assert parts["vision"] == wanted.get("vision", 0)
    assert model.tied == wanted["tied"]
    assert sum(parts.values()) == model.total_params


@pytest.mark.parametrize("slug", PARTS_OF)
def test_parts_are_those_of_the_real_modules(slug):
    wanted = dict(PARTS_OF[slug])
    if slug == "deepseek-v3":
        # The published total counts the router's correction bias, which transformers holds as a buffer.
        wanted["mlp"] += 58 * 256
    assert dict(load_model(slug).params_by_part) == wanted


def test_parts_are_known_for_every_model_transformers_has():
    without_class = {slug for slug in ROWS if slug.startswith(("qwen-", "baichuan", "chatglm", "glm-4", "internlm2"))}
    assert set(PARTS_OF) == set(ROWS) - without_class


@pytest.mark.parametrize("slug", ROWS)
def test_profile_is_consistent(slug):
    model = load_model(slug)
    assert model.layer_count == len(model.layers)
    assert model.architecture == ROWS[slug]["config"]["architectures"][0]
    assert model.checkpoint_dtype in {"bf16", "fp16", "fp32"}
    assert set(model.params_by_part) == set(PARTS)
    for group in model.groups:
        attention, linears = group.layer.attention, group.layer.linears
        assert set(attention.supports) <= {"sdpa", "eager", "flash_attention_2"}
        assert attention.supports
        output = next(each for each in linears if each.reads == "attn_out")
        assert output.in_features == attention.heads * attention.value_dim
        assert output.out_features == model.hidden_size
        assert len({each.path for each in linears}) == len(linears)
        assert 0 <= attention.rotary_dim <= attention.head_dim


def test_same_profile_for_every_name():
    assert load_model("qwen2.5-7b") is load_model("QWEN/QWEN2.5-7B-INSTRUCT")
    assert {load_model("gpt2"): 1}[load_model("openai-community/gpt2")] == 1


def test_list_models_is_cheap_and_complete():
    started = time.perf_counter()
    entries = list_models()
    assert time.perf_counter() - started < 0.1
    assert entries[0].__class__ is ModelEntry
    assert {entry.id for entry in entries} == {row["id"] for row in ROWS.values()}
    assert {entry.total_params for entry in entries} == {row["total_params"] for row in ROWS.values()}


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("qwen/qwen2.5-7b-INSTRUCT", "Qwen/Qwen2.5-7B-Instruct"),
        ("somebody/else", "somebody/else"),
        ("./gpt2", "./gpt2"),
    ],
)
def test_hub_id(name, repository):
    assert hub_id(name) == repository


def test_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        load_model("lama-3-8b")
    assert "llama-3-8b" in caught.value.hint.lower()
    assert "config.json" in caught.value.hint
    assert caught.value.field == "model"


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_path_to_a_config_or_a_folder(tmp_path, monkeypatch):
    file = write(tmp_path / "config.json", TINY)
    assert load_model(file).total_params == load_model(str(tmp_path)).total_params
    monkeypatch.chdir(tmp_path.parent)
    assert load_model(f"./{tmp_path.name}").hidden_size == 8
    assert load_model(tmp_path.name).hidden_size == 8
    assert load_model(write(tmp_path / "other-name.json", TINY)).hidden_size == 8


def test_catalogue_name_wins_over_a_folder_and_dot_slash_over_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("gpt2", "Qwen/Qwen2.5-7B"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "config.json", TINY)
        assert load_model(folder).total_params > 10**8
        assert load_model(f"./{folder}").hidden_size == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1, 2]", "JSON list"),
        ("null", "JSON NoneType"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_bad_file_is_one_clear_error(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        load_model(write(tmp_path / "config.json", content))
    assert caught.value.hint


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot be read"):
        load_model(str(tmp_path))


def test_folder_without_config_and_missing_path(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        load_model("./no-such-folder")


def test_incomplete_file_names_what_is_missing(tmp_path):
    with pytest.raises(ModelConfigError) as caught:
        load_model(write(tmp_path / "config.json", {"model_type": "llama", "hidden_size": 8}))
    assert caught.value.missing == ("num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs file modes")
def test_unreadable_file(tmp_path):
    file = Path(write(tmp_path / "config.json", TINY))
    file.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        load_model(str(file))


@pytest.mark.parametrize(
    "name", ["", "  ", "a/b/c", "bad name/x", "\x00", "x" * 5000, "~no-such-user/model", "/" + "x" * 5000]
)
def test_odd_names_are_unknown(name):
    with pytest.raises(InputError):
        load_model(name)


def cache_config(home, repository, snapshot, config):
    folder = home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / snapshot
    folder.mkdir(parents=True)
    write(folder / "config.json", config)
    return folder.parents[1]


def test_hub_id_from_the_local_cache(tmp_path):
    home = tmp_path / "hf_home"
    root = cache_config(home, "some/model", "old", TINY)
    cache_config(home, "some/model", "new", {**TINY, "vocab_size": 64})
    (root / "refs").mkdir()
    write(root / "refs" / "main", "old")
    assert load_model("some/model").vocab_size == 32
    write(root / "refs" / "main", "new")
    assert load_model("some/model").vocab_size == 64


def test_offline_says_so_without_the_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnknownNameError) as caught:
        load_model("Qwen/Qwen2.5-7B-Instrukt")
    assert "HF_HUB_OFFLINE" in caught.value.hint
    assert "Qwen/Qwen2.5-7B-Instruct" in caught.value.hint
    assert "path of a config.json" in caught.value.hint


def answer_with(monkeypatch, answer):
    seen = []

    def urlopen(request, timeout):
        seen.append((request, timeout))
        if isinstance(answer, Exception):
            raise answer
        return BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return seen


def test_config_is_fetched_from_the_hub(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/")
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen = answer_with(monkeypatch, json.dumps(TINY).encode())
    model = load_model("some/model")
    request, timeout = seen[0]
    assert model.id == "some/model"
    assert model.source == request.full_url == "https://hub.example/some/model/resolve/main/config.json"
    assert request.unredirected_hdrs["Authorization"] == "Bearer secret"
    assert timeout <= 10


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (urllib.error.URLError("no route to host"), "no route to host"),
        (TimeoutError("timed out"), "timed out"),
        (urllib.error.HTTPError("u", 404, "nope", Message(), None), "no config.json"),
        (urllib.error.HTTPError("u", 401, "nope", Message(), None), "gated"),
        (urllib.error.HTTPError("u", 503, "busy", Message(), None), "503"),
    ],
)
def test_failed_fetch_names_reason_and_way_out(monkeypatch, error, said):
    answer_with(monkeypatch, error)
    with pytest.raises(UnknownNameError) as caught:
        load_model("some/model")
    assert said in caught.value.hint
    assert "path of a config.json" in caught.value.hint


def test_answer_that_is_no_json(monkeypatch):
    answer_with(monkeypatch, b"<html>sign in</html>")
    with pytest.raises(InputError, match="not valid JSON"):
        load_model("some/model")


def test_endpoint_must_be_a_web_address(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(InputError, match="no web address"):
        hub.config_text("some/model")


def test_the_token_is_that_of_huggingface_hub(monkeypatch, tmp_path):
    assert hub.token() == ""
    (tmp_path / "hf_home").mkdir()
    write(tmp_path / "hf_home" / "token", "of the login\n")
    assert hub.token() == "of the login"
    write(tmp_path / "elsewhere", "elsewhere")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "elsewhere"))
    assert hub.token() == "elsewhere"
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "older name")
    assert hub.token() == "older name"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert hub.token() == "secret"


def test_the_cache_is_that_of_huggingface_hub(monkeypatch, tmp_path):
    assert hub.hub_cache() == tmp_path / "hf_home" / "hub"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.hub_cache() == tmp_path / "huggingface" / "hub"
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", "/older")
    assert hub.hub_cache() == Path("/older")
    monkeypatch.setenv("HF_HUB_CACHE", "$XDG_CACHE_HOME/named")
    assert hub.hub_cache() == tmp_path / "named"


def test_a_name_too_long_for_a_folder_is_not_cached():
    assert hub.cached_config("owner/" + "x" * 5000) is None
