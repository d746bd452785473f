import pytest

from ftplan.errors import ConfigFileError
from ftplan.launcher.formats.words import MOST_COMMANDS, MOST_WORDS, as_command, commands


def texts(script, environment=None):
    return [[word.text for word in command.words] for command in commands(script, environment)]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("a 'b c' \"d e\" f\\ g", ["a", "b c", "d e", "f g"]),
        ("a 'it'\\''s' x'y'\"z\"", ["a", "it's", "xyz"]),
        ('a "q\\"q" \'\\n\' "\\n"', ["a", 'q"q', "\\n", "\\n"]),
        ("a \\\n  b \\\n  c", ["a", "b", "c"]),
        ("a 'x\ny'", ["a", "x\ny"]),
        ("a '' \"\"", ["a", "", ""]),
        ("a # comment", ["a"]),
        ("a b#c", ["a", "b#c"]),
        ("a > out.txt 2>&1 b", ["a", "b"]),
        ("a &> out.txt", ["a"]),
        ("a 2>/dev/null < in b", ["a", "b"]),
        ("a [x] {y}", ["a", "[x]", "{y}"]),
        ("a --x={b,c}", ["a", "--x={b,c}"]),
        ("a -- b=c", ["a", "--", "b=c"]),
    ],
)
def test_words(script, words):
    assert texts(script) == [words]


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("a; b && c || d | e & f", [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]]),
        ("a\n\n  b\n", [["a"], ["b"]]),
        ("(a; b)", [["a"], ["b"]]),
        ("if true; then\n a\nelse b; fi", [["true"], ["a"], ["b"], ["fi"]]),
        ("for i in 1 2; do a; done", [["for", "i", "in", "1", "2"], ["a"], ["done"]]),
        ("#!/bin/bash\n#SBATCH -N 2\na", [["a"]]),
        ("cat <<EOF > f\nx $(y) 'z\nEOF\na", [["cat"], ["a"]]),
        ("cat <<-'END'\n\tx\n\tEND\na", [["cat"], ["a"]]),
        ("cat <<EOF\nnever ends\na", [["cat"]]),
        ("a | tee log", [["a"], ["tee", "log"]]),
    ],
)
def test_commands(script, found):
    assert texts(script) == found


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("A=1\na $A ${A} x$A.y", ["a", "1", "1", "x1.y"]),
        ("A=1\na '$A' \"$A\"", ["a", "$A", "1"]),
        ("a ${A:-5} ${A-6} ${A:=7}", ["a", "5", "6", "7"]),
        ("A=2\na ${A:-5}", ["a", "2"]),
        ("A='x y'\nB=$A-z\na $B", ["a", "x y-z"]),
        ("export A=1 B=2\na $A$B", ["a", "12"]),
        ("A=1\nA=2\na $A", ["a", "2"]),
    ],
)
def test_variables(script, words):
    assert texts(script) == [words]
    assert not any(word.unresolved for command in commands(script) for word in command.words)


def test_the_environment_is_known():
    assert texts("a $HOME", {"HOME": "/root"}) == [["a", "/root"]]


@pytest.mark.parametrize("part", ["$UNKNOWN", "$(nproc)", "`nproc`", "${A[0]}", "${A##*/}", "$1", "x$(a $(b))y"])
def test_what_only_a_shell_knows_is_unresolved(part):
    (command,) = commands(f"a --b {part}")
    assert [bool(word.unresolved) for word in command.words] == [False, False, True]


def test_what_depends_on_it_is_unresolved_too():
    (command,) = commands("A=$(nproc)\na --b=$A c")
    assert [bool(word.unresolved) for word in command.words] == [False, True, False]


def test_what_is_exported_reaches_a_command():
    script = "A=1\nexport B=2 C\nC=3\nexport A\nD=4 a\nb\n"
    first, second = commands(script)
    assert {name: word.text for name, word in first.environment.items()} == {"A": "1", "B": "2", "D": "4"}
    assert "D" not in second.environment


def test_places():
    script = "# x\nA=1\ntorchrun \\\n  --lr $A 'b\nc' \\\n  d\n"
    (command,) = commands(script)
    assert [(word.line, script[word.start : word.end]) for word in command.words] == [
        (3, "torchrun"),
        (4, "--lr"),
        (4, "$A"),
        (4, "'b\nc'"),
        (6, "d"),
    ]


def test_split_words_stay_as_they_are():
    command = as_command(["A=1", "a", "$B", "c=d"])
    assert [word.text for word in command.words] == ["a", "$B", "c=d"]
    assert command.environment["A"].text == "1"


@pytest.mark.parametrize("script", ["a\n" * (MOST_COMMANDS + 1), "a " * (MOST_WORDS + 1)])
def test_endless_scripts_are_refused(script):
    with pytest.raises(ConfigFileError, match="is not read"):
        list(commands(script))


def test_variables_do_not_grow_without_end():
    laughs = "A=xxxxxxxxxx\n" + "".join(f"{chr(66 + i)}={f'${chr(65 + i)}' * 9}\n" for i in range(15)) + "a $P\n"
    (command,) = commands(laughs)
    assert command.words[1].unresolved


@pytest.mark.parametrize(
    "script",
    ["cat <<E\n" + "\n" * 50_000, "a " + "${" * 50_000, 'a "' + '\\"' * 50_000, "a " + "$(" * 50_000, "'" * 50_001],
)
def test_odd_scripts_are_read_once(script):
    """Here-documents of blank lines and variables without an end took time that grew with their square."""
    assert len(list(commands(script))) == 1
