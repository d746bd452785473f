"""ftplan's engine and LLaMA-Factory side by side: ``python -m benchmarks.side_by_side --out FILE``.

Each case is trained for a few steps with random weights of the real shape, on rows that fill the sequence:

- ``native``: ftplan's engine with the configuration that LLaMA-Factory runs, and TRL's loss in chunks;
- ``native full loss``: the same with the whole logits, as LLaMA-Factory computes the loss;
- ``llamafactory``: by the files that ``ftplan plan --format llamafactory`` writes;
- ``plan``: ftplan's engine with the plan's own choice for the same model, method, length and global batch.

``native`` and ``llamafactory`` take turns for as many rounds as asked; the other two run in the first. OUT gets a JSON
line for each run and a summary as the last one. ``--tiny`` rehearses all of it on a CPU.

LLaMA-Factory 0.9.5 needs older libraries than ftplan, in a folder of their own that ``--llamafactory-site`` names:
``pip install --no-deps --target FOLDER llamafactory==0.9.5 transformers==5.6.0 accelerate==1.11.0 peft==0.18.1
trl==0.24.0 datasets==4.0.0 huggingface_hub==1.33.0 tokenizers==0.22.2`` and what these import that is not there.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.side_by_side import launches, material
from benchmarks.side_by_side.cases import CASES, TINY, Case, native_config
from benchmarks.side_by_side.following import Followed, follow
from benchmarks.side_by_side.launches import Launch, Training
from ftplan.errors import FtplanError
from ftplan.workflows import planning

NATIVE: Final = "native"
FULL_LOSS: Final = "native full loss"
LLAMAFACTORY: Final = "llamafactory"
PLAN: Final = "plan"
RATIOS: Final = ((NATIVE, LLAMAFACTORY), (FULL_LOSS, LLAMAFACTORY), (PLAN, LLAMAFACTORY), (PLAN, NATIVE))
SEED: Final = 42

Row = dict[str, Any]


def main() -> None:
    """Run the cases that are asked for and write the results."""
    given = _arguments()
    known = TINY if given.tiny else CASES
    wanted = [case for case in known if not given.cases or case.id in given.cases]
    deadline = time.monotonic() + given.seconds
    rows: list[Row] = []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", encoding="utf-8") as out:

        def keep(row: Row) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()

        for case in wanted:
            with tempfile.TemporaryDirectory(dir=given.work) as work:
                for row in measured(case, Path(work), given, deadline):
                    rows.append(row)
                    keep(row)
                    print(_said(row), flush=True)
        summary = {"benchmark": "side_by_side", "versions": versions(given.llamafactory_site), **summed(rows)}
        keep(summary)
    print(json.dumps(summary))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.side_by_side", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=[], help=", ".join(case.id for case in (*CASES, *TINY)))
    parser.add_argument("--llamafactory-site", type=Path, default=Path("/tmp/lf"))  # noqa: S108
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=480, help="runs that would begin later are left out")
    parser.add_argument("--run-seconds", type=float, default=150, help="a run that takes longer is ended")
    parser.add_argument("--work", type=Path, help="where weights and runs are kept while they are needed")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on this machine's CPU")
    given = parser.parse_args()
    known = {case.id for case in (TINY if given.tiny else CASES)}
    if unknown := sorted(set(given.cases) - known):
        parser.error(f"no case {', '.join(unknown)}; there is {', '.join(sorted(known))}")
    if "llamafactory" not in launches.releases(given.llamafactory_site):
        parser.error(f"no LLaMA-Factory in {given.llamafactory_site}")
    return given


def measured(case: Case, work: Path, given: argparse.Namespace, deadline: float) -> Iterator[Row]:
    """A row for each run of ``case``."""
    began = time.monotonic()
    ready = material.prepare(case, work, steps=given.steps, seed=SEED)
    training = Training(case, ready, "cpu" if given.tiny else "cuda", given.steps, SEED)
    print(f"{case.id}: prepared in {time.monotonic() - began:.0f} s", flush=True)
    for number in range(1, given.rounds + 1):
        for engine in (NATIVE, LLAMAFACTORY, *((FULL_LOSS, PLAN) if number == 1 else ())):
            row: Row = {"case": case.id, "engine": engine, "round": number}
            left = deadline - time.monotonic()
            if left <= 0:
                yield row | {"status": "no time"}
                continue
            folder = work / f"{engine.replace(' ', '-')}-{number}"
            try:
                launch = _launch(engine, training, given.llamafactory_site, folder)
            except FtplanError as error:
                yield row | {"status": "failed", "log_tail": str(error)}
                continue
            yield row | told(case, launch, follow(launch, min(left, given.run_seconds)), given.steps)
            shutil.rmtree(folder, ignore_errors=True)


def _launch(engine: str, training: Training, site: Path, folder: Path) -> Launch:
    if engine == LLAMAFACTORY:
        return launches.llamafactory(training, site, folder)
    case, model = training.case, str(training.material.model)
    if engine == NATIVE:
        return launches.native(training, native_config(case, model), folder)
    if engine == FULL_LOSS:
        return launches.native(training, native_config(case, model, loss_path="full"), folder)
    request = planning.plan_request(
        "1xcpu" if training.device == "cpu" else "local",
        model=model,
        method=case.method,
        global_batch=case.global_batch,
        seq_len=case.seq_len,
    )
    config, _ = planning.require_config(planning.plan(request))
    return launches.native(training, config, folder)


def told(case: Case, launch: Launch, followed: Followed, steps: int) -> Row:
    """What a run showed."""
    row: Row = {
        "config": launch.config,
        "seconds": round(followed.seconds, 2),
        "card_bytes": followed.card_bytes,
        "steps": len(followed.arrivals),
        "losses": followed.losses,
    }
    if not followed.ok(steps) or followed.step_seconds is None:
        return {"status": "failed", **row, "outcome": str(followed.outcome), "log_tail": followed.log_tail}
    return {
        "status": "measured" if all(map(math.isfinite, followed.losses)) else "no numbers",
        "step_seconds": round(followed.step_seconds, 5),
        "tokens_per_second": round(case.tokens_per_step / followed.step_seconds, 1),
        "first_step_seconds": round(followed.arrivals[0], 2),
        **row,
    }


def summed(rows: Sequence[Row]) -> dict[str, Any]:
    """Tokens per second by case and engine, the median of its rounds, and how they compare."""
    cases: dict[str, dict[str, Any]] = {}
    for case in dict.fromkeys(row["case"] for row in rows):
        speeds = {engine: _speed(rows, case, engine) for engine in (NATIVE, FULL_LOSS, LLAMAFACTORY, PLAN)}
        ratios = {f"{one} / {other}": _ratio(speeds[one], speeds[other]) for one, other in RATIOS}
        cases[case] = {"tokens_per_second": speeds, "ratios": ratios}
    return {"cases": cases, "not_measured": sum(row["status"] != "measured" for row in rows)}


def _speed(rows: Sequence[Row], case: str, engine: str) -> float | None:
    found = [
        row["tokens_per_second"]
        for row in rows
        if (row["case"], row["engine"], row["status"]) == (case, engine, "measured")
    ]
    return median(found) if found else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 3) if one and other else None


def versions(site: Path) -> dict[str, dict[str, str]]:
    """Releases of the libraries that decide: of this Python, and of LLaMA-Factory's folder."""
    names = ("torch", "transformers", "accelerate", "peft", "trl", "liger-kernel", "llamafactory")
    there = launches.releases(site)
    here = {name: metadata.version(name) for name in names if find_spec(name.replace("-", "_"))}
    return {"native": here, "llamafactory": {name: there[name] for name in names if name in there}}


def _said(row: Row) -> str:
    what = f"{row['case']} {row['engine']} {row['round']}: {row['status']}"
    if row["status"] != "measured":
        return f"{what}\n{row.get('log_tail', '')}"
    batch = "{micro_batch}x{accumulation}".format(**row["config"])
    return f"{what} {row['tokens_per_second']:,.0f} tokens/s, batch {batch}, {row['seconds']:.0f} s in all"


if __name__ == "__main__":
    main()
