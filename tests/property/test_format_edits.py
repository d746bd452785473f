"""Edits of any YAML or JSON: exactly the changes asked for, and every other line as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.document import parse_document
from ftplan.launcher.formats.editing import edited, edited_script
from ftplan.launcher.formats.words import commands

NAMES = st.sampled_from(["lora_rank", "bf16", "a", "zero_optimization", "stage", "x-y", "optim", "with space", "ü"])
WORDS = [
    "auto",
    "a: b",
    "x # y",
    "",
    "yes",
    "1e-4",
    "a, b",
    "[x",
    "q'q",
    'd"d',
    "ü",
    "two\nlines",
    "- a",
    " lead",
    "~",
    "//x",
]
SCALARS = st.one_of(
    st.integers(-99, 99),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from(WORDS),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=6)
FORMS = {
    "block.yaml": lambda data: yaml.safe_dump(data, sort_keys=False, allow_unicode=True),
    "commented.yaml": lambda data: _commented(yaml.safe_dump(data, sort_keys=False)),
    "flow.yaml": lambda data: yaml.safe_dump(data, sort_keys=False, default_flow_style=True, width=10**6),
    "wide.json": lambda data: json.dumps(data),
    "long.json": lambda data: json.dumps(data, indent=2),
    "commented.json": lambda data: (
        "// head\n" + json.dumps(data, indent=2).replace("{\n", "{ // c\n") + "\n/* tail */\n"
    ),
}


def _commented(text: str) -> str:
    return "# head\n" + "".join(
        line + ("  # c\n\n# between\n" if line.endswith(("1", "e", "auto")) else "\n") for line in text.splitlines()
    )


def _keys(data: dict[str, Any], prefix: str = "") -> list[str]:
    inside = [
        each for key, value in data.items() if isinstance(value, dict) for each in _keys(value, f"{prefix}{key}.")
    ]
    return [prefix + key for key in data] + inside


def _changed(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any] | None:
    """The data with the changes; None where one of them goes through what is no mapping."""
    data = copy.deepcopy(data)
    for key, value in changes.items():
        holder: Any = data
        *parents, name = key.split(".")
        for parent in parents:
            if value is None and parent not in holder:
                break
            holder = holder.setdefault(parent, {})
            if not isinstance(holder, dict):
                if value is None:
                    break
                return None
        else:
            if value is None:
                holder.pop(name, None)
            else:
                holder[name] = value
    return data


@st.composite
def cases(draw: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    data = draw(DOCUMENTS)
    keys = st.sampled_from(_keys(data)) | NAMES | st.builds("{}.{}".format, NAMES, NAMES) | st.just("p.q.r")
    changes = draw(st.dictionaries(keys, st.none() | VALUES, min_size=1, max_size=3))
    # A change and one inside it contradict each other.
    changes = {key: each for key, each in changes.items() if not any(other.startswith(f"{key}.") for other in changes)}
    return draw(st.sampled_from(list(FORMS))), data, changes


@settings(max_examples=300)
@given(cases())
def test_edited_says_what_was_said_with_the_changes(case):
    name, data, changes = case
    document = parse_document(FORMS[name](data), Path(name))
    assert document.data == data
    wanted = _changed(data, changes)
    try:
        text = edited(document, changes)
    except ConfigFileError:
        event("refused")
        # Nothing else is refused, but for a file's only key in one line of comments.
        assert wanted is None or "commented" in name
        return
    event("edited")
    assert parse_document(text, Path(name)).data == wanted


@settings(max_examples=200)
@given(st.dictionaries(NAMES, SCALARS, min_size=1, max_size=8), st.data(), st.sampled_from(list(FORMS)))
def test_lines_of_other_keys_stay_as_they_are(data, draw, name):
    text = FORMS[name](data)
    key = draw.draw(st.sampled_from(list(data)))
    new = draw.draw(SCALARS)
    document = parse_document(text, Path(name))
    entry = document.entries[key]
    found = edited(document, {key: new})
    assert found.startswith(text[: entry.start])
    assert found.endswith(text[entry.end :])
    gone = edited(document, {key: None}).splitlines()
    if len(data) > 1 and name == "commented.yaml":
        lines = text.splitlines()
        first, last = text.count("\n", 0, entry.key_start), text.count("\n", 0, entry.end)
        assert gone == lines[:first] + lines[last + 1 :]


OPTIONS = st.dictionaries(
    st.sampled_from(["lr", "bf16", "out_dir", "deepspeed"]),
    st.sampled_from(["1", "x y", "it's", "$(x)", "a=b", "ü", ""]),
)


@given(
    OPTIONS,
    st.dictionaries(st.sampled_from(["lr", "bf16", "new"]), st.sampled_from(["2", "a b", "'", "$A", "`x`", "\\"])),
)
def test_edited_scripts_run_the_same_command_with_the_changes(options, changes):
    def quoted(value: str) -> str:
        return "'" + value.replace("'", "'\\''") + "'"

    lines = [f"  --{key} {quoted(value)}" for key, value in options.items()]
    script = "#!/bin/sh\n# --lr 5\ntorchrun train.py" + "".join(f" \\\n{line}" for line in lines) + "\necho --lr 7\n"
    words = next(commands(script)).words[1:]
    found = list(commands(edited_script(script, words, changes)))
    words = [word.text for word in found[0].words]
    assert words[:2] == ["torchrun", "train.py"]
    assert not any(word.unresolved for word in found[0].words)
    pairs = dict(zip(words[2::2], words[3::2], strict=True))
    assert pairs == {f"--{key}": value for key, value in {**options, **changes}.items()}
    assert [word.text for word in found[1].words] == ["echo", "--lr", "7"]
