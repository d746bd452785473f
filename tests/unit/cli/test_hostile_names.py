"""What users write is shown as text: markup and escape codes in it are never carried out."""

import json

import pytest

MARKUP = "[red]x[/red]"
ESCAPE = "a\x1b[31mred"
BELL = "b\x07ell"


def names(answer):
    return answer.out + answer.err


@pytest.mark.parametrize("command", ["plan", "estimate"])
def test_markup_in_a_model_s_name_stays_text(cli, model_folder, command):
    model_folder(MARKUP)
    answer = cli(command, "--model", f"./{MARKUP}", "--gpus", "1x24GB")
    assert answer.code == 0
    assert f"./{MARKUP} " in answer.out


def test_markup_in_a_rejection_stays_text(cli, model_folder):
    """Its sequence is too long for the model's learned positions: reason and nearest miss name the model."""
    model_folder(
        MARKUP,
        model_type="gpt2",
        architectures=["GPT2LMHeadModel"],
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=128,
        vocab_size=1000,
        activation_function="gelu_new",
    )
    answer = cli("plan", "--model", f"./{MARKUP}", "--gpus", "1x24GB", "--seq-len", "4096")
    assert answer.code == 1
    shown = " ".join(answer.out.split())
    assert shown.count(f"./{MARKUP} has 128 learned positions") >= 2
    assert "./x has" not in shown


@pytest.mark.parametrize("command", ["plan", "estimate"])
@pytest.mark.parametrize("hostile", [ESCAPE, BELL])
def test_escape_codes_in_a_model_s_name_are_not_sent(cli, model_folder, command, hostile):
    model_folder(hostile)
    answer = cli(command, "--model", f"./{hostile}", "--gpus", "1x24GB")
    assert answer.code == 0
    assert not set("\x1b\x07") & set(names(answer))


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "--model", "HOSTILE", "--gpus", "1x24GB"),
        ("plan", "--model", "./HOSTILE", "--gpus", "1x24GB"),
        ("plan", "--model", "Qwen-7B", "--gpus", "2xHOSTILE"),
        ("plan", "--model", "Qwen-7B", "--gpus", "2x24GB", "--host-memory", "HOSTILE"),
        ("plan", "--model", "Qwen-7B", "--gpus", "2x24GB", "--method", "HOSTILE"),
        ("plan", "--model", "Qwen-7B", "--gpus", "2x24GB", "--lora-targets", "HOSTILE"),
        ("plan", "--model", "Qwen-7B", "--gpus", "2x24GB", "--optimizer", "HOSTILE"),
        ("plan", "--HOSTILE"),
        ("HOSTILE",),
        ("estimate", "--batch", "HOSTILE"),
        ("models", "--max-params", "HOSTILE"),
        ("gpus", "--min-memory", "HOSTILE"),
        ("run", "HOSTILE", "--dry-run"),
        ("run", "--demo", "--dry-run", "--data", "HOSTILE"),
        ("run", "--resume", "--dry-run", "--run-dir", "HOSTILE"),
    ],
)
class TestErrors:
    def test_markup_stays_text(self, cli, arguments):
        answer = cli(*(word.replace("HOSTILE", MARKUP) for word in arguments))
        assert answer.code == 2
        assert MARKUP in answer.err

    def test_escape_codes_are_not_sent(self, cli, arguments):
        answer = cli(*(word.replace("HOSTILE", ESCAPE) for word in arguments))
        assert answer.code == 2
        assert "\x1b" not in names(answer)


@pytest.mark.parametrize("command", ["models", "gpus"])
def test_a_search_is_told_as_text(cli, command):
    assert f" found for {MARKUP}\n" in cli(command, MARKUP).out
    assert not set("\x1b\x07") & set(names(cli(command, ESCAPE, BELL)))


def test_names_of_written_files_are_text_too(cli):
    answer = cli("plan", "--model", "Qwen-7B", "--gpus", "2x24GB", "--out", MARKUP)
    assert f"wrote {MARKUP}/plan.json" in answer.out
    answer = cli("plan", "--model", "Qwen-7B", "--gpus", "2x24GB", "--out", ESCAPE)
    assert "\x1b" not in names(answer)


def test_ids_of_a_batch_are_text(cli):
    cases = [{"id": hostile, "model": "Qwen-7B", "gpus": "1x24GB"} for hostile in (MARKUP, ESCAPE)]
    answer = cli("estimate", "--batch", "-", stdin="".join(json.dumps(case) + "\n" for case in cases))
    assert answer.out.startswith(f"{MARKUP}: fits")
    assert "\x1b" not in answer.out


def test_ids_of_a_batch_that_is_answered_are_text(cli, tmp_path):
    case = {"id": ESCAPE + "\nx", "model": "gpt2", "gpus": "1x24GB", "seq_len": 128}
    (tmp_path / "cases.jsonl").write_text(json.dumps(case))
    answer = cli("estimate", "--batch", "cases.jsonl")
    assert answer.out.count("\n") == 1
    assert not set("\x1b") & set(names(answer))
    assert "fits" in answer.out


def test_json_carries_any_name_unchanged(cli, model_folder):
    model_folder(ESCAPE)
    answer = cli("plan", "--model", f"./{ESCAPE}", "--gpus", "1x24GB", "--json")
    assert answer.document["config"]["model"] == f"./{ESCAPE}"
    assert "\x1b" not in answer.out


def test_names_in_a_dry_run_cannot_leave_the_shell_s_quotes(cli, tmp_path, data):
    hostile = tmp_path / "it's $(x); y.jsonl"
    hostile.write_text(data.read_text())
    answer = cli("run", "--demo", "--dry-run", "--data", hostile)
    assert answer.code == 0
    assert str(hostile) in answer.out
