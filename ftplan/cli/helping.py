"""Help pages in plain text: options under headings, examples at the end, no word broken in any window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from shutil import get_terminal_size
from textwrap import TextWrapper
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from ftplan.cli import headings

WIDEST: Final = 100
STACKED: Final = 70
"""Columns below which a text is under what it explains, not beside it."""
NAMES: Final = 30
"""Columns of names; the text of a longer one begins on the next line."""
INDENT: Final = "  "


def width() -> int:
    """Columns of a help page."""
    return min(get_terminal_size().columns, WIDEST)


def wrapped(text: str, columns: int, indent: str = "", hanging: str | None = None) -> list[str]:
    """``text`` as lines of whole words; an option such as ``--micro-batch`` is one."""
    wrapper = TextWrapper(
        max(columns, 20),
        initial_indent=indent,
        subsequent_indent=indent if hanging is None else hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text)


class _Page:
    """What commands and their group have in common; the formatter is that of whichever click typer carries."""

    help: str | None
    epilog: str | None

    def format_help_text(self, _context: Any, formatter: Any) -> None:
        """The paragraphs of the docstring."""
        for paragraph in (self.help or "").split("\n\n"):
            _write(formatter, ["", *wrapped(" ".join(paragraph.split()), formatter.width, INDENT)])

    def format_epilog(self, _context: Any, formatter: Any) -> None:
        """Examples: a command a line, under what it is for."""
        if self.epilog:
            _write(formatter, ["", "Examples:", *_examples(self.epilog, formatter.width)])


class Command(_Page, TyperCommand):
    """A command whose options stand under headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then the options by `headings.OPTIONS`."""
        params = {param.name or "": param for param in self.get_params(ctx)}
        arguments = [name for name, param in params.items() if param.param_type_name == "argument"]
        options = headings.grouped(headings.OPTIONS, [name for name in params if name not in arguments])
        for heading, names in {"Arguments": arguments, **options}.items():
            records = (params[name].get_help_record(ctx) for name in names)
            _section(formatter, heading, [record for record in records if record is not None], NAMES)


class Group(_Page, TyperGroup):
    """All commands, by what they are for."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The commands by `headings.COMMANDS`, then the few options."""
        records = [record for param in self.get_params(ctx) if (record := param.get_help_record(ctx)) is not None]
        names = max(len(name) for name, _ in records)
        for heading, each in headings.grouped(headings.COMMANDS, self.list_commands(ctx)).items():
            rows = [(name, self.commands[name].short_help or "") for name in each]
            _section(formatter, heading, rows, names)
        _section(formatter, "Options", records, names)


def _section(formatter: Any, heading: str, rows: Sequence[tuple[str, str]], names: int) -> None:
    if rows:
        _write(formatter, ["", f"{heading}:", *(line for row in rows for line in _row(*row, names, formatter.width))])


def _row(name: str, text: str, names: int, columns: int) -> Iterator[str]:
    name = name.replace(" range>", ">")  # the range itself is told after the text
    if columns < STACKED:
        yield from wrapped(name, columns, INDENT, 2 * INDENT)
        yield from wrapped(text, columns, 3 * INDENT)
        return
    room = names + len(INDENT)
    left = f"{INDENT}{name}"
    lines = wrapped(text, columns, " " * (room + len(INDENT)))
    if len(left) > room or not lines:
        yield left
    else:
        lines[0] = left + lines[0][len(left) :]
    yield from lines


def _examples(text: str, columns: int) -> Iterator[str]:
    for line in text.strip().splitlines():
        if line.startswith("#"):
            yield from wrapped(line, columns, INDENT, f"{INDENT}# ")
        else:
            yield from _command(line, columns)


def _command(line: str, columns: int) -> Iterator[str]:
    """A command to copy: where it takes several lines, each but the last ends in a backslash."""
    lines = wrapped(line, columns - 2, INDENT, 2 * INDENT)
    yield from (f"{each} \\" for each in lines[:-1])
    yield lines[-1]


def _write(formatter: Any, lines: Sequence[str]) -> None:
    formatter.write("".join(f"{line}\n" for line in lines))


def example_commands(text: str) -> list[list[str]]:
    """The words of each command in ``text``, without ``ftplan`` itself."""
    import shlex

    return [shlex.split(line)[1:] for line in text.strip().splitlines() if not line.startswith("#")]


def context_settings() -> dict[str, Any]:
    """What makes click's own lines as wide as ours."""
    return {"terminal_width": width()}


def register(app: typer.Typer, name: str, module: Any, short_help: str) -> None:
    """Add the command of ``module``, with its `EXAMPLES`."""
    examples = getattr(module, "EXAMPLES", "")
    app.command(name=name, short_help=short_help, cls=Command, epilog=examples)(module.command)
