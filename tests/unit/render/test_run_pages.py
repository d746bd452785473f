"""Runs and comparisons as pieces of a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from run_folders import memory, run_folder, save, started, stepped

from ftplan.launcher.events import Event, Failed, Finished, Noted
from ftplan.render.comparisons import comparison
from ftplan.render.pages import SHOWN
from ftplan.render.run_pages import run_piece, runs_piece, starting_piece
from ftplan.results import to_jsonable
from ftplan.workflows import picturing, planning
from ftplan.workflows.reporting import RunReport, Runs, report

STEPS: list[Event] = [started(), *map(stepped, range(1, 31)), save(20)]
FIGURE = re.compile(r'<span data-path="([^"]+)" data-kind="([^"]+)" data-value="([^"]+)">([^<]*)</span>')
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


def of(folder: Path) -> RunReport:
    found = report(folder)
    assert isinstance(found, RunReport)
    return found


def value_at(document: object, path: str) -> object:
    for part in path.split("."):
        document = document[int(part)] if isinstance(document, list) else document[part]  # type: ignore[index]
    return document


@pytest.mark.parametrize("status", ["running", "finished", "interrupted", "failed"])
def test_every_figure_is_the_reports(tmp_path: Path, status: str) -> None:
    run = run_folder(tmp_path / "run", [*STEPS, Finished(30, "interrupted", memory(30))], status, saved=(20,))
    told = of(run.root)
    document = to_jsonable(told)
    piece = run_piece(told, "the log")
    found = FIGURE.findall(piece)
    assert {path for path, *_ in found} >= {"steps", "tokens", "train_seconds", "predicted.step_seconds"}
    for path, kind, value, text in found:
        exact = value_at(document, path)
        assert json.loads(value.replace("&#34;", '"')) == exact
        assert text == SHOWN[kind](exact)


def test_curves_end_where_the_run_is(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", STEPS, "interrupted")
    piece = run_piece(of(run.root), "")
    for name in ("loss", "learning-rate", "gradient-norm", "tokens-per-s"):
        assert f'data-name="{name}"' in piece
    ends = re.findall(r'data-step="(\d+)" data-value="([^"]+)"', piece)
    assert {step for step, _ in ends} == {"30"}
    assert float(ends[0][1]) == of(run.root).curves[0].values[-1]
    assert 'max="60" value="30"' in piece


def test_memory_is_beside_its_prediction(tmp_path: Path) -> None:
    piece = run_piece(of(run_folder(tmp_path / "run", STEPS, "interrupted").root), "")
    bars = re.findall(r'data-rank="(\d)" data-bytes="(\d+)"', piece)
    assert [(int(rank), int(held)) for rank, held in bars] == [(one.rank, one.process_bytes) for one in memory(30)]


def test_what_a_run_says_is_text(tmp_path: Path) -> None:
    events: list[Event] = [*STEPS, Noted(HOSTILE), Failed(1, "error", HOSTILE, HOSTILE)]
    run = run_folder(tmp_path / "run", events, "failed", saved=(20,))
    piece = run_piece(of(run.root), HOSTILE)
    assert "<script" not in piece
    assert "\x1b" not in piece
    assert "\u202e" not in piece
    assert piece.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert "<script" not in starting_piece(HOSTILE, HOSTILE, 2)


def test_a_run_before_its_first_step(tmp_path: Path) -> None:
    piece = run_piece(of(run_folder(tmp_path / "run", [], None).root), "")
    assert "not started" in piece
    assert "0 of 60 steps" in piece


def test_starting_and_not_started() -> None:
    assert "starting" in starting_piece("a", "loading", None)
    told = starting_piece("a", "error: no data", 2)
    assert "not started" in told
    assert "exit code 2" in told


def test_the_newest_run_comes_first(tmp_path: Path) -> None:
    import os

    for place, name in enumerate(("old", "new")):
        run = run_folder(tmp_path / name, STEPS, "interrupted")
        os.utime(run.job, ns=(place * 10**9, place * 10**9))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "job.json").write_text("{")
    found = report(tmp_path)
    assert isinstance(found, Runs)
    piece = runs_piece(found.runs)
    assert piece.index(">new<") < piece.index(">old<")
    assert "broken" in piece
    assert "no runs yet" in runs_piece(())


def test_two_plans_side_by_side() -> None:
    left = picturing.draft(planning.plan_request("2x24GB", model="Qwen-7B"))
    right = picturing.draft(planning.plan_request("2x24GB", model="Qwen-7B", method="qlora", global_batch=64))
    piece = comparison(left, right)
    assert piece.count("<svg") == 2
    for name in ("method", "quantization", "global batch"):
        assert f'<th scope="row">{name}</th>' in piece
    assert left.estimate is not None
    assert right.estimate is not None
    ratio = right.estimate.tokens_per_second / left.estimate.tokens_per_second
    assert f"{ratio:.2f} times" in piece
    assert "one configuration" in comparison(left, left)
