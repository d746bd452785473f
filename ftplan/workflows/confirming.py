"""Confirm a plan by tracing what it chose: the search estimates in closed form, a trace runs the libraries."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ftplan.errors import InputError
from ftplan.planner.search import plan as search_plan
from ftplan.profiles.device_schema import Cluster
from ftplan.profiles.models import load_hf_config, load_model
from ftplan.results import Estimate, Plan, Reason, RejectedGroup, Rejection
from ftplan.spec import PlanRequest, RunConfig
from ftplan.workflows.clusters import known_cluster

ATTEMPTS: Final = 4
"""Plans that are traced before the search is believed to have no better answer."""
STEP: Final = 0.002
"""Part of the card by which the margin grows beyond what a trace found missing."""
LARGEST_MARGIN: Final = 0.49


def confirmed(chosen: Plan) -> Plan:
    """``chosen`` with the traced estimate of its configuration; where that does not fit, the next plan that does.

    The search is repeated with as much more memory kept free as the trace needed over the closed form. Raises
    InputError if the configuration cannot be traced.
    """
    request, plan = chosen.request, chosen
    refused: list[RejectedGroup] = []
    for _ in range(ATTEMPTS):
        if plan.config is None or plan.estimate is None:
            break
        told = trace(plan.config, chosen.request)
        if told.fits:
            return replace(_told(plan, told), request=chosen.request, rejections=(*refused, *plan.rejections))
        refused.append(_refused(plan.config, told))
        lacking = max(told.needed_bytes - plan.estimate.needed_bytes, 0) / told.capacity_bytes
        request = request.model_copy(update={"margin": min(request.margin + lacking + STEP, LARGEST_MARGIN)})
        plan = search_plan(request, load_model(request.model), _cluster(request))
    return replace(
        chosen, config=None, estimate=None, reasons=(), alternatives=(), rejections=(*refused, *plan.rejections)
    )


def checked(chosen: Plan) -> Plan:
    """``chosen`` with the traced estimate of its configuration, whether it fits or not; for a plan made before."""
    if chosen.config is None:
        return chosen
    return _told(chosen, trace(chosen.config, chosen.request))


def before_run(chosen: Plan, *, made_before: bool) -> tuple[Plan, str]:
    """The plan as a run confirms it, and a note where it could not be: on CPUs, or an architecture without a trace."""
    if chosen.estimate is None or chosen.estimate.estimator == "trace":
        return chosen, ""
    if _cluster(chosen.request).gpus[0].kind == "cpu":
        return chosen, ""
    try:
        return (checked(chosen) if made_before else confirmed(chosen)), ""
    except InputError as error:
        return chosen, f"not confirmed by a trace: {error.message}"


def trace(config: RunConfig, request: PlanRequest) -> Estimate:
    """The traced estimate of ``config`` on the inventory of ``request``, with the margin asked for."""
    from ftplan.estimators.trace.estimate import estimate  # a search never needs it

    model = load_model(config.model)
    try:
        return estimate(config, model, load_hf_config(config.model), _cluster(request), margin=request.margin)
    except InputError as error:
        if error.field == "estimator":  # no option of a plan
            raise InputError(error.message, hint="leave --confirm out", field="confirm") from error
        raise


def _cluster(request: PlanRequest) -> Cluster:
    return known_cluster(request.inventory)


def _told(plan: Plan, told: Estimate) -> Plan:
    assert plan.estimate is not None
    difference = told.needed_bytes / plan.estimate.needed_bytes - 1
    reason = Reason("estimate", "trace", f"confirmed by a trace: {100 * difference:+.1f} % against the closed form")
    told = replace(told, training=plan.estimate.training)  # a trace tells nothing new about time
    return replace(plan, estimate=told, reasons=(*plan.reasons, reason))


def _refused(config: RunConfig, told: Estimate) -> RejectedGroup:
    rejection = Rejection(
        rule="trace",
        reason="the search took it to fit, the trace does not",
        hint="less micro-batch, more sharding or a larger card",
        source="ftplan.estimators.trace",
        needed_bytes=told.needed_bytes,
        available_bytes=told.capacity_bytes,
    )
    return RejectedGroup(rejection, config, 1)
