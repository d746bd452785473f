"""Shell text as words with their places, without running any of it.

Variables that the text itself sets are filled in, ``${NAME:-default}`` too. What only a shell could know, such as
``$(command)`` or a variable from elsewhere, leaves a word `unresolved`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ftplan.errors import ConfigFileError

_OPERATORS: Final = frozenset(";|&()<>")
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_VARIABLE: Final = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?::?[-=]([^{}$`]*))?\})")
MOST_WORDS: Final = 10_000
MOST_COMMANDS: Final = 5_000
"""Of a command, and of a script: more than anybody writes."""
MOST_FILLED: Final = 1_000_000
"""Characters that variables may stand for, in all: each may hold the one before it many times."""
_KEYWORDS: Final = frozenset(
    {"then", "do", "else", "elif", "if", "while", "time", "exec", "nohup", "sudo", "command", "!", "{", "}"}
)


@dataclass(frozen=True)
class Word:
    """A word as a program would get it; ``start`` and ``end`` bound what was written, ``unresolved`` is missing."""

    text: str
    line: int = 0
    start: int = 0
    end: int = 0
    unresolved: str = ""


@dataclass(frozen=True)
class Command:
    """One simple command: its words, and the variables set for it (exported before, or in front of it)."""

    words: tuple[Word, ...]
    environment: Mapping[str, Word]


def commands(text: str, environment: Mapping[str, str] | None = None) -> Iterator[Command]:
    """Every simple command of a script, in order; loops and conditions are read as if each line ran once."""
    variables = {name: Word(value) for name, value in (environment or {}).items()}
    exported = dict(variables)
    for count, words in enumerate(_simple_commands(text, variables)):
        if count >= MOST_COMMANDS:
            raise _too_long(f"a script of more than {MOST_COMMANDS} commands", words[0].line)
        given = {}
        rest = [word for word in words if word.text not in _KEYWORDS or word.start == word.end]
        while rest and (assigned := _assignment(rest[0])):
            given[assigned[0]] = assigned[1]
            rest.pop(0)
        if not rest:
            variables.update(given)
            exported.update({name: word for name, word in given.items() if name in exported})
        elif rest[0].text in ("export", "declare", "typeset", "local", "readonly"):
            named = dict(filter(None, (_assignment(word) for word in rest[1:])))
            variables.update(named)
            exported.update(named or {word.text: variables[word.text] for word in rest[1:] if word.text in variables})
        else:
            yield Command(tuple(rest), {**exported, **given})


def as_command(words: list[str]) -> Command:
    """A command line that a shell has already split."""
    rest = [Word(text) for text in words]
    given = {}
    while rest and (assigned := _assignment(rest[0])):
        given[assigned[0]] = assigned[1]
        rest.pop(0)
    return Command(tuple(rest), given)


def _assignment(word: Word) -> tuple[str, Word] | None:
    match = _ASSIGNMENT.fullmatch(word.text)
    if match is None:
        return None
    return match[1], Word(match[2], word.line, word.start, word.end, word.unresolved)


def _simple_commands(text: str, variables: Mapping[str, Word]) -> Iterator[list[Word]]:
    """Words between operators and line ends; ``variables`` may grow while this is read."""
    current: list[Word] = []
    scanner = _Scanner(text)
    filler = _Filler(variables)
    for piece in scanner.pieces():
        if piece is None:
            if current:
                yield current
            current = []
        else:
            word = filler.filled(piece)
            if word.text not in _CALLERS:
                current.append(word)
            if len(current) > MOST_WORDS:
                raise _too_long(f"a command of more than {MOST_WORDS} words", current[0].line)
    if current:
        yield current


_CALLERS: Final = ("$@", "$*", "${@}", "${*}")
"""A script's own arguments, of which it has none when it is called by its name."""


@dataclass
class _Piece:
    """A word being read: literal text and what may hold variables, in turn."""

    parts: list[tuple[str, bool]]
    line: int
    start: int
    end: int = 0


class _Scanner:
    """Splits shell text; one pass, no backtracking."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1

    def pieces(self) -> Iterator[_Piece | None]:
        """Words, and None where a command ends."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "\n":
                self.line += 1
                self.at += 1
                yield None
            elif self.text.startswith("\\\n", self.at):
                self.line += 1
                self.at += 2
            elif char.isspace():
                self.at += 1
            elif char == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif char in "<>":
                yield from self._redirection()
            elif char in _OPERATORS:
                self.at += 1
                yield None
            else:
                word = self._word()
                if not (word.parts and word.parts[0][0].isdigit() and self.text[self.at : self.at + 1] in ("<", ">")):
                    yield word

    def _redirection(self) -> Iterator[_Piece | None]:
        """Skip ``> file``, ``2>&1`` and the like; a here-document is skipped with its text."""
        marker = re.compile(r"<<-?\s*['\"]?([A-Za-z_]\w*)['\"]?").match(self.text, self.at)
        if marker:
            end = re.compile(rf"^[ \t]*+{marker[1]}[ \t]*+$", re.MULTILINE).search(self.text, marker.end())
            stop = end.end() if end else len(self.text)
            self.line += self.text.count("\n", self.at, stop)
            self.at = stop
            yield None
            return
        while self.at < len(self.text) and self.text[self.at] in "<>&|":
            self.at += 1
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1
        if self.at < len(self.text) and self.text[self.at] not in "\n;|&()":
            self._word()

    def _word(self) -> _Piece:
        piece = _Piece([], self.line, self.at)
        while self.at < len(self.text):
            char = self.text[self.at]
            if char.isspace() or (char in _OPERATORS and char not in "()"):
                break
            if char in "()" and not piece.parts:
                break
            if char == "'":
                piece.parts.append((self._until("'"), False))
            elif char == '"':
                piece.parts.append((self._double_quoted(), True))
            elif char == "\\":
                piece.parts.append((self._escaped(), False))
            elif self.text.startswith("$(", self.at) or char == "`":
                piece.parts.append((self._substitution(), True))
            else:
                piece.parts.append((self._plain(), True))
        piece.end = self.at
        if piece.end == piece.start:  # a bracket that begins nothing
            self.at += 1
            piece.end = self.at
        return piece

    def _until(self, quote: str) -> str:
        end = self.text.find(quote, self.at + 1)
        end = len(self.text) if end < 0 else end
        found = self.text[self.at + 1 : end]
        self.line += found.count("\n")
        self.at = min(end + 1, len(self.text))
        return found

    def _double_quoted(self) -> str:
        match = re.compile(r'"((?:[^"\\]|\\.)*)"?', re.DOTALL).match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        self.line += match[1].count("\n")
        return re.sub(r'\\(["\\$`\n])', lambda escape: "" if escape[1] == "\n" else escape[1], match[1])

    def _escaped(self) -> str:
        found = self.text[self.at + 1 : self.at + 2]
        self.at += 2
        self.line += found == "\n"
        return "" if found == "\n" else found

    def _substitution(self) -> str:
        if self.text[self.at] == "`":
            return f"`{self._until('`')}`"
        start, depth = self.at, 0
        while self.at < len(self.text):
            depth += {"(": 1, ")": -1}.get(self.text[self.at], 0)
            self.line += self.text[self.at] == "\n"
            self.at += 1
            if depth == 0 and self.text[self.at - 1] == ")":
                break
        return self.text[start : self.at]

    def _plain(self) -> str:
        match = re.compile(r"(?:\$\{[^}\n]{0,200}\}|\$(?!\()|[^\s'\"\\;|&<>()`$])+").match(self.text, self.at)
        if match is None:
            self.at += 1
            return self.text[self.at - 1]
        self.at = match.end()
        return match[0]


class _Filler:
    """Puts the values of variables into words, as long as they do not grow beyond all measure."""

    def __init__(self, variables: Mapping[str, Word]) -> None:
        self.variables = variables
        self.left = MOST_FILLED

    def filled(self, piece: _Piece) -> Word:
        """The word that ``piece`` is."""
        missing: list[str] = []
        text = "".join(self._fill(part, missing) if expands else part for part, expands in piece.parts)
        return Word(text, piece.line, piece.start, piece.end, missing[0] if missing else "")

    def _fill(self, part: str, missing: list[str]) -> str:
        if part.startswith(("$(", "`")):
            missing.append(part)
            return part
        filled = _VARIABLE.sub(lambda match: self._value(match, missing), part)
        if "$(" in filled or "`" in filled or "$" in _VARIABLE.sub("", part):
            missing.append(part)
        return filled

    def _value(self, match: re.Match[str], missing: list[str]) -> str:
        name, default = match[1] or match[2], match[3]
        known = self.variables.get(name)
        if known is not None and not known.unresolved and len(known.text) <= self.left:
            self.left -= len(known.text)
            return known.text
        if known is None and default is not None:
            return default
        missing.append(f"${name}")
        return match[0]


def _too_long(what: str, line: int) -> ConfigFileError:
    return ConfigFileError(f"{what} is not read", file="", line=line)
