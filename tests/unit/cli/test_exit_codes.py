import pytest

QWEN = ("--model", "Qwen-7B")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("plan", *QWEN, "--gpus", "2x24GB"), 0),
        (("plan", *QWEN, "--gpus", "1x1GB"), 1),
        (("plan", *QWEN, "--gpus", "1x1GB", "--json"), 1),
        (("plan", *QWEN, "--gpus", "0x24GB"), 2),
        (("estimate", *QWEN, "--gpus", "1x24GB"), 0),
        (("estimate", *QWEN, "--gpus", "1x8GB"), 1),
        (("estimate", *QWEN, "--gpus", "1x8GB", "--json"), 1),
        (("estimate", "--model", "nope", "--gpus", "1x8GB"), 2),
        (("estimate", *QWEN, "--gpus", "1x24GB", "--margin", "0.5"), 1),
        (("run", "--demo", "--dry-run"), 0),
        (("run", *QWEN, "--gpus", "1x1GB", "--dry-run"), 1),
        (("run", "--dry-run"), 2),
        (("models", "qwen"), 0),
        (("models", "nope"), 1),
        (("models", "nope", "--json"), 1),
        (("models", "--max-params", "nope"), 2),
        (("gpus", "h100"), 0),
        (("gpus", "nope"), 1),
        (("gpus", "--min-memory", "1TB"), 1),
        (("gpus", "--min-memory", "nope"), 2),
        (("--version",), 0),
        (("--help",), 0),
        (("plan", "--help"), 0),
        (("estimate", "--help"), 0),
        (("run", "--help"), 0),
        (("nothing",), 2),
    ],
)
def test_exit_codes(cli, arguments, code):
    assert cli(*arguments).code == code


def test_what_does_not_fit_is_an_answer_not_an_error(cli):
    answer = cli("estimate", *QWEN, "--gpus", "1x8GB")
    assert "does not fit: needs" in answer.out
    assert "error:" not in answer.err


def test_no_plan_names_the_nearest_miss_and_a_way_out(cli):
    answer = cli("plan", *QWEN, "--gpus", "1x1GB")
    assert "no plan: nothing fits" in answer.out
    assert "nearest miss by " in answer.out
    assert "hint: " in answer.out


def test_a_bare_call_shows_help(cli):
    answer = cli()
    assert "Usage:" in answer.out + answer.err
    assert answer.code in (0, 2)
