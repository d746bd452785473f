"""The result of a run has its name when it is on disk, and not before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")

from ftplan import files
from ftplan.launcher.train.export import export


def test_the_result_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(folder: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "weights").write_text("new")

    final = tmp_path / "final"
    save(str(final))
    flushed: list[tuple[str, bool]] = []
    monkeypatch.setattr(files, "sync", lambda path: flushed.append((path.name, final.exists())))
    trainer: Any = SimpleNamespace(is_fsdp_enabled=False, save_model=save)
    control: Any = SimpleNamespace(keeps_files=True, is_main=True, barrier=lambda: None)
    export(trainer, final, control, adapters=True)
    assert flushed == [("weights", False), (".final.partial", False), (tmp_path.name, True)]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
