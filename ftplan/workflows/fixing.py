"""Fixes in the words of somebody's own files, and writing them there."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ftplan.errors import InputError
from ftplan.estimators.analytic import estimate
from ftplan.files import write_atomic
from ftplan.launcher.formats.partial import Partial
from ftplan.launcher.formats.patching import COMMAND_LINE, ENVIRONMENT, EVAL_KEYS, Patch, patch
from ftplan.launcher.formats.reading import as_in, shown
from ftplan.planner.mending import Mended, Move, mended
from ftplan.planner.waste import wasted
from ftplan.results import Estimate
from ftplan.spec import RunConfig
from ftplan.verdicts import Fix, Problem, Severity
from ftplan.workflows.case import Case
from ftplan.workflows.rewriting import says

NOT_A_CHOICE: Final = ("padding", "loss_path", "sync_each_batch")
"""Fields that follow from others, and are no news to a user."""

SAME_SPEED: Final = 1.03
"""Estimates of a step tell no smaller difference."""


def fixes(case: Case, told: Estimate, *, evaluation: bool = False) -> tuple[Fix, ...]:
    """What makes a configuration fit, fastest first, each with its edits where the files' own words can say it.

    ``evaluation`` says that it is evaluations of a micro-batch of their own that do not fit: they get that of training.
    """
    config, model, cluster, margin = case.config, case.model, case.cluster, case.margin
    known: dict[RunConfig, Patch | None] = {}

    def found(new: RunConfig) -> Patch | None:
        if new not in known:
            known[new] = _patched(case, new, evaluation=evaluation)
        return known[new]

    if evaluation and told.fits:
        alone = estimate(config, model, cluster, margin=margin, replays=True)
        if alone.fits:
            move = Move(f"evaluations of micro-batch {config.micro_batch}, as training has", {})
            return (_fix(Mended((move,), config, alone), config, told, found(config)),)
    answers = mended(config, model, cluster, margin=margin, allowed=lambda new: found(new) is not None)
    if not answers:
        answers = mended(config, model, cluster, margin=margin)
    return tuple(_fix(one, config, told, found(one.config)) for one in answers)


def _patched(case: Case, new: RunConfig, *, evaluation: bool = False) -> Patch | None:
    """The edits that say ``new``; None where the files' own words cannot say it."""
    old = case.named(case.config)
    made = patch(case.source, old, case.named(new), case.target, case.files, evaluation=evaluation)
    return made if made is not None and says(case.source, made, case.config, new, case.target, case.files) else None


def batch_fixes(case: Case, told: Estimate) -> tuple[Fix, ...]:
    """The accumulation that keeps the batch an earlier run had on its devices; none if nothing changed."""
    if "gpus" not in case.was:
        return ()
    config = case.config
    samples = int(case.was.get("samples", config.micro_batch * config.accumulation * case.was["gpus"]))
    accumulation, left = divmod(samples, config.micro_batch * case.ranks)
    if left or not accumulation or accumulation == config.accumulation:
        return ()
    new = config.model_copy(update={"accumulation": accumulation})
    kept = estimate(new, case.model, case.cluster, margin=case.margin, replays=True)
    what = f"accumulation {accumulation}, which keeps the batch of {samples} samples"
    mended_batch = Mended((Move(what, {"accumulation": accumulation}),), new, kept)
    return (_fix(mended_batch, config, told, _patched(case, new)),) if kept.fits else ()


def _fix(one: Mended, config: RunConfig, told: Estimate, made: Patch | None) -> Fix:
    return Fix(
        what=", ".join(move.what for move in one.moves),
        fields=_changed_fields(config, one.config),
        changes=made.changes if made is not None else (),
        config=one.config,
        estimate=one.estimate,
        speed_ratio=one.estimate.tokens_per_second / told.tokens_per_second,
        keeps_result=one.keeps_result,
        new_files=dict(made.new_files) if made is not None else {},
    )


def _changed_fields(old: RunConfig, new: RunConfig) -> dict[str, Any]:
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    return {name: value for name, value in after.items() if before[name] != value and name not in NOT_A_CHOICE}


def waste_problems(case: Case, told: Estimate) -> list[Problem]:
    """What the configuration pays without need, as problems with the gain."""
    found = []
    for one in wasted(case.config, told, case.model, case.cluster, margin=case.margin):
        key = _key_of(case.part, one.move.fields)
        found.append(
            Problem(
                "inefficiency",
                Severity.NOTE,
                f"{one.move.what} fits too, and is {_gain(one.speed_ratio)}",
                hint="the global batch and the result stay the same",
                key=key,
                needed_bytes=one.estimate.needed_bytes,
                available_bytes=one.estimate.capacity_bytes,
            )
        )
    return found


def _gain(ratio: float) -> str:
    return f"about {ratio - 1:.0%} faster" if ratio >= SAME_SPEED else "as fast, with less machinery"


def _key_of(part: Partial, fields: Mapping[str, Any]) -> str:
    """The user's own word for the first field that changes."""
    origin = next((part.origins[name] for name in fields if name in part.origins), None)
    return origin.key if origin is not None else ""


def write_fix(case: Case, fix: Fix) -> tuple[Path, ...]:
    """Write ``fix`` into the user's files and return what was written; raises InputError where its edits are none.

    Every file is replaced whole or not at all. What belongs into the environment or onto a command line is left to the
    user, who is told.
    """
    new, edited = fixed_texts(case, fix)
    for path in edited:
        _require_own(case, path)
    taken = [path for path in new if path.exists()]
    if taken:
        raise InputError(f"{taken[0]} is there already", hint="move it away, or make the change by hand", field="fix")
    written = {**new, **edited}
    try:
        for path, text in written.items():
            _replace(path, text)
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror}", hint="make the change by hand", field="fix") from error
    return tuple(written)


def fixed_texts(case: Case, fix: Fix) -> tuple[dict[Path, str], dict[Path, str]]:
    """The new files and the edited ones that ``fix`` makes, whole; raises InputError where it is no edit of files."""
    evaluation = any(change.key.removeprefix("--") in EVAL_KEYS for change in fix.changes)
    made = _patched(case, fix.config, evaluation=evaluation) if fix.changes else None
    if made is None or not (made.texts or made.new_files):
        raise InputError("this fix cannot be written into the files", hint="make the change by hand", field="fix")
    given = case.source.given.base
    base = given if not given.suffix else given.parent
    return {base / name: text for name, text in made.new_files.items()}, dict(made.texts)


def _require_own(case: Case, path: Path) -> None:
    """Raise InputError for a file that is neither beside the configuration nor below the current folder."""
    folders = (Path.cwd(), Path(case.source.words[0]).resolve().parent)
    if not any(path.resolve().is_relative_to(folder) for folder in folders):
        hint = "make the change by hand, or run this in a folder above it"
        raise InputError(f"{shown(path)} is outside of the configuration's folder", hint=hint, field="fix")


def _replace(path: Path, text: str) -> None:
    """Put ``text`` into the file that ``path`` leads to, which keeps its mode, line ends and byte order mark."""
    real = path.resolve()
    mode = real.stat().st_mode if real.exists() else None
    write_atomic(real, as_in(real, text))
    if mode is not None:
        real.chmod(stat.S_IMODE(mode))


def _words(value: Any) -> str:
    """A value as a command line has it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def by_hand(fix: Fix) -> tuple[str, ...]:
    """What of a fix is not in a file: environment variables and commands."""
    return tuple(
        f"{change.key}={change.new}" if change.file == ENVIRONMENT else f"{change.key} {_words(change.new)}"
        for change in fix.changes
        if change.file in (ENVIRONMENT, COMMAND_LINE)
    )
