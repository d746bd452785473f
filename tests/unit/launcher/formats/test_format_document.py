import json
import math
from pathlib import Path

import pytest

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.document import MOST_NODES, load_document, parse_document
from ftplan.launcher.formats.json_text import without_comments


def yaml_of(text):
    return parse_document(text, Path("a.yaml"))


def json_of(text):
    return parse_document(text, Path("a.json"))


def written(document, key):
    entry = document.entries[key]
    return document.text[entry.start : entry.end]


CONFIG = """# head
model: &m Qwen/Qwen2.5-7B  # the base
lora_rank: 8
nested:
  stage: 3   # three
  list: [1, 'two']
  deep: {a: 1, b: null}
items:
  - x: 1
  - 2
# between
text: |
  # no comment
  line

empty:
last: *m
"""


class TestYaml:
    def test_values(self):
        assert yaml_of(CONFIG).data == {
            "model": "Qwen/Qwen2.5-7B",
            "lora_rank": 8,
            "nested": {"stage": 3, "list": [1, "two"], "deep": {"a": 1, "b": None}},
            "items": [{"x": 1}, 2],
            "text": "# no comment\nline\n",
            "empty": None,
            "last": "Qwen/Qwen2.5-7B",
        }

    @pytest.mark.parametrize(
        ("key", "line", "text"),
        [
            ("lora_rank", 3, "8"),
            ("nested.stage", 5, "3"),
            ("nested.list", 6, "[1, 'two']"),
            ("nested.deep", 7, "{a: 1, b: null}"),
            ("nested.deep.b", 7, "null"),
            ("nested", 4, "stage: 3   # three\n  list: [1, 'two']\n  deep: {a: 1, b: null}"),
            ("items", 8, "- x: 1\n  - 2"),
            ("items.0.x", 9, "1"),
            ("text", 12, "|\n  # no comment\n  line"),
            ("empty", 16, ""),
            ("last", 17, "*m"),
        ],
    )
    def test_places(self, key, line, text):
        document = yaml_of(CONFIG)
        assert document.entries[key].line == line
        assert written(document, key) == text

    @pytest.mark.parametrize(
        ("spelled", "value"),
        [
            ("yes", True),
            ("off", False),
            ("~", None),
            ("1_000", 1000),
            ("0x1F", 31),
            ("1:30", 90),
            ("1e-4", "1e-4"),
            ("1.0e-4", 1e-4),
            (".inf", math.inf),
            ("'5'", "5"),
            ("!!str 5", "5"),
            ("!!float 5", 5.0),
            ("2024-01-31", "2024-01-31"),
            ("2001-99-99", "2001-99-99"),
            ("𝔘𝔫𝔦", "𝔘𝔫𝔦"),
        ],
    )
    def test_scalars_are_pyyaml_s(self, spelled, value):
        document = yaml_of(f"ü𝔘: 1\na: {spelled}\n")
        assert document.data["a"] == value
        assert written(document, "a") == spelled

    def test_merges_give_way_to_what_is_said(self):
        document = yaml_of("base: &b {x: 1, y: {k: 1}}\na:\n  x: 2\n  <<: *b\n  y: {z: 3}\n")
        assert document.data["a"] == {"x": 2, "y": {"z": 3}}
        assert document.entries["a.x"].line == 3
        assert "a.y.k" not in document.entries

    def test_earlier_merges_win(self):
        document = yaml_of("p: &p {x: 1}\nq: &q {x: 2, y: 3}\na:\n  <<: [*p, *q]\n")
        assert document.data["a"] == {"x": 1, "y": 3}
        assert document.entries["a.x"].is_inherited
        assert not document.entries["p.x"].is_inherited

    def test_aliases_count_as_what_they_stand_for(self):
        lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
        with pytest.raises(ConfigFileError, match="once its aliases are written out"):
            yaml_of("\n".join(lines))

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "is empty"),
            ("# only this", "is empty"),
            ("- 1", "no mapping"),
            ("word", "no mapping"),
            ("a: 1\n---\nb: 2\n", "not valid YAML"),
            ("a: [1", "not valid YAML"),
            ("a: *b", "not valid YAML"),
            ("a: &a [*a]", "an alias holds itself"),
            ("a: &a\n  <<: *a", "an alias holds itself"),
            ("a: 1\nb: 2\na: 3", r"the key 'a' is given twice \(line 3\)"),
            ("a: {b: 1, b: 2}", "given twice"),
            ("? [a]\n: 1", "a key is no plain word"),
            ("<<: 1", "<< merges no mapping"),
            ("a: !!python/object/apply:os.system [x]", "is not read"),
            ("a: !!python/name:os.system", "is not read"),
            ("a: !!set {b}", "is not read"),
            ("a: !x {b: 1}", "is not read"),
            ("!x\na: 1", "is not read"),
            ("a: !!int ''", "is no value"),
            ("a: !!bool maybe", "is no value"),
            ("a: 0x" + "f" * 100, "is no value"),
            ("a: " + "1:" * 400 + "1.5", "is no value"),
            ("k" * 1030 + ": {}", "not valid YAML"),
            ("? " + "k" * 1001 + "\n: {}", "more than 1000 characters"),
            ("a: " + "[" * 40 + "]" * 40, "nests deeper than 32 levels"),
            ("".join(f"k{i}: 1\n" for i in range(MOST_NODES)), f"holds more than {MOST_NODES} values"),
            ("%TAG !a! b\n" * 30 + "---\na: 1", "directives"),
            ("a: \x07", "not valid YAML"),
            ("a: \ud800", "is no UTF-8 text"),
        ],
    )
    def test_what_is_refused(self, text, told):
        with pytest.raises(ConfigFileError, match=told):
            yaml_of(text)

    def test_a_long_chain_of_aliases_is_no_deep_recursion(self):
        text = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 1200))
        with pytest.raises(ConfigFileError):
            yaml_of(text)


COMMENTED = """{
  // head "quoted"
  "a": 1, /* b,
  ] */
  "url": "http://x/*y*/", // c
  "list": [1, 2, /* last */ ],
  "nested": {"stage": 3, "device": "cpu\\n",},
}
"""


class TestJson:
    def test_comments_and_trailing_commas(self):
        document = json_of(COMMENTED)
        assert document.data == {
            "a": 1,
            "url": "http://x/*y*/",
            "list": [1, 2],
            "nested": {"stage": 3, "device": "cpu\n"},
        }
        assert [document.entries[key].line for key in ("a", "url", "nested.stage")] == [3, 5, 7]
        assert written(document, "nested.stage") == "3"
        assert written(document, "list") == "[1, 2, /* last */ ]"

    def test_blanks_take_the_place_of_comments(self):
        plain = without_comments(COMMENTED)
        assert len(plain) == len(COMMENTED)
        assert [at for at, char in enumerate(plain) if char == "\n"] == [
            at for at, char in enumerate(COMMENTED) if char == "\n"
        ]

    @pytest.mark.parametrize("text", ['{"a": "//", "b": "/* */,}", "c": ",]"}', '{"a": "\\"//", "b": [{}, []]}', "{}"])
    def test_plain_json_stays_as_it_is(self, text):
        assert without_comments(text) == text
        assert json_of(text).data == json.loads(text)

    @pytest.mark.parametrize(
        "text", ["// " * 300 + "x", "/* */ " * 300 + "x", "/*" * 900, '"' + '\\"' * 900, "," * 900]
    )
    def test_odd_texts_are_read_once(self, text):
        """These took time that doubled with each repetition, or grew with its square."""
        with pytest.raises(ConfigFileError, match="not valid JSON"):
            json_of('{"a": [1, ' + text)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "not valid JSON"),
            ("{'a': 1}", "not valid JSON"),
            ('{"a": 1}{}', "not valid JSON"),
            ('{"a": ' + "[" * 100_000, "nests too deeply"),
            ('{"a": ' + "1" * 5000 + "}", "not valid JSON"),
            ('{"a": ' + "1" * 100 + "}", "is no value"),
            ('{"a": 1, "a": 2}', "given twice"),
            ("[1]", "no mapping"),
        ],
    )
    def test_what_is_refused(self, text, told):
        with pytest.raises(ConfigFileError, match=told):
            json_of(text)

    def test_a_line_is_told(self):
        with pytest.raises(ConfigFileError, match=r"\(line 3\)") as raised:
            json_of('{\n"a": 1,\n"b" 2}')
        assert raised.value.line == 3

    def test_what_python_reads_as_numbers(self):
        data = json_of('{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1E5}').data
        assert math.isnan(data["a"])
        assert (data["b"], data["c"], data["d"]) == (-math.inf, math.inf, 100000.0)


@pytest.mark.parametrize(
    ("name", "text", "syntax"),
    [("a.yml", "{a: 1}", "yaml"), ("a.JSON", '{"a": 1}', "json"), ("a", ' {"a": 1}', "json"), ("a", "a: 1", "yaml")],
)
def test_the_name_decides_then_the_first_character(tmp_path, name, text, syntax):
    (tmp_path / name).write_text(text)
    document = load_document(tmp_path / name)
    assert (document.syntax, document.data) == (syntax, {"a": 1})
