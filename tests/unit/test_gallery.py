"""The gallery: its pictures are those that it lists, and what makes them."""

import re
import sys
from pathlib import Path

import pytest

from scripts.gallery_parts import document as page
from scripts.gallery_parts import drawing, terminal
from scripts.gallery_parts.catalogue import ENTRIES, INPUTS, chosen

ROOT = Path(__file__).parents[2]


def screen(written: str, columns: int = 20) -> terminal.Screen:
    return terminal.last_screen(written, columns)


def test_the_gallery_is_as_it_is_listed():
    assert page.problems(ROOT / "docs") == []


def test_names_of_entries_and_files_are_unique():
    files = [file for entry in ENTRIES for file in entry.files]
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert len(set(files)) == len(files)
    assert [entry.name for entry in chosen(["run", "help"])] == ["help", "run"]
    with pytest.raises(ValueError, match="no such picture: hlep; there are help"):
        chosen(["hlep"])


def test_what_is_wrong_is_told(tmp_path):
    folder = tmp_path / "gallery"
    folder.mkdir()
    (tmp_path / "gallery.md").write_text('<img src="gallery/lost.svg">', "utf-8")
    (folder / "orphan.png").write_bytes(page.PNG + bytes(page.PICTURE_BYTES))
    (folder / "broken.svg").write_text("<svg>", "utf-8")
    (folder / "notes.txt").write_text("", "utf-8")
    found = "\n".join(page.problems(tmp_path))
    for told in (
        "gallery.md is not what the script writes",
        "lost.svg is listed, but not there",
        "orphan.png is there, but not listed",
        "orphan.png has 120,008 bytes",
        "broken.svg no valid XML",
        "notes.txt is neither SVG nor PNG",
    ):
        assert told in found
    page.remove_orphans(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["notes.txt"]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("one\r\ntwo\r\n", "one\ntwo"),
        ("waiting\r\x1b[2Kdone\r\n", "done"),
        ("step 1\r\nloss 3\r\x1b[2K\x1b[1A\x1b[2Kstep 2\r\nloss 2\r\n", "step 2\nloss 2"),
        ("\x1b[?25lbar\x1b[?25h", "bar"),
        ("a\tb", "a       b"),
        ("abc\b\bX", "aXc"),
        ("abcdef\x1b[3D\x1b[K", "abc"),
        ("a" * 21, "a" * 20 + "\na"),
        ("a" * 20 + "\r\nb", "a" * 20 + "\nb"),
        ("\x1b]0;title\x07text", "text"),
        ("日本", "日本"),
    ],
)
def test_the_screen(written, shown):
    assert screen(written).text() == shown


@pytest.mark.parametrize("written", ["\x1b[5L", "\x1b(B", "\x01"])
def test_the_screen_refuses_what_it_has_not_learnt(written):
    with pytest.raises(ValueError, match="unknown control"):
        screen(written)


def test_colours_stay_with_their_characters():
    written = "\x1b[1mplan\x1b[0m: \x1b[1;32mfits\x1b[0m   \r\n"
    assert screen(written).ansi() == "\x1b[1mplan\x1b[0m: \x1b[1;32mfits\x1b[0m"
    assert screen("\x1b[31mred\x1b[0m\rR").ansi() == "R\x1b[31med\x1b[0m"


def test_a_frame_of_a_live_display():
    frames = "".join(f"step {step}/9\r\nloss {9 - step}\r\x1b[2K\x1b[1A\x1b[2K" for step in range(1, 9))
    assert terminal.screen_with(frames + "ended\r\n", 20, "step 4/9").text() == "step 4/9\nloss 5"
    with pytest.raises(ValueError, match="no frame shows"):
        terminal.screen_with(frames, 20, "step 10/9")


def test_a_command_gets_a_terminal(tmp_path):
    program = tmp_path / "told"
    code = "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size().columns, os.environ['TERM'])"
    program.write_text(f"#!{sys.executable}\n{code}\n", "utf-8")
    program.chmod(0o755)
    assert terminal.run(str(program), tmp_path, {}, 60) == "True 60 xterm-256color\r\n"
    with pytest.raises(RuntimeError, match="ended with 0, not 1"):
        terminal.run(str(program), tmp_path, {}, 60, code=1)


def test_a_command_that_does_not_end_is_ended(tmp_path):
    program = tmp_path / "sleeps"
    program.write_text(f"#!{sys.executable}\nimport time; time.sleep(60)\n", "utf-8")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match="did not end"):
        terminal.run(str(program), tmp_path, {}, 60, limit_seconds=0.5)


def test_svg_of_a_screen():
    drawn = drawing.svg("\x1b[1;32mfits\x1b[0m & <more>\n██▌\n▂█", "ftplan plan", 40, "plan")
    assert drawing.svg_problems(drawn) == []
    assert "fits" in drawn
    assert "&lt;more&gt;" in drawn
    assert "ftplan&#160;plan" in drawn
    assert "█" not in drawn
    assert drawn.count("<path fill=") == 1
    assert len(re.findall(r"M[\d.]+ [\d.]+h", drawn)) == 5
    assert drawn == drawing.svg("\x1b[1;32mfits\x1b[0m & <more>\n██▌\n▂█", "ftplan plan", 40, "plan")


def test_a_title_does_not_run_over_the_buttons():
    drawn = drawing.svg("text", "ftplan estimate " + "--long-option " * 9, 60, "long")
    (title,) = re.findall(r'class="terminal-long-title"[^>]*>([^<]*)<', drawn)
    assert title.startswith("ftplan&#160;estimate&#160;--long-option")
    assert title.endswith("&#160;…")
    assert len(title.replace("&#160;", " ")) * drawing.TITLE_CHARACTER < 60 * 12 - 2 * drawing.BUTTONS


@pytest.mark.parametrize(
    "inside",
    [
        "<style>@font-face { src: url(https://example.org/f.woff) }</style>",
        "<style>@import 'x.css';</style>",
        '<image href="https://example.org/a.png"/>',
        "<script>1</script>",
    ],
)
def test_svgs_that_load_something_are_found(inside):
    assert drawing.svg_problems(f'<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>')


def test_paths_become_relative(tmp_path):
    text = f"record: {tmp_path}/ftplan-runs/1/record.json, in {tmp_path}"
    assert drawing.neutral(text, tmp_path) == "record: ftplan-runs/1/record.json, in ."


@pytest.mark.parametrize("text", ["see /home/ann/x", "see /tm\np/x1", "on box7:", "by ann, BOX7"])
def test_what_tells_of_this_machine_is_refused(text):
    with pytest.raises(ValueError, match="tells something of this machine"):
        drawing.refuse_local(text, "plan", words=("box7",))


def test_what_tells_nothing_is_not():
    drawing.refuse_local("ftplan-runs/1 on box72, tokens/s, Qwen/Qwen2.5-7B", "plan", words=("box7",))


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_there(name):
    assert (ROOT / "examples" / name).is_file()
