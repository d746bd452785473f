"""What people see and scripts read, whole; after a change: ``pytest tests/golden --refresh-golden``, and read the diff.

Times of the search and names of runs differ each time and are replaced. Help is compared by options and texts, because
its layout is the command-line library's and changes with it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import typer
from run_folders import memory, run_folder, save, started, stepped

from ftplan import cli
from ftplan.launcher.events import Failed, Finished
from ftplan.render import console

PLAN = ("plan", "--model", "Qwen-7B", "--gpus", "2x24GB")
ESTIMATE = ("estimate", "--model", "Qwen-7B", "--gpus", "1x24GB")
OFFLOADED = (
    "estimate",
    "--model",
    "Baichuan2-13B",
    "--gpus",
    "2xA6000",
    "--sharding",
    "zero3",
    "--offload",
    "optimizer",
)


@pytest.fixture(autouse=True)
def _plain(monkeypatch, tmp_path):
    """No terminal, no colour, a page of 100 columns, an empty folder, no network."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"NO_COLOR": "1", "COLUMNS": "100", "TERMINAL_WIDTH": "100", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    console.out.cache_clear()
    console.err.cache_clear()


@pytest.fixture
def shown(capsys):
    def run(*arguments, code=0):
        assert cli.run(list(arguments)) == code
        return without_trailing_blanks(capsys.readouterr().out)

    return run


def without_trailing_blanks(text):
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def untimed(text):
    return re.sub(r"(decided \d+ configurations in) [\d.]+ \w+", r"\1 TIME", text)


def brief(document):
    """A plan's document without the search's seconds, and with terms only where they are the plan's own."""
    document["search"].pop("seconds")
    estimates = [one["estimate"] for one in document["alternatives"]]
    for estimate in estimates:
        del estimate["terms"], estimate["host"]["terms"]
    for estimate in [document["estimate"], *estimates]:
        for rank in estimate["ranks"] if estimate else ():
            del rank["terms"]
    return document


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("plan.txt", PLAN, 0),
        ("plan-one-small-card.txt", ("plan", "--model", "Qwen-7B", "--gpus", "1x8GB"), 0),
        ("plan-nothing-fits.txt", ("plan", "--model", "Qwen-7B", "--gpus", "1x1GB"), 1),
        ("plan-sharded.txt", ("plan", "--model", "Qwen2.5-32B", "--gpus", "2xRTX4090"), 0),
        ("estimate.txt", ESTIMATE, 0),
        ("estimate-too-large.txt", (*ESTIMATE, "--method", "full"), 1),
        ("estimate-offload.txt", OFFLOADED, 0),
        ("estimate-training.txt", (*ESTIMATE, "--samples", "10000", "--epochs", "3", "--mean-tokens", "400"), 0),
        ("models.txt", ("models", "qwen2.5", "7b"), 0),
        ("models-mixtures.txt", ("models", "moe", "--max-params", "100B"), 0),
        ("gpus.txt", ("gpus", "a100", "sxm"), 0),
        ("gpus-size-class.txt", ("gpus", "24gb"), 0),
        ("plan-training.txt", ("plan", "--model", "Qwen-7B", "--gpus", "2xRTX4090", "--samples", "10000"), 0),
    ],
)
def test_text(golden, shown, name, arguments, code):
    golden(name, untimed(shown(*arguments, code=code)))


RESUMED = [started(), *map(stepped, range(1, 31)), save(20), started(1, 20), *map(stepped, range(21, 61)), save(40)]
OUT_OF_MEMORY = Failed(1, "out_of_memory", "CUDA out of memory")


@pytest.mark.parametrize(
    ("name", "events", "status", "saved"),
    [
        ("finished", [*RESUMED, save(60), Finished(60, "finished", memory(60))], "finished", (40, 60)),
        ("failed", [started(), *map(stepped, range(1, 13)), OUT_OF_MEMORY], "failed", ()),
        ("interrupted", [*RESUMED, Finished(60, "interrupted", memory(60))], "interrupted", (40,)),
    ],
)
def test_report(golden, shown, name, events, status, saved):
    run_folder(Path("run"), events, status, saved)
    golden(f"report-{name}.txt", shown("report", "run"))


def test_report_of_many(golden, shown):
    for number, status in enumerate(("finished", "failed", "interrupted")):
        run = run_folder(Path("runs", status), RESUMED[: 20 * number + 5], status)
        os.utime(run.job, (number, number))
    golden("report-many.txt", shown("report", "runs"))


def test_plan_json(golden, shown):
    golden("plan.json", json.dumps(brief(json.loads(shown(*PLAN, "--json"))), indent=2) + "\n")


def test_estimate_json(golden, shown):
    golden("estimate.json", json.dumps(json.loads(shown(*ESTIMATE, "--json")), indent=2) + "\n")


@pytest.mark.parametrize("arguments", [("models", "mixtral", "7b"), ("gpus", "rtx4090d")], ids=lambda given: given[0])
def test_catalogue_json(golden, shown, arguments):
    golden(f"{arguments[0]}.json", json.dumps(json.loads(shown(*arguments, "--json")), indent=2) + "\n")


@pytest.mark.parametrize("name", ["config.yaml", "launch.sh"])
def test_files_of_out(golden, shown, name):
    shown(*PLAN, "--out", "plan")
    golden(f"out/{name}", Path("plan", name).read_text("utf-8"))


def test_the_plan_of_out(golden, shown):
    shown(*PLAN, "--out", "plan")
    golden("plan.json", json.dumps(brief(json.loads(Path("plan/plan.json").read_text("utf-8"))), indent=2) + "\n")


def help_of(command):
    """Usage, help and options of a command, a line each."""
    lines = [command.help.strip(), ""]
    for each in command.params:
        kind = "argument" if each.param_type_name == "argument" else "/".join((*each.opts, *each.secondary_opts))
        lines.append(f"{kind}: {getattr(each, 'help', None) or ''}".rstrip())
    return "\n".join(lines) + "\n" + command.epilog


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help(golden, name):
    golden(f"help/{name}.txt", help_of(typer.main.get_command(cli.build_app()).commands[name]))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_on_100_columns_has_every_option_in_full(shown, name):
    """An option cut to ``--gradient-checkpoint…`` cannot be typed."""
    text = shown(name, "--help")
    options = [each for each in typer.main.get_command(cli.build_app()).commands[name].params if each.opts]
    names = [one for each in options for one in (*each.opts, *each.secondary_opts) if one.startswith("--")]
    assert {"--json", "--help"} <= {*names, "--help"}
    assert [one for one in names if one not in text] == []
    assert max(map(len, text.splitlines())) <= 100


def test_help_of_all_commands(golden, shown):
    text = shown("--help")
    assert all(name in text for name in cli.COMMANDS)
    golden("help/ftplan.txt", text.partition("\nOptions:")[0])  # some of which are the library's


TRAIN = """\
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
deepspeed: ds.json
dataset: identity
template: qwen
cutoff_len: {length}
per_device_train_batch_size: {batch}
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
bf16: true
output_dir: out
"""
ZERO = """\
{ "bf16": {"enabled": "auto"},
  "zero_optimization": {"stage": 2, "overlap_comm": true} }
"""


@pytest.fixture
def check(shown):
    """``check`` of a file of LLaMA-Factory's with one of DeepSpeed's, which fits with notes, or is far too large.

    The one that is too large also has a key that LLaMA-Factory refuses.
    """

    def run(*arguments, fits=True):
        length, batch = (1024, 1) if fits else (4096, 4)
        Path("train.yaml").write_text(
            TRAIN.format(length=length, batch=batch) + ("" if fits else "cutof_len: 1\n"), "utf-8"
        )
        Path("ds.json").write_text(ZERO, "utf-8")
        return shown("check", "train.yaml", "--gpus", "2xRTX4090", *arguments, code=0 if fits else 1)

    return run


@pytest.mark.parametrize(("name", "fits"), [("check-fits.txt", True), ("check-oom.txt", False)])
def test_check_text(golden, check, name, fits):
    golden(name, check(fits=fits))


def without_terms(value):
    if isinstance(value, list):
        return [without_terms(each) for each in value]
    if isinstance(value, dict):
        return {key: without_terms(each) for key, each in value.items() if key not in ("terms", "ranks")}
    return value


def test_check_json(golden, check):
    golden("check.json", json.dumps(without_terms(json.loads(check("--format", "json", fits=False))), indent=2) + "\n")


@pytest.mark.parametrize("form", ["github", "sarif"])
def test_check_for_review(golden, check, form):
    golden(f"check-{form}.txt", check("--format", form, fits=False))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lora-1", ("--model", "Qwen2.5-7B", "--gpus", "1xRTX4090", "--global-batch", "16")),
        ("zero-2", ("--model", "Qwen2.5-14B", "--gpus", "2xA6000", "--global-batch", "16", "--sharding", "zero2")),
        ("full-8", ("--model", "Llama-3.1-8B", "--gpus", "8xA100-80GB", "--global-batch", "64", "--method", "full")),
    ],
)
def test_files_of_llamafactory(golden, shown, name, arguments):
    shown("plan", *arguments, "--out", "plan", "--format", "llamafactory", "--for-version", "0.9.3")
    files = sorted(path for path in Path("plan").iterdir() if path.name != "plan.json")
    golden(f"llamafactory/{name}.txt", "".join(f"== {path.name}\n{path.read_text('utf-8')}" for path in files))
