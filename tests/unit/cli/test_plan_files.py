import json
import stat

import pytest
import yaml

from ftplan.results import Plan, from_json
from ftplan.spec import RunConfig

PLAN = ("plan", "--model", "Qwen-7B", "--gpus", "2x24GB")


@pytest.fixture
def folder(cli, tmp_path):
    assert cli(*PLAN, "--out", "plan").code == 0
    return tmp_path / "plan"


def test_out_writes_the_plan_its_configuration_and_a_script(folder):
    assert sorted(file.name for file in folder.iterdir()) == ["config.yaml", "launch.sh", "plan.json"]


def test_the_written_plan_is_the_one_that_was_shown(cli, folder):
    written = json.loads((folder / "plan.json").read_text())
    shown = cli(*PLAN, "--json").document
    assert {**written, "search": None} == {**shown, "search": None}


def test_the_configuration_is_the_plan_s(folder):
    config = RunConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
    assert config == from_json(Plan, (folder / "plan.json").read_text()).config


def test_the_script_can_be_run(folder):
    script = folder / "launch.sh"
    assert stat.S_IMODE(script.stat().st_mode) & 0o111
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert 'ftplan run "$(dirname "$0")/plan.json" "$@"' in script.read_text()


def test_the_files_are_named(cli):
    answer = cli(*PLAN, "--out", "deep/er")
    assert [line for line in answer.out.splitlines() if line.startswith("wrote ")] == [
        f"wrote deep/er/{name}" for name in ("plan.json", "config.yaml", "launch.sh")
    ]


def test_with_json_the_files_are_written_and_stdout_is_the_document(cli, tmp_path):
    answer = cli(*PLAN, "--out", "both", "--json")
    assert answer.document["config"]["model"] == "Qwen-7B"
    assert (tmp_path / "both" / "plan.json").exists()


def test_writing_twice_replaces(cli, folder):
    assert cli(*PLAN, "--seq-len", "512", "--out", folder).code == 0
    assert from_json(Plan, (folder / "plan.json").read_text()).config.seq_len == 512


def test_without_a_plan_nothing_is_written(cli, tmp_path):
    assert cli("plan", "--model", "Qwen-7B", "--gpus", "1x1GB", "--out", "none").code == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("named", ["plan/plan.json", "plan"])
def test_a_written_plan_can_be_run(cli, folder, data, named):
    answer = cli("run", named, "--dry-run", "--data", data, "--json")
    assert answer.code == 0
    job = json.loads(next(text for path, text in answer.document["files"].items() if path.endswith("job.json")))
    assert job["config"] == json.loads((folder / "plan.json").read_text())["config"]
    assert job["global_batch"] == 32
    assert job["data"]["paths"] == [str(data)]


def test_a_dry_run_prints_the_command_and_every_file(cli, folder, data):
    answer = cli("run", folder / "plan.json", "--dry-run", "--data", data)
    assert answer.code == 0
    assert "torch.distributed.run" in answer.out
    for heading in ("command", "environment"):
        assert heading in answer.out.splitlines()
    assert "job.json" in answer.out
    assert "#!/usr/bin/env bash" in answer.out
    assert "plan: " in answer.err


@pytest.mark.parametrize(
    ("option", "value", "field", "kept"),
    [
        ("--epochs", "2", "epochs", 2.0),
        ("--max-steps", "7", "max_steps", 7),
        ("--learning-rate", "0.001", "learning_rate", 0.001),
        ("--save-steps", "5", "save_steps", 5),
        ("--keep", "3", "save_total_limit", 3),
        ("--seed", "0", "seed", 0),
        ("--eval-fraction", "0.25", "data.eval_fraction", 0.25),
        ("--data-format", "alpaca", "data.form", "alpaca"),
    ],
)
def test_options_of_a_run_reach_the_job(cli, folder, data, option, value, field, kept):
    answer = cli("run", folder / "plan.json", "--dry-run", "--data", data, option, value, "--json")
    found = json.loads(next(text for path, text in answer.document["files"].items() if path.endswith("job.json")))
    for key in field.split("."):
        found = found[key]
    assert found == kept


def test_a_dry_run_touches_nothing(cli, folder, data, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert cli("run", folder / "plan.json", "--dry-run", "--data", data).code == 0
    assert cli("run", "--demo", "--dry-run").code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_demo_needs_nothing(cli):
    answer = cli("run", "--demo", "--dry-run")
    assert answer.code == 0
    assert "--nproc_per_node 2" in answer.out
    assert "job.json" in answer.out


def test_the_demo_plans_for_the_devices_given(cli):
    answer = cli("run", "--demo", "--gpus", "4xcpu:2GB", "--dry-run")
    assert "--nproc_per_node 4" in answer.out


def test_a_run_may_plan_and_launch_in_one_go(cli, data):
    answer = cli(
        "run", "--model", "Qwen-7B", "--gpus", "2x24GB", "--global-batch", "16", "--data", data, "--dry-run", "--json"
    )
    assert answer.code == 0
    job = json.loads(next(text for path, text in answer.document["files"].items() if path.endswith("job.json")))
    assert job["global_batch"] == 16
    assert job["device"] == "cuda"


def test_what_does_not_fit_starts_only_by_force(cli, folder, data):
    """A plan on file may be from another day: the card was smaller than it said."""
    file = folder / "plan.json"
    document = json.loads(file.read_text())
    document["estimate"]["fits"] = False
    file.write_text(json.dumps(document))
    refused = cli("run", file, "--dry-run", "--data", data)
    assert refused.code == 1
    assert "--force" in refused.err
    assert cli("run", file, "--dry-run", "--data", data, "--force").code == 0
