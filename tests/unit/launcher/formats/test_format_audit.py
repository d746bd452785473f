import pytest

from ftplan.launcher.formats.audit import MOST_STRANGERS, audit, is_harmless, shown_value
from ftplan.launcher.formats.settings import Setting, Settings
from ftplan.profiles.frameworks import load_vocabulary
from ftplan.verdicts import Place

VOCABULARY = load_vocabulary("llamafactory")


def problems(values, modelled=()):
    settings = {key: Setting(key, value, Place("x.yaml", 1)) for key, value in values.items()}
    return list(audit(Settings(settings), VOCABULARY, modelled))


def test_known_keys_are_passed_over():
    assert problems({"learning_rate": 1e-4, "output_dir": "x", "lora_rank": 8}, {"lora_rank"}) == []


def test_an_unknown_key_has_a_place_and_a_hint():
    (found,) = problems({"lora_rnk": 8})
    assert (found.kind, found.key, str(found.place)) == ("unknown-key", "lora_rnk", "x.yaml:1")
    assert "lora_rank" in found.hint


def test_many_unknown_keys_are_told_once():
    found = problems({f"key{number}": 1 for number in range(1000)})
    assert len(found) == MOST_STRANGERS + 1
    assert f"none of {1000 - MOST_STRANGERS} more keys" in found[0].message


@pytest.mark.parametrize("key", sorted(VOCABULARY.costly)[:20])
def test_costly_keys_are_told_unless_harmless_or_modelled(key):
    costly = VOCABULARY.costly[key]
    (found,) = [each for each in problems({key: "something"}) if each.kind == "unmodelled"]
    assert found.may_need_more == (costly.effect in ("more", "either"))
    assert not [each for each in problems({key: "something"}, {key}) if each.kind == "unmodelled"]
    assert not [each for each in problems({key: None}) if each.kind == "unmodelled"]


def test_what_only_a_shell_knows():
    found = list(audit(Settings({"a": Setting("a\nb", None, unresolved="$(x\n\x1b)" * 50)}), VOCABULARY))
    assert [each.kind for each in found] == ["unresolved"]
    assert len(found[0].message) < 150
    assert "\x1b" not in found[0].message


@pytest.mark.parametrize(
    ("value", "harmless", "found"),
    [
        (None, [], True),
        (False, [False], True),
        ("off", [False], True),
        (0, [False], True),
        (True, [False], False),
        ("1.0", [1], False),
        (1.0, [1], True),
        ("NONE", ["none"], True),
        ([], [], True),
        ({}, [], True),
        ([0], [], False),
        (10**60, [0.5], False),
        (float("nan"), [1], False),
    ],
)
def test_harmless_values(value, harmless, found):
    assert is_harmless(value, harmless) is found


def test_shown_values_are_short_and_printable():
    assert shown_value(True) == "true"
    assert len(shown_value("x\x1b" * 100)) == 40
    assert shown_value("a\nb") == "a?b"
