"""An answer with all that a page shows beside it: what it was chosen from, and files to use it with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import ValidationError

from ftplan.errors import CannotExpressError, DoesNotFitError, InputError
from ftplan.launcher.formats.registry import FORMATS
from ftplan.planner.findings import Findings
from ftplan.planner.landscape import Known, landscape, places, without_refused
from ftplan.planner.search import plan_and_findings
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.models import load_model
from ftplan.results import Estimate, Placed, Plan, to_jsonable
from ftplan.spec import Inventory, PlanRequest, RunConfig
from ftplan.verdicts import Check
from ftplan.workflows import emitting, planning
from ftplan.workflows.checking import Checked
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.emitting import NATIVE, Emission
from ftplan.workflows.estimating import Estimated, estimate_document
from ftplan.workflows.inputs import input_error

FORMATS_SHOWN: Final = ("llamafactory", "axolotl", "trl")
"""Whose files a page holds beside ftplan's own, where none are asked for."""

SAME_TRAINING: Final = ("lora_rank", "lora_targets", "optimizer", "weights_dtype", "precision", "padding", "packing")
"""Beside model, method, length and batch: what other configurations have in common with one that is judged."""

Command = Literal["plan", "check", "estimate"]


@dataclass(frozen=True)
class FileSet:
    """The files of one tool, by name. ``config`` is what they say: another plan where the tool trains in a way of its
    own. ``problem`` says why there are none.
    """

    name: str
    title: str
    files: Mapping[str, str] = field(default_factory=dict)
    config: RunConfig | None = None
    estimate: Estimate | None = None
    problem: str = ""


@dataclass(frozen=True)
class Picture:
    """One answer of ftplan, for a page.

    Attributes:
        document: what ``--json`` prints of it; the answer's figures on a page are looked up in it.
        is_draft: figures are by the fit alone, and a better answer is on its way.
        landscape: all that was estimated for the same training, `answer`'s own configuration with its own figures.

    """

    command: Command
    answer: Plan | Check | Estimated
    document: Mapping[str, Any]
    landscape: tuple[Placed, ...] = ()
    files: tuple[FileSet, ...] = ()
    is_draft: bool = False

    @property
    def config(self) -> RunConfig | None:
        """The configuration that the answer is about, None if there is none."""
        return self.answer.config

    @property
    def estimate(self) -> Estimate | None:
        """What it costs."""
        return self.answer.estimate


def draft(request: PlanRequest) -> Picture:
    """A plan by the fit of what the allocator wastes, without playing any allocation: cautious, within tens of ms.

    Raises InputError for what cannot be planned.
    """
    model, cluster = load_model(request.model), known_cluster(request.inventory)
    # Higher ranks are tried by playing their allocations.
    asked = request.model_copy(update={"highest_rank": False})
    try:
        chosen, seen = plan_and_findings(asked, model, cluster, replays_from=math.inf)
    except ValidationError as error:
        raise input_error(error) from error
    return Picture("plan", chosen, to_jsonable(chosen), places(seen, _own(chosen)), is_draft=True)


def of_plan(chosen: Plan, asked: Emission | None = None, *, shows_files: bool = True) -> Picture:
    """A plan with the files that were ``asked`` for (None: of the tools most used), and those of ftplan itself.

    A page that offers files otherwise shows none.
    """
    request = chosen.request
    seen = landscape(request, load_model(request.model), known_cluster(request.inventory), _own(chosen))
    seen = without_refused(seen, chosen.rejections, chosen.config)
    if not shows_files or chosen.config is None:
        return Picture("plan", chosen, to_jsonable(chosen), seen)
    files = (file_set(chosen, NATIVE), *_foreign(chosen, asked))
    return Picture("plan", chosen, to_jsonable(chosen), seen, files)


def _own(chosen: Plan) -> Known:
    return () if chosen.config is None or chosen.estimate is None else ((chosen.config, chosen.estimate),)


def _foreign(chosen: Plan, asked: Emission | None) -> tuple[FileSet, ...]:
    if asked is None:
        return tuple(file_set(chosen, name) for name in FORMATS_SHOWN)
    titles = (FORMATS[each].title if each in FORMATS else each for each in asked.names if each != NATIVE)
    name, title = ",".join(asked.names), ", ".join(titles)
    return (FileSet(name, title, emitting.emitted(chosen, asked), chosen.config, chosen.estimate),)


def file_set(chosen: Plan, name: str, *, dataset: str = "") -> FileSet:
    """The plan as the files of the format ``name``: as it is where they can say it, else as planned for that tool."""
    title = "ftplan" if name == NATIVE else FORMATS[name].title
    if name == NATIVE:
        return FileSet(name, title, planning.native_files(chosen), chosen.config, chosen.estimate)
    asked = Emission((name,), dataset=dataset)
    try:
        try:
            files = emitting.emitted(chosen, asked)
        except CannotExpressError:
            chosen = emitting.plan(chosen.request, asked)
            files = emitting.emitted(chosen, asked)
    except (InputError, DoesNotFitError) as error:
        return FileSet(name, title, problem=error.message)
    return FileSet(name, title, files, chosen.config, chosen.estimate)


def of_check(checked: Checked) -> Picture:
    """A check among other configurations of the same training, with its fixes among them."""
    check, case = checked.check, checked.case
    if check.config is None or check.estimate is None:
        return Picture("check", check, to_jsonable(check))
    known = ((check.config, check.estimate), *((fix.config, fix.estimate) for fix in check.fixes))
    seen = _others(check.config, case.inventory, case.global_batch, case.margin, case.model, known)
    return Picture("check", check, to_jsonable(check), seen)


def of_estimate(estimated: Estimated) -> Picture:
    """An estimate among other configurations of the same training; without them where the model has no profile."""
    config, told = estimated.config, estimated.estimate
    samples = config.micro_batch * config.accumulation * len(told.ranks)
    model, known = estimated.model, ((config, told),)
    seen = () if model is None else _others(config, estimated.inventory, samples, estimated.margin, model, known)
    return Picture("estimate", estimated, estimate_document(estimated), seen)


def _others(
    config: RunConfig,
    inventory: Inventory,
    samples: int,
    margin: float,
    model: ModelProfile,
    known: Known,
) -> tuple[Placed, ...]:
    """What a plan for the same training and batch would be chosen from; ``known`` alone where none can be asked for."""
    try:
        request = PlanRequest(
            model=config.model,
            inventory=inventory,
            method=config.method,
            global_batch=samples,
            seq_len=config.seq_len,
            margin=min(margin, 0.49),
            pins={name: getattr(config, name) for name in (*SAME_TRAINING, "stack")},
        )
    except ValidationError:
        return places(Findings(), known)
    return landscape(request, model, known_cluster(inventory), known)
