import io

import pytest
from rich.console import Console

from ftplan.render import console, tables
from ftplan.render.tables import Column, print_table

POINTS = (
    Column("alternatives", "name"),
    Column("needs"),
    Column("tokens/s", said="{} tokens/s"),
    Column("why", "text"),
)
NAME = "qlora rank 16, fsdp2-grad-op, no checkpointing, micro-batch 1 x 16"
WHY = "with lora, nothing else fits; the nearest miss is no activation checkpointing"
ROWS = [(NAME, "19.65 GiB", "1,576", WHY), ("full", "1.00 GiB", "12", "")]


@pytest.fixture
def window(monkeypatch):
    """Print into a window of some width, and return the lines."""

    def shown(width, function, *arguments, **options):
        file = io.StringIO()
        made = Console(file=file, width=width, highlight=False)
        monkeypatch.setattr(tables, "out", lambda: made)
        function(*arguments, **options)
        return [line.rstrip() for line in file.getvalue().splitlines()]

    return shown


def words_of(lines):
    return {word for line in lines for word in line.replace(":", "").split()}


@pytest.mark.parametrize("width", [200, 110, 90, 80, 60, 50, 40])
def test_all_words_are_whole_at_any_width(window, width):
    lines = window(width, print_table, POINTS, ROWS)
    assert max(map(len, lines)) <= width
    wanted = {word for row in ROWS for cell in row for word in cell.replace(":", "").split()}
    assert wanted <= words_of(lines)


def test_a_wide_window_has_a_line_for_each_row(window):
    lines = window(200, print_table, POINTS, ROWS)
    assert len(lines) == 3
    assert lines[0].split() == ["alternatives", "needs", "tokens/s", "why"]
    assert lines[1].index("19.65 GiB") + len("19.65 GiB") == lines[0].index("needs") + len("needs")


def test_a_narrow_window_has_short_lines(window):
    assert window(44, print_table, POINTS, ROWS) == [
        "alternatives",
        "qlora rank 16, fsdp2-grad-op, no",
        "checkpointing, micro-batch 1 x 16",
        "  needs 19.65 GiB · 1,576 tokens/s",
        "  with lora, nothing else fits; the nearest",
        "  miss is no activation checkpointing",
        "full: needs 1.00 GiB · 12 tokens/s",
    ]


def test_lines_break_between_figures(window):
    text = console.words("peak allocated 16.16 GiB · reserved 16.29 GiB · process 17.85 GiB")
    assert window(40, tables.print_parts, text) == [
        "peak allocated 16.16 GiB",
        "reserved 16.29 GiB · process 17.85 GiB",
    ]


BARS = (Column("phase", "name"), Column("bytes", said="{}"), Column("of the card", "bar", width=10))


def test_bars_scale_together_and_go_where_there_is_no_room(window):
    rows = [("load", "1 GiB", 0.5), ("save", "2 GiB", 1.0)]
    assert [line.count("█") for line in window(60, print_table, BARS, rows)[1:]] == [5, 10]
    assert [line.count("█") for line in window(23, print_table, BARS, rows)[-2:]] == [4, 9]
    assert window(16, print_table, BARS, rows) == ["phase  bytes", "load   1 GiB", "save   2 GiB"]


def test_a_cell_is_neither_markup_nor_control_codes(window):
    assert window(80, print_table, (Column("", "name"),), [("[red]x\x1b[31m",)], has_head=False) == ["[red]x\\x1b[31m"]


def test_only_a_number_has_a_unit(window):
    rows = [("first plan of some length", "1,576"), ("second plan of some length", "out of memory")]
    assert window(28, print_table, (Column("tried", "name"), Column("tokens/s", said="{} tokens/s")), rows) == [
        "tried",
        "first plan of some length",
        "  1,576 tokens/s",
        "second plan of some length",
        "  out of memory",
    ]


def test_a_name_may_say_what_it_is(window):
    columns = (Column("attempt", "name", said="attempt {}"), Column("from", said="from {}"), Column("ended", "text"))
    ended = "ended without a word: killed; processes 2 -> 1"
    assert window(32, print_table, columns, [("1", "the start", ended)]) == [
        "attempt 1: from the start",
        "  ended without a word: killed;",
        "  processes 2 -> 1",
    ]
