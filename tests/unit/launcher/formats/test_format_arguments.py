import pytest

from ftplan.launcher.formats.arguments import argument_settings, plain_value
from ftplan.launcher.formats.words import commands


def values(line):
    (command,) = commands(f"x {line}")
    settings, others = argument_settings(command.words[1:], "run.sh")
    return {key: each.value for key, each in settings.items()}, [word.text for word in others]


@pytest.mark.parametrize(
    ("line", "found", "others"),
    [
        ("--a 1 --b=2", {"a": 1, "b": 2}, []),
        ("--a-b x", {"a_b": "x"}, []),
        ("--a --b", {"a": True, "b": True}, []),
        ("--no_a --b 1", {"a": False, "b": 1}, []),
        ("--no_a x", {"no_a": "x"}, []),
        ("--a 1 2 x", {"a": [1, 2, "x"]}, []),
        ("--a -1 --b -1e-4", {"a": -1, "b": "-1e-4"}, []),
        ("--a=", {"a": ""}, []),
        ("--a ''", {"a": ""}, []),
        ("a=1 b.c=true ++d=[1,2] ~e=x", {"a": 1, "b.c": True, "d": [1, 2], "e": "x"}, []),
        ("train cfg.yaml a=b", {"a": "b"}, ["train", "cfg.yaml"]),
        ("--a 1 --a 2", {"a": 2}, []),
        ("--a '{\"b\": 1}' --c x:y", {"a": {"b": 1}, "c": "x:y"}, []),
        ("-c 5", {"c": 5}, []),
        ("--a=b=c", {"a": "b=c"}, []),
    ],
)
def test_arguments(line, found, others):
    assert values(line) == (found, others)


def test_what_only_a_shell_knows_is_unresolved():
    (command,) = commands("x --a $(nproc) --b=$C --d 1")
    settings, _ = argument_settings(command.words[1:])
    assert {key: bool(each.unresolved) for key, each in settings.items()} == {"a": True, "b": True, "d": False}


def test_places():
    (command,) = commands("x \\\n b=2 \\\n --a 1")
    settings, _ = argument_settings(command.words[1:], "run.sh")
    assert [str(settings.place(key)) for key in "ab"] == ["run.sh:3", "run.sh:2"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1.5", 1.5),
        ("True", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("~", None),
        ("yes", True),
        ("y", "y"),
        ("a", "a"),
        ("a/b-c.d", "a/b-c.d"),
        ("a: b", "a: b"),
        ("{a: 1}", {"a": 1}),
        ("[1, a]", [1, "a"]),
        ("[1", "[1"),
        ("*", "*"),
        ("!!int 5", "!!int 5"),
        ("!!python/object/apply:os.system [x]", "!!python/object/apply:os.system [x]"),
        ("2024-01-31", "2024-01-31"),
        ("2001-99-99", "2001-99-99"),
        ("=", "="),
        ("<<", "<<"),
        ("{[a]: b}", "{[a]: b}"),
        ("1:" * 40 + "1.5", "1:" * 40 + "1.5"),
        ("0x" + "f" * 100, "0x" + "f" * 100),
        ("1" * 5000, "1" * 5000),
        ("[" * 1000, "[" * 1000),
        ("\ud800", "\ud800"),
    ],
)
def test_plain_values(text, value):
    found = plain_value(text)
    assert found == value
    assert type(found) is type(value)
