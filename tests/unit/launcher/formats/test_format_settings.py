from pathlib import Path

import pytest

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.document import parse_document
from ftplan.launcher.formats.settings import Setting, Settings, document_settings
from ftplan.verdicts import NOWHERE, Place


def holding(value, unresolved=""):
    return Settings({"a": Setting("a", value, Place("x.yaml", 3), unresolved)})


def test_absent_null_and_unresolved_are_the_default():
    for settings in (Settings(), holding(None), holding(5, "$N")):
        assert settings.value("a", 7) == 7
        assert settings.integer("a", 7) == 7
        assert settings.text("a", "x") == "x"
        assert settings.flag("a", True)
        assert settings.words("a") == ()
    assert Settings().place("a") is NOWHERE


@pytest.mark.parametrize(
    ("value", "found"),
    [(True, True), ("True", True), (" YES ", True), (1, True), ("on", True), (0, False), ("none", False), ("", False)],
)
def test_flags(value, found):
    assert holding(value).flag("a") is found


@pytest.mark.parametrize(
    ("value", "found"), [(5, 5.0), ("5", 5.0), ("1e-4", 1e-4), ("1_000", 1000.0), (" .5 ", 0.5), ("-2.", -2.0)]
)
def test_numbers(value, found):
    assert holding(value).number("a", 0) == found


@pytest.mark.parametrize(
    "value",
    [
        "x",
        "",
        "1x",
        True,
        [1],
        {},
        "nan",
        "inf",
        float("inf"),
        float("nan"),
        10**60,
        "1e999",
        "1" * 500,
        "0x10",
        "1" * 200_000 + "x",
    ],
)
def test_no_numbers(value):
    with pytest.raises(ConfigFileError, match=r"x.yaml: a is .* not a number"):
        holding(value).number("a", 0)


@pytest.mark.parametrize("value", [1.5, -1, "0.5"])
def test_no_integers(value):
    with pytest.raises(ConfigFileError, match="an integer of at least 0"):
        holding(value).integer("a", 0)


@pytest.mark.parametrize("value", [[1], {"b": 1}])
def test_no_words(value):
    with pytest.raises(ConfigFileError, match="not a word"):
        holding(value).text("a")
    with pytest.raises(ConfigFileError, match="not true or false"):
        holding(value).flag("a")
    with pytest.raises(ConfigFileError, match="not a list of words"):
        holding([value]).words("a")


@pytest.mark.parametrize(
    ("value", "found"), [("q, v,", ("q", "v")), (["q", 1], ("q", "1")), ("q", ("q",)), ([], ()), (5, ("5",))]
)
def test_words(value, found):
    assert holding(value).words("a") == found


def test_an_error_is_short_and_says_where():
    with pytest.raises(ConfigFileError) as raised:
        holding("x\x1b\n" * 10_000).integer("a", 0)
    error = raised.value
    assert (error.file, error.line, error.field) == ("x.yaml", 3, "a")
    assert len(error.message) < 150
    assert error.message.isprintable()


def test_settings_of_a_document():
    document = parse_document("a: 1\nb: {c: 2, d: {}}\ne.f: 3\ng: [{h: 1}]\n", Path("x.yaml"))
    assert {key: each.value for key, each in document_settings(document).items()} == {
        "a": 1,
        "b": {"c": 2, "d": {}},
        "e.f": 3,
        "g": [{"h": 1}],
    }
    nested = document_settings(document, nested=True)
    assert (nested.value("b.c"), nested.value("b.d"), str(nested.place("b.c"))) == (2, {}, "x.yaml:2")
    assert "b" not in nested


def test_replaced_is_a_copy():
    settings = holding(1)
    assert settings.replaced({"a": Setting("a", 2)}).value("a") == 2
    assert settings.value("a") == 1
