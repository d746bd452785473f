"""Estimate one configuration, or a file of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from ftplan.errors import FtplanError, InputError, ModelConfigError, UnknownNameError
from ftplan.estimators.analytic import estimate as analytic_estimate
from ftplan.estimators.training_time import with_training
from ftplan.planner.inventory import parse_inventory
from ftplan.planner.rules import first_rejection
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.models import load_hf_config, load_model
from ftplan.results import Estimate, to_jsonable
from ftplan.spec import EstimatorName, Inventory, RunConfig, TrainingRequest
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.inputs import run_config, training_request

ESTIMATORS: Final = get_args(EstimatorName)
NOT_FIELDS: Final = frozenset({"id", "gpus", "margin", "estimator", *TrainingRequest.model_fields})
"""What a line of a batch holds beside fields of `RunConfig`."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """An estimate with what it was made for."""

    config: RunConfig
    name: str
    """The model's id, or the path it was given by."""
    cluster: Cluster
    estimate: Estimate
    inventory: Inventory
    model: ModelProfile | None
    """None where a trace told of an architecture that has no profile."""
    margin: float


def estimate(
    fields: Mapping[str, Any],
    gpus: str,
    *,
    margin: float = 0.0,
    estimator: str = "analytic",
    training: Mapping[str, Any] | None = None,
) -> Estimated:
    """Estimate one configuration given as fields of `RunConfig`; sharding defaults to ddp on several devices.

    ``estimator`` is one of `ESTIMATORS`; ``training`` holds fields of `TrainingRequest` if a whole training is asked
    for. Raises InputError for anything unknown or contradictory.
    """
    asked = training_request(training or {})
    if estimator not in ESTIMATORS:
        raise UnknownNameError("estimator", estimator, ESTIMATORS, field="estimator")
    inventory = parse_inventory(gpus)
    cluster = known_cluster(inventory)
    given = dict(fields)
    given.setdefault("sharding", "ddp" if cluster.world_size > 1 else "none")
    config = run_config(given)
    model = _profile(config.model, needed=estimator == "analytic")
    if estimator == "trace":
        from ftplan.estimators.trace.estimate import estimate as trace_estimate  # the search never needs it

        estimated = trace_estimate(config, model, load_hf_config(config.model), cluster, margin=margin)
    else:
        assert model is not None
        estimated = analytic_estimate(config, model, cluster, margin=margin, replays=True)
    conflict = first_rejection(config, model, cluster) if model is not None else None
    if conflict is not None:
        note = f"this would not run: {conflict.reason} ({conflict.hint})"
        estimated = replace(estimated, notes=(note, *estimated.notes))
    if asked is not None:
        estimated = with_training(estimated, asked, config, model, cluster)
    name = model.id if model is not None else config.model
    return Estimated(config, name, cluster, estimated, inventory, model, margin)


def _profile(name: str, *, needed: bool) -> ModelProfile | None:
    """The model's profile; None where it need not have one and its config maps to none."""
    try:
        return load_model(name)
    except ModelConfigError:
        if needed:
            raise
        return None


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """One line of a batch: its document, and whether the line was bad."""

    document: Mapping[str, Any]
    failed: bool


def estimate_batch(lines: Iterable[str], defaults: Mapping[str, Any]) -> Iterable[BatchAnswer]:
    """Answer each JSON line: names of `RunConfig` with ``gpus`` and ``id``; a bad line gives an error in its place."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _answer(line, number, defaults)


def _answer(line: str, number: int, defaults: Mapping[str, Any]) -> BatchAnswer:
    case: Mapping[str, Any] = {}
    try:
        case = _parse_case(line, number)
        given = {**defaults, **case}
        estimated = _checked(given)
        return BatchAnswer({"id": case.get("id"), **estimate_document(estimated)}, failed=False)
    except FtplanError as error:
        problem = {"field": error.field, "message": error.message, "hint": error.hint}
        return BatchAnswer({"id": case.get("id"), "error": problem}, failed=True)


def _checked(given: Mapping[str, Any]) -> Estimated:
    fields = {key: value for key, value in given.items() if key not in NOT_FIELDS}
    gpus, margin = given.get("gpus", ""), given.get("margin", 0.0)
    if not isinstance(gpus, str) or not gpus:
        raise InputError("gpus is missing or no text", hint="for example 2x24GB", field="gpus")
    if not isinstance(margin, int | float) or not 0 <= margin < 1:
        raise InputError("margin is no number from 0 to 1", hint="for example 0.03", field="margin")
    estimator = str(given.get("estimator", "analytic"))
    return estimate(fields, gpus, margin=float(margin), estimator=estimator, training=given)


def _parse_case(line: str, number: int) -> Mapping[str, Any]:
    try:
        case = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"line {number} is not JSON: {error.msg}", hint="one JSON object a line") from error
    if not isinstance(case, dict):
        raise InputError(
            f"line {number} is no JSON object", hint='for example {"id": 1, "model": "Qwen-7B", "gpus": "1x24GB"}'
        )
    return case


def estimate_document(estimated: Estimated) -> dict[str, Any]:
    """The JSON document of ``ftplan estimate``."""
    document: dict[str, Any] = {"config": estimated.config.model_dump(mode="json")}
    document.update(to_jsonable(estimated.estimate))
    return document
