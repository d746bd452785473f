"""Weights that a run needs and that are not here: asked for at the hub before anything starts."""

import pytest

from ftplan.launcher.job import Source
from ftplan.launcher.preflight import weights
from ftplan.launcher.preflight.findings import Status
from ftplan.profiles.hub import HubError

ON_THE_HUB = Source(kind="hub", location="owner/name")


@pytest.fixture(autouse=True)
def _hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def answers(monkeypatch, error=None):
    def fetch(url):
        assert url.endswith("/api/models/owner/name")
        if error is not None:
            raise error
        return b"{}"

    monkeypatch.setattr(weights, "fetch", fetch)


def test_what_is_here_is_not_asked_for(monkeypatch, tmp_path):
    answers(monkeypatch, AssertionError())
    folder = tmp_path / "models--owner--name" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert list(weights.check_weights(ON_THE_HUB)) == []
    assert list(weights.check_weights(Source(kind="folder", location=str(tmp_path)))) == []


def test_what_the_hub_has_will_be_downloaded(monkeypatch):
    answers(monkeypatch)
    (found,) = weights.check_weights(ON_THE_HUB)
    assert (found.status, found.message) == (Status.OK, "owner/name will be downloaded from the hub")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (HubError("the hub answered 404", 404), "does not exist, or a login is needed"),
        (HubError("the hub answered 500", 500), "the hub answered 500"),
        (HubError("the hub cannot be reached (no route)"), "cannot be reached"),
    ],
)
def test_what_cannot_be_had_is_an_error_with_the_way_out(error, told, monkeypatch):
    answers(monkeypatch, error)
    (found,) = weights.check_weights(ON_THE_HUB)
    assert found.status is Status.ERROR
    assert told in found.message
    assert "--rehearse" in found.fix


def test_without_a_network_nothing_is_asked(monkeypatch):
    answers(monkeypatch, AssertionError())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (found,) = weights.check_weights(ON_THE_HUB)
    assert "HF_HUB_OFFLINE" in found.message
