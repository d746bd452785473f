"""Help: headings, windows of any width, and examples that are true."""

import re

import pytest
import typer

from ftplan import cli as command_line
from ftplan.cli import headings, helping

CHEAP = ("plan", "estimate", "models", "gpus")
"""Commands whose examples need no file, but for those that name one."""
WORD = re.compile(r"--[a-z][a-z-]*[a-z]")


def group():
    return typer.main.get_command(command_line.build_app())


def examples():
    pages = {name: command.epilog for name, command in group().commands.items()}
    return [words for text in (*pages.values(), group().epilog) for words in helping.example_commands(text)]


@pytest.fixture
def page(cli, monkeypatch):
    def shown(name, columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        return cli(*([name] if name else []), "--help").out

    return shown


@pytest.mark.parametrize("name", ["", *command_line.COMMANDS])
@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_no_word_is_broken_and_no_line_too_long(page, name, columns):
    text = page(name, columns)
    assert text == text.replace("\x1b", "")
    command = group().commands[name] if name else group()
    options = {one for each in command.params for one in (*each.opts, *each.secondary_opts) if one.startswith("--")}
    assert options <= set(WORD.findall(text))
    too_long = [line for line in text.splitlines() if len(line) > min(columns, 100)]
    assert all(len(line.strip().removesuffix(" \\").split()) == 1 for line in too_long)


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_option_has_a_heading(page, name):
    assert f"\n{headings.OTHER}:\n" not in page(name, 100)
    assert "\nOutput:\n" in page(name, 100)


def test_every_command_has_a_heading(page):
    assert f"\n{headings.OTHER}:\n" not in page("", 100)
    assert sorted(name for names in headings.COMMANDS.values() for name in names) == sorted(command_line.COMMANDS)


def test_headings_name_parameters_that_there_are():
    named = [name for names in headings.OPTIONS.values() for name in names]
    assert len(named) == len(set(named))
    there = {param.name for command in group().commands.values() for param in command.params} | {"help"}
    assert set(named) <= there


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_a_page_ends_with_two_to_four_examples(page, name):
    command = group().commands[name]
    found = helping.example_commands(command.epilog)
    assert 2 <= len(found) <= 5
    assert all(words[0] == name for words in found)
    assert "\nExamples:\n" in page(name, 80)


def test_a_long_example_can_be_copied(page):
    shown = page("plan", 40).partition("Examples:\n")[2]
    copied = re.sub(r" \\\n\s+", " ", shown)
    assert helping.example_commands("\n".join(line.strip() for line in copied.splitlines())) == (
        helping.example_commands(group().commands["plan"].epilog)
    )


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_examples_parse(words):
    command = group().commands[words[0]]
    if words[1:] != ["--help"]:
        with command.make_context(words[0], list(words[1:])) as context:
            assert context.params


@pytest.mark.parametrize(
    "words", [each for each in examples() if each[0] in CHEAP and "--batch" not in each], ids=" ".join
)
def test_cheap_examples_run(cli, words):
    answer = cli(*words)
    assert answer.code == 0
    assert answer.out


def test_the_example_of_a_batch_runs(cli, tmp_path):
    (tmp_path / "cases.jsonl").write_text('{"model": "Qwen-7B"}\n', "utf-8")
    words = next(each for each in examples() if "--batch" in each)
    assert cli(*words).document["fits"]
