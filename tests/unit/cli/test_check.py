import json

import pytest

from ftplan.planner.inventory import parse_inventory

TRAIN = """\
model_name_or_path: Qwen/Qwen2.5-0.5B
stage: sft
do_train: true
finetuning_type: lora
dataset: identity
template: qwen
cutoff_len: {length}
per_device_train_batch_size: {batch}
gradient_accumulation_steps: 8  # kept
learning_rate: 1.0e-4
bf16: true
output_dir: o
"""


@pytest.fixture
def train(tmp_path):
    def write(length=256, batch=1, more=""):
        file = tmp_path / "train.yaml"
        file.write_text(TRAIN.format(length=length, batch=batch) + more)
        return file.name

    return write


LARGE = {"length": 8192, "batch": 8}


def test_exit_code_0_if_it_fits(cli, train):
    answer = cli("check", train(), "--gpus", "1xRTX4090")
    assert answer.code == 0
    assert "fits: needs" in answer.out
    assert answer.err == ""


def test_exit_code_1_if_it_does_not(cli, train):
    answer = cli("check", train(**LARGE), "--gpus", "1x12GB")
    assert answer.code == 1
    assert "out of memory: needs" in answer.out
    assert "fix 1: " in answer.out


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ("use_muon: true\n", "unknown: needs"),
        ("quantization_bit: 4\nfp8: true\n", "[conflict]"),
    ],
)
def test_exit_code_1_if_it_cannot_be_told_or_would_be_refused(cli, train, more, word):
    answer = cli("check", train(more=more), "--gpus", "1xRTX4090")
    assert answer.code == 1
    assert word in answer.out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "nothing to check"),
        (("missing.yaml", "--gpus", "1x24GB"), "missing.yaml"),
        (("train.yaml", "--gpus", "nope"), "nope"),
        (("train.yaml", "--gpus", "1x24GB", "--format", "xml"), "xml"),
        (("train.yaml", "--gpus", "1x24GB", "--from", "nobody"), "nobody"),
        (("train.yaml", "--gpus", "1x24GB", "--set", "cutoff_len"), "no KEY=VALUE"),
        (("train.yaml", "--gpus", "1x24GB", "--set", "cutoff_len=long"), "cutoff_len"),
        (("train.yaml", "--gpus", "1x24GB", "--host-memory", "none"), "no size"),
        (("train.yaml", "--gpus", "1x24GB", "--model", "no-such-model"), "no-such-model"),
        (("bad.yaml", "--gpus", "1x24GB"), "bad.yaml"),
        (("--gpus", "1x24GB", "--", "ls", "-l"), "starts no training"),
    ],
)
def test_exit_code_2_for_bad_input_in_one_line(cli, train, tmp_path, arguments, word):
    train()
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    answer = cli("check", *arguments)
    assert answer.code == 2
    assert "error: " in answer.err
    assert word in answer.err
    assert "Traceback" not in answer.err


def test_json_has_the_documented_keys(cli, train):
    document = cli("check", train(**LARGE), "--gpus", "1x12GB", "--json").document
    assert {"config", "estimate", "verdict", "problems", "fixes"} <= set(document)
    assert document["verdict"] == "oom"
    assert document["config"]["seq_len"] == 8192
    assert document["estimate"]["fits"] is False
    assert document["problems"][0]["kind"] == "memory"
    assert {"kind", "severity", "message", "hint", "key", "place", "source"} <= set(document["problems"][0])
    fix = document["fixes"][0]
    assert {"changes", "estimate", "what", "fields", "speed_ratio", "keeps_result"} <= set(fix)
    assert fix["estimate"]["fits"] is True
    assert all({"file", "key", "old", "new"} == set(change) for change in fix["changes"])


def test_fix_writes_and_the_next_check_fits(cli, train, tmp_path):
    name = train(**LARGE)
    document = cli("check", name, "--gpus", "1x12GB", "--json").document
    in_file = [
        at for at, fix in enumerate(document["fixes"], 1) if all(c["file"] != "environment" for c in fix["changes"])
    ]
    answer = cli("check", name, "--gpus", "1x12GB", "--fix", "--pick", in_file[0])
    assert f"wrote {name}" in answer.err.replace(str(tmp_path) + "/", "")
    assert "# kept" in (tmp_path / name).read_text()
    assert cli("check", name, "--gpus", "1x12GB").code == 0


def test_where_nothing_is_wrong_nothing_is_written(cli, train, tmp_path):
    name = train()
    before = (tmp_path / name).read_text()
    answer = cli("check", name, "--gpus", "1xRTX4090", "--fix")
    assert (answer.code, answer.err) == (0, "nothing to fix\n")
    assert (tmp_path / name).read_text() == before


def test_a_machine_without_a_gpu_is_not_what_a_file_is_for(cli, train, monkeypatch):
    monkeypatch.setattr("ftplan.workflows.checking.parse_inventory", lambda *_, **__: parse_inventory("cpu"))
    answer = cli("check", train())
    assert answer.code == 2
    assert "--gpus 2x24GB" in answer.err


def test_a_pick_beyond_the_fixes_says_how_many_there_are(cli, train):
    answer = cli("check", train(**LARGE), "--gpus", "1x12GB", "--fix", "--pick", "99")
    assert answer.code == 2
    assert "--pick 1 to " in answer.err


def test_what_ran_before_says_what_changed(cli, train):
    answer = cli("check", train(), "--gpus", "4xRTX4090", "--was-gpus", "1")
    assert answer.code == 0
    assert "4 times the 8 on 1" in answer.out.replace("\n", " ")
    assert "learning rate:" in answer.out


def test_a_command_line_after_two_dashes(cli, train):
    name = train()
    answer = cli("check", "--gpus", "2xRTX4090", "--", "llamafactory-cli", "train", name, "cutoff_len=128")
    assert answer.code == 0
    assert "2 processes" in answer.out
    assert "128 tokens" in answer.out


def test_settings_and_fields_from_the_command(cli, train):
    answer = cli("check", train(), "--gpus", "1x24GB", "--set", "cutoff_len=128", "--micro-batch", "2", "--json")
    config = answer.document["config"]
    assert (config["seq_len"], config["micro_batch"]) == (128, 2)


def test_plan_writes_files_of_another_tool(cli, tmp_path):
    arguments = ("plan", "--model", "Qwen2.5-0.5B", "--gpus", "1xRTX4090", "--global-batch", "8", "--out", "there")
    answer = cli(*arguments, "--format", "llamafactory", "--for-version", "0.9.3", "--dataset", "mine")
    assert answer.code == 0
    text = (tmp_path / "there" / "train.yaml").read_text()
    assert "dataset: mine" in text
    assert "LLaMA-Factory 0.9.3" in text
    assert cli("check", "there/launch.sh", "--gpus", "1xRTX4090").code == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--format", "llamafactory"), "there is no --out"),
        (("--format", "nobody", "--out", "x"), "nobody"),
        (("--format", "llamafactory", "--out", "x", "--stack", "trl"), "stack"),
    ],
)
def test_plan_with_a_format_that_cannot_be(cli, arguments, word):
    answer = cli("plan", "--model", "Qwen2.5-0.5B", "--gpus", "1xRTX4090", *arguments)
    assert answer.code == 2
    assert word in answer.err


def test_github_and_sarif(cli, train):
    name = train(**LARGE)
    lines = cli("check", name, "--gpus", "1x12GB", "--format", "github").out.splitlines()
    assert lines
    assert all(line.startswith("::") for line in lines)
    log = json.loads(cli("check", name, "--gpus", "1x12GB", "--format", "sarif").out)
    assert log["version"] == "2.1.0"
