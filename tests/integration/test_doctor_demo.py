"""``ftplan doctor`` on the demo with nothing made up: torch and the tokenizer answer from processes of their own."""

from __future__ import annotations

import json

import pytest

from ftplan import cli

pytestmark = pytest.mark.integration
pytest.importorskip("trl")


def test_the_demo_can_run_on_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["doctor", "--demo", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {each["check"]: each for each in told["findings"]}
    assert {"torch", "packages", "host RAM", "disk", "data", "lengths"} <= set(found)
    assert told["lengths"]["rows"] == 178
    assert told["lengths"]["truncated_rows"] == 0
    assert found["disk"]["figures"]["checkpoint_bytes"] == pytest.approx(2.0e6, rel=0.05)
    assert not list(tmp_path.iterdir())
