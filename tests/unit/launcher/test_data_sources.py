"""Files, or a data set of the hub: which of them a name is, and whether the hub has it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ftplan.errors import DataError
from ftplan.launcher import data, data_hub
from ftplan.launcher.data_sources import data_source
from ftplan.launcher.job import DescribedSet


class Hub(BaseHTTPRequestHandler):
    """Has one data set, asks for a token for another, and is out of order for a third."""

    def do_GET(self) -> None:
        names = {"owner/there": 200, "owner/broken": 500, "owner/gated": 200 if self.headers["Authorization"] else 401}
        self.send_response(names.get(self.path.removeprefix("/api/datasets/"), 404))
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    tokens = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN")
    caches = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", *tokens, *caches):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_name_of_the_hub_with_and_without_a_split(tmp_path: Path) -> None:
    source = data_source(("owner/there",), eval_fraction=0.1)
    assert (source.hub, source.hub_split, source.eval_fraction) == ("owner/there", "train", 0.1)
    assert data_source(("owner/there:test[:10%]",)).hub_split == "test[:10%]"
    assert data.check(source) == ""


def test_what_is_a_file_is_no_name_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "there").touch()
    assert data_source(("owner/there",)).paths == ("owner/there",)
    assert data_source(("owner/their",)).paths == ("owner/their",)
    assert data_source(("folder/rows.jsonl",)).paths == ("folder/rows.jsonl",)
    assert data_source(("rows",)).paths == ("rows",)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("owner/absent", "it does not exist there, or is not public"),
        ("owner/gated", "it does not exist there, or is not public"),
        ("owner/broken", "the hub answered 500"),
    ],
)
def test_what_the_hub_does_not_have(name: str, why: str) -> None:
    with pytest.raises(DataError, match=f"{name} is no file here, .*: {why}") as caught:
        data_source((name,))
    assert caught.value.hint


def test_a_token_opens_what_is_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert data_source(("owner/gated",)).hub == "owner/gated"


def test_a_login_opens_what_is_gated(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("secret\n")
    assert data_source(("owner/gated",)).hub == "owner/gated"


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("HF_HUB_OFFLINE", "1", "rules the network out"),
        ("HF_DATASETS_OFFLINE", "1", "rules the network out"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "the hub cannot be reached"),
        ("HF_ENDPOINT", "ftp://hub", "HF_ENDPOINT is no web address"),
    ],
)
def test_offline_it_says_so_unless_the_set_is_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, why: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(DataError, match=why):
        data_source(("owner/there",))
    (tmp_path / "hf" / "hub" / "datasets--owner--there").mkdir(parents=True)
    assert data_source(("owner/there",)).hub == "owner/there"


def test_a_set_of_the_hub_goes_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="owner/there is no file, and the hub's sets go alone"):
        data_source(("rows.jsonl", "owner/there"))


def test_a_described_set_of_the_hub(tmp_path: Path) -> None:
    entry = '{"mine": {"hf_hub_url": "owner/there", "subset": "en", "folder": "d", "split": "test", "file_name": "x"}}'
    (tmp_path / "dataset_info.json").write_text(entry)
    (found,) = data_source((str(tmp_path),), ("mine",)).hub_sets
    expected = DescribedSet(name="mine", hub="owner/there", hub_subset="en", hub_split="test", hub_folder="d")
    assert found == expected
    (tmp_path / "dataset_info.json").write_text('{"mine": {"hf_hub_url": "owner/absent"}}')
    with pytest.raises(DataError, match="owner/absent"):
        data_source((str(tmp_path),), ("mine",))


def test_a_prepared_set_is_cached_too(tmp_path: Path) -> None:
    assert not data_hub.is_cached("owner/there")
    (tmp_path / "hf" / "datasets" / "owner___there").mkdir(parents=True)
    assert data_hub.is_cached("owner/there")


@pytest.mark.parametrize("text", ["~nobody-of-that-name/x.jsonl", "x" * 5000, "owner/" + "x" * 5000, "rows\0.jsonl"])
def test_what_cannot_be_a_path_is_bad_input(text: str) -> None:
    with pytest.raises(DataError, match="is no file that can be read") as caught:
        data_source((text,))
    assert caught.value.field == "data"
    assert len(caught.value.message) < 250


def test_a_name_too_long_for_a_folder_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "hf" / "hub").mkdir(parents=True)
    with pytest.raises(DataError, match="does not exist there"):
        data_source(("owner/" + "x" * 250,))
