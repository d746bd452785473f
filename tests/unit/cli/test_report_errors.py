"""Where a report cannot be written, that is told, nothing is left behind, and nothing else changes."""

import os
import subprocess
import sys

import pytest

from tests.report_pages import read

ESTIMATE = ("estimate", "--model", "gpt2", "--gpus", "1x24GB")


@pytest.mark.parametrize("folder", [".", "..", "", "/", "there"])
def test_a_folder_is_no_file(cli, tmp_path, folder):
    (tmp_path / "there").mkdir()
    answer = cli(*ESTIMATE, "--report", folder)
    assert answer.code == 2
    assert "error: --report names a folder" in answer.err
    assert "hint: name a file, such as report.html" in answer.err
    assert answer.out == ""
    assert [each.name for each in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize(
    ("path", "why"),
    [("file/page.html", "Not a directory"), ("n" * 300, "File name too long"), ("/proc/page.html", "")],
)
def test_a_path_that_cannot_be(cli, tmp_path, path, why):
    (tmp_path / "file").write_text("")
    answer = cli(*ESTIMATE, "--report", path)
    assert answer.code == 2
    assert f"error: cannot write {path}: {why}" in answer.err.replace("File exists", "Not a directory")
    assert "hint: name a file in a folder that can be written" in answer.err
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("old", ["old", None])
def test_a_link_stays_and_its_target_is_written(cli, tmp_path, old):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "page.html", tmp_path / "link.html"
    if old is not None:
        target.write_text(old)
    link.symlink_to(target)
    assert cli(*ESTIMATE, "--report", "link.html").code == 0
    assert link.readlink() == target
    assert not target.is_symlink()
    read(target)


def test_a_link_to_itself_leads_nowhere(cli, tmp_path):
    (tmp_path / "link.html").symlink_to("link.html")
    answer = cli(*ESTIMATE, "--report", "link.html")
    assert answer.code == 2
    assert "error: cannot write link.html: Too many levels of symbolic links" in answer.err
    assert (tmp_path / "link.html").is_symlink()


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_what_is_no_regular_file_stays(cli, tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    answer = cli(*ESTIMATE, "--report", name)
    assert answer.code == 2
    assert f"error: --report names a device, pipe or socket: {name}" in answer.err
    assert "hint: name a file, such as report.html" in answer.err
    assert answer.out == ""
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_a_device_stays(cli, monkeypatch):
    monkeypatch.setattr("ftplan.files.write_atomic", lambda *_: pytest.fail("as root this would replace the device"))
    answer = cli(*ESTIMATE, "--report", "/dev/null")
    assert answer.code == 2
    assert "error: --report names a device, pipe or socket: /dev/null" in answer.err


@pytest.mark.parametrize(("stream", "descriptor"), [("stdout", 1), ("stderr", 2)])
def test_a_redirected_stream_keeps_what_it_has(tmp_path, stream, descriptor):
    """`ftplan … --report /dev/stdout >> log`: a regular file, which holds more than this answer.

    By a link like /dev/stdout, which as root would be replaced if this failed.
    """
    log = tmp_path / "log"
    log.write_text("old\n")
    (tmp_path / stream).symlink_to(f"/proc/self/fd/{descriptor}")
    command = [sys.executable, "-m", "ftplan", *ESTIMATE, "--report", stream]
    with log.open("a") as file:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: file}
        done = subprocess.run(command, cwd=tmp_path, check=False, text=True, **streams)
    assert done.returncode == 2
    assert log.read_text().startswith("old\n")
    told = done.stderr or log.read_text()
    assert f"error: --report names what stdout or stderr go to: {stream}" in told


def test_folders_on_the_way_are_made(cli, tmp_path):
    assert cli(*ESTIMATE, "--report", "a/b/page.html").code == 0
    read(tmp_path / "a" / "b" / "page.html")


def test_what_was_there_stays_when_writing_fails(cli, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ftplan.files.os.fsync", full)
    answer = cli(*ESTIMATE, "--report", "page.html")
    assert answer.code == 2
    assert "error: cannot write page.html: No space left on device" in answer.err
    assert (tmp_path / "page.html").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_a_batch_takes_no_report(cli, tmp_path):
    (tmp_path / "cases.jsonl").write_text("{}")
    answer = cli("estimate", "--batch", "cases.jsonl", "--report", "page.html")
    assert answer.code == 2
    assert "--batch answers many cases, and takes no --report" in answer.err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("arguments", [(), ("--model", "nobody/knows", "--gpus", "1x24GB"), ("--gpus", "1x24GB")])
@pytest.mark.parametrize("command", ["plan", "estimate"])
def test_bad_input_makes_no_page(cli, tmp_path, command, arguments):
    assert cli(command, *arguments, "--report", "page.html").code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_written_though_nobody_reads_the_answer(tmp_path):
    """`ftplan … --report page.html | true`: the pipe is closed before anything is printed."""

    def code(*more):
        read_end, write_end = os.pipe()
        os.close(read_end)
        command = [sys.executable, "-m", "ftplan", *ESTIMATE, *more]
        done = subprocess.run(command, cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE, check=False, text=True)
        os.close(write_end)
        assert "Traceback" not in done.stderr
        return done.returncode

    assert code("--report", "page.html") == code()
    read(tmp_path / "page.html")
