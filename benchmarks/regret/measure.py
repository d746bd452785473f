"""Measure plans, neighbours and fixed advice on this machine's GPUs: ``python -m benchmarks.regret.measure OUT ID...``.

Each of them trains a few steps with random weights under a cap like the emulated card's memory. OUT gets a line for
each in ``regret.jsonl``: the combination, the configuration, what was predicted and what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.regret.combinations import COMBINATIONS, Combination, trials
from ftplan.estimators.analytic import estimate
from ftplan.launcher.trials import Trial, Trialled, TrialsSetup, run_trials
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.models import load_hf_config, load_model
from ftplan.results import to_jsonable
from ftplan.spec import RunConfig


def main() -> None:
    """Measure the combinations whose ids are given, before the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("ids", nargs="+", choices=[one.id for one in COMBINATIONS])
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--card", default="H100")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="rows that need not be measured again")
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    wanted = [one for one in COMBINATIONS if one.id in given.ids]
    for gpus in sorted({one.gpus for one in wanted}):
        measure([one for one in wanted if one.gpus == gpus], given, gpus, deadline)


def measure(combinations: list[Combination], given: argparse.Namespace, gpus: int, deadline: float) -> None:
    """All trials of combinations with as many GPUs, in as few processes as possible."""
    rows: dict[str, tuple[Combination, str, RunConfig]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        asked = []
        for combination in combinations:
            folder = Path(scratch, combination.model)
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(load_hf_config(combination.model)))
            known = _known(given.known, combination, given.card)
            for name, config in trials(combination, given.card):
                if config in known:
                    continue
                trial_id = f"{combination.id}/{len(rows)}"
                rows[trial_id] = combination, name, config
                cap = resolve_inventory(parse_inventory(combination.inventory(given.card))).gpus[0].usable_bytes
                asked.append(_trial(trial_id, config, cap if given.device == "cuda" else None, folder))

        def keep(told: Trialled) -> None:
            combination, name, config = rows[told.trial]
            line = json.dumps(_row(combination, name, config, told, given.card))
            with (given.out / "regret.jsonl").open("a") as file:
                file.write(line + "\n")
            print(_said(combination, name, config, told), flush=True)

        setup = TrialsSetup(
            architecture=str(folder),
            world_size=gpus,
            device=given.device,
            max_accumulation=2,
            steps=2,
            threads_per_process=max(1, (os.cpu_count() or 1) // gpus),
        )
        run_trials(asked, setup, folder=given.out / f"trials-{gpus}", deadline=deadline, on_result=keep)


def _known(files: list[Path], combination: Combination, card: str) -> list[RunConfig]:
    """Configurations of a combination that earlier rows hold, measured or out of memory."""
    rows = (json.loads(line) for file in files for line in file.read_text().splitlines())
    return [
        RunConfig.model_validate(row["config"])
        for row in rows
        if (row["combination"], row["card"]) == (combination.id, card)
        and row["measured"]["status"] in ("measured", "out_of_memory")
    ]


def _trial(trial_id: str, config: RunConfig, cap: int | None, folder: Path) -> Trial:
    return Trial(id=trial_id, config=config, cap_bytes=cap, architecture=str(folder))


def _row(combination: Combination, name: str, config: RunConfig, told: Trialled, card: str) -> dict[str, object]:
    cluster = resolve_inventory(parse_inventory(combination.inventory(card)))
    predicted = estimate(config, load_model(config.model), cluster, margin=0.03, replays=True)
    return {
        "combination": combination.id,
        "name": name,
        "card": card,
        "config": config.model_dump(mode="json"),
        "predicted": {
            "fits": predicted.fits,
            "needed_bytes": predicted.needed_bytes,
            "peak_allocated_bytes": predicted.peak_allocated_bytes,
            "process_bytes": predicted.process_bytes,
            "step_seconds": predicted.step_seconds,
        },
        "measured": to_jsonable(told),
    }


def _said(combination: Combination, name: str, config: RunConfig, told: Trialled) -> str:
    kind = " ".join(str(each) for each in _kind(config))
    speed = f"{told.tokens_per_second:,.0f} tokens/s" if told.tokens_per_second else told.message[:160]
    return f"{combination.id} {name} [{kind}] {told.status} {speed} {told.seconds:.0f} s"


def _kind(config: RunConfig) -> Iterator[object]:
    yield config.sharding
    yield config.offload
    yield "checkpoints" if config.gradient_checkpointing else "keeps"
    yield config.kernels
    yield f"{config.micro_batch}x{config.accumulation}"


if __name__ == "__main__":
    main()
