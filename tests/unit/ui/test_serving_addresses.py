import socket

import pytest

from ftplan.errors import InputError
from ftplan.ui.serving import Address, _bound, is_loopback, token_for


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_loopback_asks_for_no_token(host, monkeypatch):
    monkeypatch.delenv("FTPLAN_UI_TOKEN", raising=False)
    assert is_loopback(host)
    assert token_for(host, hosted=False, asked=False) == ""
    assert token_for(host, hosted=False, asked=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "my-machine", "example.org"])
def test_anything_else_does(host, monkeypatch):
    monkeypatch.delenv("FTPLAN_UI_TOKEN", raising=False)
    assert not is_loopback(host)
    first = token_for(host, hosted=False, asked=False)
    assert len(first) >= 32
    assert token_for(host, hosted=False, asked=False) != first
    assert token_for(host, hosted=True, asked=False) == ""
    assert token_for(host, hosted=True, asked=True)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("hosted", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_token_that_is_set_is_always_asked_for(monkeypatch, host, hosted, asked):
    monkeypatch.setenv("FTPLAN_UI_TOKEN", "mine")
    assert token_for(host, hosted=hosted, asked=asked) == "mine"


def test_an_empty_token_is_none(monkeypatch):
    monkeypatch.setenv("FTPLAN_UI_TOKEN", "")
    assert token_for("127.0.0.1", hosted=False, asked=False) == ""
    assert len(token_for("0.0.0.0", hosted=False, asked=False)) >= 32


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (Address("127.0.0.1", 7860, ""), "http://127.0.0.1:7860/"),
        (Address("0.0.0.0", 1, "t"), "http://127.0.0.1:1/?token=t"),
        (Address("::1", 1, ""), "http://[::1]:1/"),
    ],
)
def test_urls_can_be_opened(address, url):
    assert address.url == url


def test_a_port_that_is_taken_is_an_error_with_a_way_out():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="cannot listen") as raised:
            _bound("127.0.0.1", port)
        assert "--port" in raised.value.hint
    with _bound("127.0.0.1", 0) as free:
        assert free.getsockname()[1] > 0


def test_a_host_that_is_none_is_an_error():
    with pytest.raises(InputError, match="cannot listen"):
        _bound("no.such.host.invalid", 7860)


@pytest.mark.parametrize("host", ["a" * 64, f"{'a' * 64}.example", "a..example"])
def test_a_host_that_cannot_be_a_name_is_an_error(host):
    with pytest.raises(InputError, match="no host's name") as raised:
        _bound(host, 7860)
    assert "--host" in raised.value.hint
