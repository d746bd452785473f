"""``ftplan models`` and ``ftplan gpus`` as they are typed and read."""

import json

import pytest

from ftplan.profiles import store
from ftplan.profiles.calibration import Calibration, DeviceFigures
from ftplan.profiles.data_folder import data_folder
from ftplan.render import console


@pytest.fixture
def on(monkeypatch):
    """Set how many columns the page has."""

    def set_columns(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        console.out.cache_clear()

    return set_columns


@pytest.mark.parametrize("command", ["models", "gpus"])
def test_nothing_found_is_told_with_a_hint(cli, command):
    answer = cli(command, "no", "such thing")
    assert (answer.code, answer.out) == (1, f"no {'model' if command == 'models' else 'GPU'} found for no such thing\n")
    assert answer.err.startswith("hint: ")
    answer = cli(command, "no", "such thing", "--json")
    assert (answer.code, answer.document, answer.err) == (1, {command: []}, "")


@pytest.mark.parametrize(
    "arguments", [("models",), ("gpus",), ("gpus", "a100"), ("models", "qwen", "--max-params", "1B")]
)
@pytest.mark.parametrize("columns", [1, 7, 40, 60, 80, 100, 110, 300])
def test_every_width_is_respected_without_a_word_lost(cli, on, arguments, columns):
    on(columns)
    text = cli(*arguments).out
    assert max(map(len, text.splitlines())) <= max(3, min(columns, 110))
    for row in next(iter(cli(*arguments, "--json").document.values())):
        assert "".join(row.get("id", row.get("name")).split()) in "".join(text.split())


@pytest.mark.parametrize("command", ["models", "gpus"])
def test_a_page_of_its_own_width_holds_the_whole_table(cli, command):
    lines = cli(command).out.splitlines()
    assert lines[0].startswith(("model ", "GPU "))
    assert not any(line.endswith(" ") for line in lines)


def test_a_name_too_long_for_the_table_has_a_line_of_its_own(cli, on):
    on(90)
    lines = cli("models", "llama-70b").out.splitlines()
    place = lines.index("deepseek-ai/DeepSeek-R1-Distill-Llama-70B")
    assert lines[place + 1].split()[:2] == ["70.6", "B"]
    assert lines[0].startswith("model ")


def test_heads_stand_over_their_columns_where_names_are_shorter(cli):
    head, units, row = cli("gpus", "t4").out.splitlines()[:3]
    assert head.index("memory") + len("memory") == units.index("GiB") + 3 == row.index("15.00") + 5


def test_active_parameters_are_a_column_only_beside_mixtures(cli):
    assert " active " in cli("models", "mixtral").out
    assert "active" not in cli("models", "mistral", "nemo").out


def test_sizes_are_explained_below_the_table(cli):
    for arguments in (("gpus",), ("gpus", "t4"), ("gpus", "24GB")):
        assert "size classes: 4GB, 6GB, 8GB, " in cli(*arguments).out
    assert "source: size class: in every figure the worst of RTX3090, RTX4090" in cli("gpus", "24GB").out


def test_sources_are_shown_for_few_and_pointed_to_for_many(cli):
    assert "source: speed: NVIDIA T4 datasheet" in cli("gpus", "t4").out
    many = cli("gpus").out
    assert "source:" not in many
    assert "sources: with 8 GPUs or fewer, or with --json" in many


def test_a_card_without_bf16_says_no(cli, on):
    assert cli("gpus", "t4", "--json").document["gpus"][0]["bf16"] is False
    assert cli("gpus", "t4").out.splitlines()[2].split()[:4] == ["T4", "15.00", "14.56", "no"]
    on(40)
    assert "bf16 no · fp16" in cli("gpus", "t4").out


def test_calibrations_are_told(cli):
    figures = DeviceFigures(memory_bytes_per_second=2.5e11)
    store.keep_calibration(Calibration("T4", "580", "2.11.0", "2026-11-22T10:00:00+00:00", figures))
    assert "· calibrated on 2026-11-22: memory bandwidth · Tesla T4" in cli("gpus", "t4").out
    (row,) = cli("gpus", "t4", "--json").document["gpus"]
    assert row["provenance"] == "calibrated"
    assert row["calibrated"]["figures"] == ["memory bandwidth"]


def test_a_foreign_calibration_is_refused_with_a_way_out(cli):
    data_folder().mkdir(parents=True)
    (data_folder() / "calibration.json").write_text("not ours\n")
    answer = cli("gpus", "t4")
    assert (answer.code, answer.out) == (2, "")
    assert "hint: ftplan calibrate --reset removes it" in answer.err
    assert cli("models", "qwen").code == 0


@pytest.mark.parametrize("arguments", [("models", "qwen"), ("gpus", "h100")])
def test_stdout_holds_one_document_and_nothing_else(cli, arguments):
    answer = cli(*arguments, "--json")
    assert answer.err == ""
    assert json.loads(answer.out)[arguments[0]]
    assert answer.out.endswith("}\n")


@pytest.mark.parametrize("arguments", [("models", "qwen"), ("gpus", "h100")])
def test_a_pipe_gets_no_colour(cli, arguments, monkeypatch):
    monkeypatch.delenv("NO_COLOR")
    console.out.cache_clear()
    assert "\x1b" not in cli(*arguments).out
