"""The JSON that scripts rely on: DESIGN's "Interface that scripts rely on"."""

import json

import pytest

from ftplan.results import Phase, Plan, from_json
from ftplan.spec import RunConfig

ESTIMATE_KEYS = {
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "process_bytes",
    "host_bytes",
    "capacity_bytes",
    "fits",
    "peak_phase",
    "step_seconds",
    "tokens_per_second",
    "total_params",
    "trainable_params",
    "provenance",
    "terms",
    "ranks",
    "host",
}
TERM_KEYS = {"name", "bytes", "alive", "reason", "source"}
PLAN_KEYS = {"config", "estimate", "reasons", "alternatives", "rejections", "global_batch", "search"}

ESTIMATE = ("estimate", "--model", "Qwen-7B", "--gpus", "2x24GB")
PLAN = ("plan", "--model", "Qwen-7B", "--gpus", "2x24GB")


def test_an_estimate_has_what_scripts_rely_on(cli):
    answer = cli(*ESTIMATE, "--json")
    assert answer.code == 0
    assert answer.err == ""
    assert set(answer.document) >= ESTIMATE_KEYS
    for term in answer.document["terms"]:
        assert set(term) >= TERM_KEYS
        assert set(term["alive"]) <= set(Phase)


def test_an_estimate_says_what_it_was_made_for(cli):
    config = cli(*ESTIMATE, "--micro-batch", "2", "--json").document["config"]
    assert RunConfig.model_validate(config).micro_batch == 2


def test_every_rank_is_there_and_the_worst_one_speaks(cli):
    document = cli("estimate", "--model", "Qwen-7B", "--gpus", "1xRTX4090+1xRTX3090:20GB", "--json").document
    assert [rank["device"] for rank in document["ranks"]] == ["RTX4090", "RTX3090"]
    assert document["capacity_bytes"] == 20 * 10**9


def leaves(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, name)
    else:
        yield name, value


@pytest.mark.parametrize("arguments", [ESTIMATE, PLAN])
def test_sizes_are_integers_in_bytes_and_times_numbers_in_seconds(cli, arguments):
    found = dict.fromkeys(("bytes", "seconds"), 0)
    for name, value in leaves(cli(*arguments, "--json").document):
        if name.endswith("bytes"):
            found["bytes"] += 1
            assert value is None or type(value) is int
        if name.endswith("_seconds"):
            found["seconds"] += 1
            assert isinstance(value, float)
        assert not name.endswith(("_gb", "_gib", "_ms"))
    assert all(found.values())


def test_a_plan_has_what_scripts_rely_on(cli):
    answer = cli(*PLAN, "--json")
    assert answer.code == 0
    assert answer.err == ""
    document = answer.document
    assert set(document) >= PLAN_KEYS
    assert set(document["estimate"]) >= ESTIMATE_KEYS
    assert set(document["search"]) == {"candidates", "seconds", "estimated"}
    assert document["global_batch"] == 32
    assert all(set(reason) == {"field", "value", "because", "compared"} for reason in document["reasons"])
    RunConfig.model_validate(document["config"])
    for one in document["alternatives"]:
        RunConfig.model_validate(one["config"])


def test_without_a_plan_config_is_null_and_the_nearest_miss_comes_first(cli):
    answer = cli("plan", "--model", "Qwen-7B", "--gpus", "1x1GB", "--json")
    assert answer.code == 1
    document = answer.document
    assert document["config"] is None
    lacking = [
        one["rejection"]["needed_bytes"] - one["rejection"]["available_bytes"]
        for one in document["rejections"]
        if one["rejection"]["needed_bytes"] is not None
    ]
    assert lacking == sorted(lacking)
    assert lacking[0] > 0


def test_a_plan_on_stdout_is_the_plan(cli):
    assert from_json(Plan, cli(*PLAN, "--json").out).config.model == "Qwen-7B"


def test_a_dry_run_has_the_command_and_the_files(cli, data):
    answer = cli("run", "--demo", "--data", data, "--dry-run", "--json")
    assert answer.code == 0
    assert answer.err == ""
    document = answer.document
    assert set(document) >= {"argv", "env", "files"}
    assert all(isinstance(word, str) for word in document["argv"])
    job = next(text for path, text in document["files"].items() if path.endswith("job.json"))
    assert json.loads(job)["config"]["method"] == "lora"


@pytest.mark.parametrize("arguments", [ESTIMATE, PLAN])
def test_stdout_holds_one_document_and_nothing_else(cli, arguments):
    answer = cli(*arguments, "--json")
    assert answer.out.startswith("{")
    assert answer.out.endswith("}\n")
    json.loads(answer.out)


def test_an_estimate_tells_the_whole_training_only_if_asked(cli):
    assert cli(*ESTIMATE, "--json").document["training"] is None
    asked = ("--samples", "1000", "--epochs", "2", "--price", "1.5")
    training = cli(*ESTIMATE, *asked, "--json").document["training"]
    assert training["steps"] == 1000
    assert training["dollars"] == pytest.approx(training["device_seconds"] / 3600 * 1.5)


def test_a_plan_tells_the_whole_training_for_its_choice_and_the_alternatives(cli):
    document = cli(*PLAN, "--samples", "1000", "--objective", "cost", "--price", "2", "--json").document
    told = [document["estimate"], *(one["estimate"] for one in document["alternatives"])]
    assert {each["training"]["steps"] for each in told} == {32}
    assert all(each["training"]["dollars"] > 0 for each in told)
    assert from_json(Plan, json.dumps(document)).request.training.samples == 1000


def test_a_plan_without_a_training_reads_as_before(cli):
    document = cli(*PLAN, "--json").document
    del document["request"]["training"], document["estimate"]["training"]
    assert from_json(Plan, json.dumps(document)).estimate.training is None
