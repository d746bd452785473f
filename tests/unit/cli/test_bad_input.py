"""Every bad input: exit 2, one ``error:`` line and a ``hint:`` on stderr, nothing on stdout, no traceback."""

import json

import pytest

PLAN = ("plan", "--model", "Qwen-7B")
ESTIMATE = ("estimate", "--model", "Qwen-7B", "--gpus", "1x24GB")
DEMO = ("run", "--demo", "--dry-run")

LONG = "x" * 5000

BAD = [
    ("error: unknown model 'nope'", ("plan", "--model", "nope", "--gpus", "2x24GB")),
    ("error: unknown model 'Qwen-7C'", ("estimate", "--model", "Qwen-7C", "--gpus", "2x24GB")),
    ("error: unknown model 'nobody/nothing'", ("plan", "--model", "nobody/nothing", "--gpus", "2x24GB")),
    ("error: ./nowhere does not exist", ("plan", "--model", "./nowhere", "--gpus", "2x24GB")),
    ("error: unknown GPU 'RTX4900'", (*PLAN, "--gpus", "2xRTX4900")),
    ("error: a count is at least 1", (*PLAN, "--gpus", "0x24GB")),
    ("error: a device is missing", (*PLAN, "--gpus", "2x")),
    ("error: the inventory is empty", (*PLAN, "--gpus", "")),
    ("error: a global batch of 32 does not split evenly over 3 ranks", (*PLAN, "--gpus", "3x24GB")),
    ("error: a global batch of 7", (*PLAN, "--gpus", "2x24GB", "--global-batch", "7")),
    ("error: ", (*PLAN, "--gpus", "2x24GB", "--micro-batch", "5")),
    ("error: ", (*PLAN, "--gpus", "2x24GB", "--micro-batch", "4", "--accumulation", "3")),
    ("error: host memory 'lots' is no size", (*PLAN, "--gpus", "2x24GB", "--host-memory", "lots")),
    ("error: host memory '0GB' is no size", (*PLAN, "--gpus", "2x24GB", "--host-memory", "0GB")),
    ("error: --model is missing", ("plan", "--gpus", "2x24GB")),
    ("error: --gpus is missing", PLAN),
    ("error: --model is missing", ("estimate", "--gpus", "2x24GB")),
    ("error: --gpus is missing", ("estimate", "--model", "Qwen-7B")),
    ("error: nothing to run", ("run", "--dry-run")),
    ("error: no run in ~nouser/x", ("report", "~nouser/x")),
    ("error: ~nouser/x is no folder", ("merge", "~nouser/x", "--out", "o")),
    ("error: ~nouser/x is no folder", ("predict", "~nouser/x", "--data", "y")),
    ("error: cannot read .: there is no plan and no run", ("doctor", ".")),
    ("error: there is no folder ~nouser/x", (*DEMO, "--tokenizer", "~nouser/x")),
    ("error: there is no folder /nowhere", (*DEMO, "--weights", "/nowhere")),
    (f"error: cannot use {LONG[:80]}", ("report", LONG)),
    (f"error: cannot use {LONG[:80]}", ("doctor", LONG)),
    (f"error: cannot use {LONG[:80]}", ("run", "--resume", "--run-dir", LONG)),
    (f"error: cannot use {LONG[:80]}", (*DEMO, "--tokenizer", LONG)),
    ("error: --demo brings its own plan and engine, and takes no --method", (*DEMO, "--method", "full")),
    ("error: --demo brings its own plan and engine, and takes no --packing", (*DEMO, "--no-packing")),
    ("error: --resume takes no --gradient-checkpointing", ("run", "--resume", "--no-gradient-checkpointing")),
    ("error: --resume-or-start needs the folder", (*DEMO, "--resume-or-start")),
    ("error: give max_steps or epochs", (*DEMO, "--epochs", "1", "--max-steps", "5")),
    ("error: without --data nothing is tokenized", ("doctor", "--model", "gpt2", "--tokenizer", "x")),
    ("error: our own files take no --dataset", (*PLAN, "--gpus", "2x24GB", "--out", "plan", "--dataset", "x")),
    (
        "error: our own files take no --job",
        (*PLAN, "--gpus", "2x24GB", "--out", "plan", "--format", "native", "--job", "hours=8"),
    ),
    ("error: No such command 'plam'", ("plam",)),
    ("error: No such option: --modle", ("plan", "--modle", "Qwen-7B")),
    ("error: method: ", (*PLAN, "--gpus", "2x24GB", "--method", "dora")),
    ("error: objective: ", (*PLAN, "--gpus", "2x24GB", "--objective", "luck")),
    ("error: sharding: ", (*PLAN, "--gpus", "2x24GB", "--sharding", "zero4")),
    ("error: unknown optimizer 'adam'", (*PLAN, "--gpus", "2x24GB", "--optimizer", "adam")),
    ("error: lora_targets: 'wq' is no linear module", (*PLAN, "--gpus", "2x24GB", "--lora-targets", "wq")),
    ("error: Invalid value for '--seq-len'", (*PLAN, "--gpus", "2x24GB", "--seq-len", "0")),
    ("error: unknown estimator 'guess'", (*ESTIMATE, "--estimator", "guess")),
    ("error: unknown optimizer 'lion'", (*ESTIMATE, "--optimizer", "lion", "--estimator", "trace")),
    ("error: lora_targets: 'wq' is no linear module", (*ESTIMATE, "--lora-targets", "wq", "--estimator", "trace")),
    ("error: a trace tells", ("estimate", "--model", "Qwen-7B", "--gpus", "1xcpu:8GB", "--estimator", "trace")),
    ("error: a trace tells", ("plan", "--model", "SmolLM2-135M", "--gpus", "1xcpu:8GB", "--confirm")),
    ("error: Invalid value for '--lora-rank'", (*ESTIMATE, "--lora-rank", "sixteen")),
    ("error: Invalid value for '--lora-dropout'", (*ESTIMATE, "--lora-dropout", "1.5")),
    ("error: Invalid value for '--margin'", (*ESTIMATE, "--margin", "-1")),
    ("error: Invalid value for '--samples'", (*ESTIMATE, "--samples", "0")),
    ("error: epochs says nothing without samples", (*ESTIMATE, "--epochs", "3")),
    ("error: price says nothing without samples", (*PLAN, "--gpus", "2x24GB", "--price", "2")),
    ("error: epochs: ", (*ESTIMATE, "--samples", "10", "--epochs", "0")),
    ("error: epochs: ", (*PLAN, "--gpus", "2x24GB", "--samples", "10", "--epochs", "nan")),
    ("error: mean_tokens: ", (*ESTIMATE, "--samples", "10", "--mean-tokens", "-1")),
    ("error: price: ", (*PLAN, "--gpus", "2x24GB", "--samples", "10", "--price", "-0.5")),
    ("error: price: ", (*ESTIMATE, "--samples", "10", "--price", "inf")),
    ("error: attention: ", (*ESTIMATE, "--attention", "flash3")),
    ("error: weights_dtype: ", (*ESTIMATE, "--weights-dtype", "fp8")),
    ("error: stack: ", (*ESTIMATE, "--stack", "litgpt")),
    ("error: unknown optimizer 'adamw'", (*ESTIMATE, "--optimizer", "adamw")),
    ("error: quantization goes with method qlora", (*ESTIMATE, "--quantization", "nf4")),
    ("error: loss_path liger needs kernels liger", (*ESTIMATE, "--loss-path", "liger")),
    ("error: cannot read nowhere.jsonl", ("estimate", "--batch", "nowhere.jsonl")),
    ("error: cannot read nowhere.jsonl", (*DEMO, "--data", "nowhere.jsonl")),
    ("error: cannot read nowhere.json", ("run", "nowhere.json", "--dry-run")),
    ("error: no run to resume in nowhere", ("run", "--resume", "--dry-run", "--run-dir", "nowhere")),
    ("error: 'many' is no number of parameters", ("models", "--max-params", "many")),
    ("error: '-1B' is no number of parameters", ("models", "--min-params", "-1B")),
    ("error: '' is no number of parameters", ("models", "--min-params", "")),
    (f"error: '{'9' * 400}' is no number", ("models", "--min-params", "9" * 400)),
    ("error: --min-params 9B is more than --max-params 8B", ("models", "--min-params", "9B", "--max-params", "8B")),
    ("error: 'lots' is no memory of a card", ("gpus", "--min-memory", "lots")),
    ("error: '24' is no memory of a card", ("gpus", "--min-memory", "24")),
    ("error: No such option: --max-memory", ("gpus", "--max-memory", "24GB")),
    ("error: host memory '999", (*PLAN, "--gpus", "2x24GB", "--host-memory", f"{'9' * 400}GB")),
    ("error: a plan file says all that is planned, and takes no --demo", ("run", "plan.json", "--demo", "--dry-run")),
    ("error: --demo brings its own plan and engine, and takes no --model", (*DEMO, "--model", "Qwen-7B")),
    ("error: ", (*DEMO, "--learning-rate", "inf")),
    ("error: ", (*DEMO, "--epochs", "inf")),
    ("error: no data", ("run", "--model", "Qwen-7B", "--gpus", "2x24GB", "--dry-run")),
]


def assert_refused(answer, starts):
    assert answer.code == 2
    assert answer.out == ""
    lines = answer.err.splitlines()
    assert lines[0].startswith(starts)
    assert [line.startswith("error: ") for line in lines].count(True) == 1
    assert [line.startswith("hint: ") and len(line) > len("hint: ") for line in lines].count(True) == 1
    assert "Traceback" not in answer.err


def test_a_run_is_not_put_among_other_files(cli, tmp_path):
    """As ``--run-dir "$DIR"`` says where nothing set the variable."""
    (tmp_path / "thesis.tex").touch()
    assert_refused(cli(*DEMO, "--run-dir", ""), "error: --run-dir is the current folder")


@pytest.mark.parametrize(("starts", "arguments"), BAD, ids=[" ".join(arguments)[:70] for _, arguments in BAD])
def test_bad_input_is_refused_with_one_error_and_a_hint(cli, starts, arguments):
    assert_refused(cli(*arguments), starts)


@pytest.mark.parametrize(("starts", "arguments"), BAD[:8], ids=[" ".join(arguments)[:70] for _, arguments in BAD[:8]])
def test_json_changes_nothing_about_an_error(cli, starts, arguments):
    assert_refused(cli(*arguments, "--json"), starts)


LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"model_type": "llama",', "not valid JSON"),
        ("", "not valid JSON"),
        ("\x00\x01", "not valid JSON"),
        ("[1, 2]", "not an object"),
        ("{}", "lacks hidden_size"),
        (json.dumps(LLAMA), "lacks vocab_size, intermediate_size"),
        (json.dumps({**LLAMA, "vocab_size": 8, "intermediate_size": "wide"}), "'wide'"),
        (json.dumps({**LLAMA, "vocab_size": -8, "intermediate_size": 8}), "-8"),
        (json.dumps({**LLAMA, "vocab_size": 8, "intermediate_size": 8, "num_attention_heads": 0}), "is 0"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "estimate"])
def test_a_corrupt_config_is_refused(cli, tmp_path, command, text, says):
    (tmp_path / "config.json").write_text(text)
    answer = cli(command, "--model", "./config.json", "--gpus", "1x24GB")
    assert_refused(answer, "error: ")
    assert says in answer.err


def test_a_config_that_is_no_text_is_refused(cli, tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00\x01")
    assert_refused(cli("plan", "--model", "./config.json", "--gpus", "1x24GB"), "error: ")


def test_a_folder_without_a_config_is_refused(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    answer = cli("plan", "--model", "./empty", "--gpus", "1x24GB")
    assert_refused(answer, "error: ./empty has no config.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no rows"),
        ("not json", "line 1"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": ', "line 2"),
        ('{"instruction": "a", "output": "b"}\n[1]', "line 2"),
        ('{"question": "a", "answer": "b"}', "none of the known forms"),
        ('{"instruction": "a", "output": 5}', "line 1"),
        ('[{"instruction": "a", "output": "b"},', "line 1"),
    ],
)
def test_malformed_data_is_refused_with_its_line(cli, tmp_path, text, says):
    (tmp_path / "bad.jsonl").write_text(text)
    answer = cli(*DEMO, "--data", "bad.jsonl")
    assert_refused(answer, "error: ")
    assert "bad.jsonl" in answer.err
    assert says in answer.err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"request": {}}', "\x00"])
def test_a_file_that_is_no_plan_is_refused(cli, tmp_path, data, text):
    (tmp_path / "plan.json").write_text(text)
    assert_refused(cli("run", "plan.json", "--dry-run", "--data", data), "error: plan.json is not a plan")


def test_a_folder_that_cannot_be_written_is_refused(cli, tmp_path):
    (tmp_path / "taken").write_text("a file")
    answer = cli(*PLAN, "--gpus", "2x24GB", "--out", "taken/plan")
    assert_refused(answer, "error: cannot write to taken/plan")


@pytest.mark.parametrize("digits", [30, 400])
@pytest.mark.parametrize("option", ["--seq-len", "--lora-rank", "--micro-batch"])
def test_absurd_numbers_end_in_an_answer(cli, option, digits):
    answer = cli(*ESTIMATE, option, "9" * digits)
    assert answer.code in (1, 2)
    assert "Traceback" not in answer.err


def test_an_inventory_error_points_at_its_part(cli):
    answer = cli(*PLAN, "--gpus", "2xT4+1xRTX4900")
    assert answer.err.splitlines()[1:3] == ["  2xT4+1xRTX4900", "         ^^^^^^^"]


def test_a_batch_that_does_not_split_names_the_nearest_two(cli):
    assert "hint: use a global batch of 30 or 33" in cli(*PLAN, "--gpus", "3x24GB").err


def test_a_slip_in_a_name_gets_the_name_that_was_meant(cli):
    assert "did you mean Qwen/Qwen-7B" in cli("plan", "--model", "Qwen/Qwen-7X", "--gpus", "2x24GB").err
    assert "did you mean RTX4090" in cli(*PLAN, "--gpus", "2xRTX4091").err
