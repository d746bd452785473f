from pathlib import Path

import pytest

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.document import parse_document
from ftplan.launcher.formats.editing import edited, edited_script
from ftplan.launcher.formats.words import commands

YAML = """# head
model: gpt2   # the base
lora_rank: 8
zero:            # sharding
  # the stage
  stage: 2
  offload: {device: cpu, pin: true}

# between
list:
- a
- b   # last
empty:
text: |
  one
  two
# tail
"""


def after(text, changes, name="a.yaml"):
    return edited(parse_document(text, Path(name)), changes)


@pytest.mark.parametrize(
    ("changes", "old", "new"),
    [
        ({"lora_rank": 16}, "lora_rank: 8", "lora_rank: 16"),
        ({"model": "a: b"}, "gpt2   #", "'a: b'   #"),
        ({"model": "two\nlines"}, "gpt2   #", '"two\\nlines"   #'),
        ({"model": "5"}, "gpt2   #", "'5'   #"),
        ({"zero.stage": 3}, "  stage: 2", "  stage: 3"),
        ({"zero.offload.device": "none, x"}, "device: cpu", 'device: "none, x"'),
        ({"zero.offload.pin": None}, "cpu, pin: true}", "cpu}"),
        ({"zero.offload.device": None}, "{device: cpu, pin", "{pin"),
        ({"zero.stage": None}, "  stage: 2\n", ""),
        ({"list": None}, "list:\n- a\n- b   # last\n", ""),
        ({"list": ["c"]}, "list:\n- a\n- b   # last", 'list:\n  ["c"]   # last'),
        ({"empty": 1}, "empty:", "empty: 1"),
        ({"empty.a": 1}, "empty:", 'empty: {"a": 1}'),
        ({"text": "x"}, "text: |\n  one\n  two", "text: x"),
        ({"text": None}, "text: |\n  one\n  two\n", ""),
        ({"zero.new": True}, "  # the stage\n  stage", "  # the stage\n  new: true\n  stage"),
        ({"zero.offload.new": 1}, "{device", '{"new": 1, device'),
        ({"new": 1e-5}, "# tail\n", "# tail\nnew: 1.0e-05\n"),
        ({"a.b.c": 1}, "# tail\n", "# tail\na:\n  b:\n    c: 1\n"),
        ({"missing": None, "not.there": None}, "", ""),
        ({"lora_rank": None, "zero.stage": 1, "x": 1}, "", None),
    ],
)
def test_yaml_keeps_everything_else(changes, old, new):
    found = after(YAML, changes)
    if new is not None:
        assert found == YAML.replace(old, new, 1)


def test_the_last_key_of_a_mapping():
    assert after("a:\n  b: 1\nc: 2\n", {"a.b": None}) == "a:\n  {}\nc: 2\n"
    assert after("a: 1\n", {"a": None}) == "{}\n"


JSON = """{
  // head
  "zero": {
    "stage": 2, // the stage
    "offload": {"device": "cpu", "pin": true,},
  },
  "list": [1, 2]
}
"""


@pytest.mark.parametrize(
    ("changes", "old", "new"),
    [
        ({"zero.stage": "auto"}, '"stage": 2', '"stage": "auto"'),
        ({"zero.offload.device": None}, '{"device": "cpu", "pin"', '{"pin"'),
        ({"zero.offload.pin": None}, '"cpu", "pin": true,}', '"cpu", }'),
        ({"list": None}, ',\n  "list": [1, 2]\n', "\n"),
        ({"zero.new": {"a": [1]}}, '"zero": {\n', '"zero": {\n    "new": {"a": [1]},\n'),
        ({"new": 1}, "{\n  // head\n", '{\n  "new": 1,\n  // head\n'),
        ({"a.b": 1}, "{\n  // head\n", '{\n  "a": {"b": 1},\n  // head\n'),
    ],
)
def test_json_keeps_everything_else(changes, old, new):
    assert after(JSON, changes, "a.json") == JSON.replace(old, new, 1)


SHARED = "base: &b\n  k: 1\n  l: 2\na:\n  <<: *b\n  m: 3\nx: &x 5\ny: *x\n"


@pytest.mark.parametrize(
    ("changes", "old", "new"),
    [
        ({"a.k": 9}, "  m: 3", "  k: 9\n  m: 3"),
        ({"a.m": 9}, "m: 3", "m: 9"),
        ({"y": 6}, "y: *x", "y: 6"),
        ({"y": None}, "y: *x\n", ""),
        ({"z": 1}, "y: *x\n", "y: *x\nz: 1\n"),
    ],
)
def test_what_is_shared_is_not_changed_for_others(changes, old, new):
    found = after(SHARED, changes)
    assert parse_document(found, Path("a.yaml")).data == parse_document(SHARED.replace(old, new), Path("a.yaml")).data


@pytest.mark.parametrize("changes", [{"base.k": 2}, {"x": 6}, {"x": None}, {"a.k": None}, {"base": None}])
def test_what_others_share_is_refused(changes):
    with pytest.raises(ConfigFileError):
        after(SHARED, changes)


def test_a_value_in_a_list_is_refused():
    with pytest.raises(ConfigFileError, match="cannot be edited in place"):
        after("a: [{b: 1}]", {"a.0.b": 2})


SCRIPT = """#!/bin/bash
# torchrun --lr 1
export A=1
torchrun --nproc_per_node 2 \\
  train.py --lr 1e-4 \\
  --bf16 True --targets q v \\
  --out=x model=y  # end
echo --lr 5
"""


@pytest.mark.parametrize(
    ("changes", "old", "new"),
    [
        ({"lr": 2e-5}, "--lr 1e-4", "--lr 2e-05"),
        ({"bf16": False}, "--bf16 True", "--bf16 false"),
        ({"out": "a b"}, "--out=x", "--out='a b'"),
        ({"targets": "it's; $(x)"}, "--targets q v", "--targets 'it'\\''s; $(x)'"),
        ({"targets": ["a", "b c"]}, "--targets q v", "--targets a 'b c'"),
        ({"lr": None}, "--lr 1e-4", ""),
        ({"none": None}, "", ""),
        ({"new": 3}, "model=y", "model=y --new 3"),
    ],
)
def test_scripts_keep_everything_else(changes, old, new):
    assert edited_script(SCRIPT, arguments_of(SCRIPT, "train.py"), changes) == SCRIPT.replace(old, new, 1)


def arguments_of(script, program, number=0):
    """The words after a program's name in the command that starts it, as a launch has them."""
    found = [each.words for each in commands(script) if any(word.text == program for word in each.words)]
    words = found[number]
    at = next(index for index, word in enumerate(words) if word.text == program)
    return words[at + 1 :]


def test_a_script_without_the_command_stays_as_it_is():
    assert edited_script(SCRIPT, (), {"lr": 1}) == SCRIPT


def test_of_two_commands_of_a_program_the_one_that_is_meant_is_edited():
    script = "train.py --lr 1 --size 8\ntrain.py --lr 1 --size 70\n"
    edited_one = edited_script(script, arguments_of(script, "train.py", 1), {"lr": 2})
    assert edited_one == "train.py --lr 1 --size 8\ntrain.py --lr 2 --size 70\n"
