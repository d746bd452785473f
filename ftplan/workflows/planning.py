"""Plan, and keep plans as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import ValidationError

from ftplan.errors import DoesNotFitError, InputError
from ftplan.estimators.training_time import device_prices
from ftplan.files import write_atomic
from ftplan.planner.inventory import parse_inventory, part_of, smaller_inventories
from ftplan.planner.limits import longest_sequence
from ftplan.planner.ranking import NEAR_EQUAL
from ftplan.planner.search import plan as search_plan
from ftplan.profiles.model_schema import ModelProfile
from ftplan.profiles.models import load_model
from ftplan.results import Advice, Estimate, Plan, from_json, to_json
from ftplan.spec import Inventory, Link, PlanRequest, RunConfig
from ftplan.units import HOUR_SECONDS, parse_size
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.inputs import input_error, training_request
from ftplan.workflows.moving import missing_packages, moved

DEFAULT_SEQ_LEN: Final = 2048

METHOD_ORDER: Final = ("full", "lora", "qlora", "llama-adapter")
"""Best first, as `planner.space` has them."""

LAUNCH_SCRIPT: Final = """\
#!/usr/bin/env bash
# Trains the plan beside this script; give the data: ./launch.sh --data FILE.jsonl
set -euo pipefail
exec ftplan run "$(dirname "$0")/plan.json" "$@"
"""


def plan(request: PlanRequest) -> Plan:
    """The best configuration for ``request``; raises InputError for what cannot be planned."""
    model = load_model(request.model)
    try:
        chosen = _chosen(request, model)
        if chosen.config is not None or not request.seq_len_is_limit:
            return chosen
        found = longest_sequence(request, model, known_cluster(request.inventory))
        return chosen if found is None else _chosen(request.model_copy(update={"seq_len": found}), model)
    except ValidationError as error:
        raise input_error(error) from error


def _chosen(request: PlanRequest, model: ModelProfile) -> Plan:
    """The plan for the length asked for."""
    if request.objective == "cost":
        return _cheapest(request, model)
    return _without_the_slow_cards(search_plan(request, model, known_cluster(request.inventory)), model)


def _cheapest(request: PlanRequest, model: ModelProfile) -> Plan:
    """The plan that trains a token for the fewest dollars, which may leave cards of the inventory unused.

    Where a card has no price, every one counts as much.
    """
    plans = [search_plan(request, model, known_cluster(request.inventory))]
    for inventory in smaller_inventories(request.inventory):
        with suppress(InputError):  # the batch, or a pinned part of it, does not split over these
            asked = request.model_copy(update={"inventory": inventory})
            plans.append(search_plan(asked, model, known_cluster(inventory)))
    fitting = [one for one in plans if one.config is not None]
    if not fitting:
        return plans[0]
    # A better method before a lower price, as everywhere; what costs about as much on more cards is done sooner.
    best_method = min(METHOD_ORDER.index(_config(one).method) for one in fitting)
    alike = [one for one in fitting if METHOD_ORDER.index(_config(one).method) == best_method]
    cheapest = min(map(cost, alike))
    near = [one for one in alike if cost(one) <= (1 + NEAR_EQUAL) * cheapest]
    best = max(near, key=lambda one: one.estimate.tokens_per_second if one.estimate else 0.0)
    return replace(best, advice=(_costs(best, fitting), *best.advice))


def _costs(best: Plan, fitting: Sequence[Plan]) -> Advice:
    """What a token costs on the other parts of the inventory."""
    ratios = {one.request.inventory.text: cost(one) / cost(best) for one in fitting if one is not best}
    others = ", ".join(f"{text} {ratio - 1:+.0%}" for text, ratio in ratios.items())
    text = f"a token costs least on {best.request.inventory.text}, or as much and is done sooner"
    figures = {f"cost_ratio {text}": ratio for text, ratio in ratios.items()}
    return Advice("cost", text + (f" ({others})" if others else ""), figures)


def cost(plan: Plan) -> float:
    """Dollars for a million tokens; of cards without a price each counts one dollar an hour."""
    assert plan.estimate is not None
    cluster = known_cluster(plan.request.inventory)
    given = plan.request.training.price if plan.request.training else None
    prices = device_prices(cluster.gpus[: len(plan.estimate.ranks)], given)
    hourly = sum(price for price in prices if price is not None) if None not in prices else float(len(prices))
    return hourly / HOUR_SECONDS / plan.estimate.tokens_per_second * 1e6


def _without_the_slow_cards(chosen: Plan, model: ModelProfile) -> Plan:
    """``chosen`` with a word on whether the better of unequal cards would do more alone."""
    groups = chosen.request.inventory.groups
    if len(groups) < 2 or chosen.request.inventory.nodes > 1 or chosen.estimate is None:
        return chosen
    found: dict[str, float] = {}
    for group in groups:
        inventory = part_of(chosen.request.inventory, (group,))
        with suppress(InputError):  # the batch, or a pinned part of it, does not split over these
            alone = search_plan(
                chosen.request.model_copy(update={"inventory": inventory}), model, known_cluster(inventory)
            )
            if alone.estimate is not None and _config(alone).method == _config(chosen).method:
                found[inventory.text] = alone.estimate.tokens_per_second / chosen.estimate.tokens_per_second
    better = {text: ratio for text, ratio in found.items() if ratio > 1}
    if not better:
        return chosen
    best = max(better, key=better.__getitem__)
    text = f"{best} alone would be {better[best] - 1:.0%} faster: leave the other cards out"
    return replace(chosen, advice=(*chosen.advice, Advice("leave_cards_out", text, better)))


def _config(plan: Plan) -> RunConfig:
    assert plan.config is not None
    return plan.config


def plan_request(
    gpus: str,
    *,
    host_memory: str | None = None,
    link: str | None = None,
    network: str | None = None,
    training: Mapping[str, Any] | None = None,
    lora_rank: str | None = None,
    max_seq: int | None = None,
    was: Mapping[str, Any] | None = None,
    **fields: Any,
) -> PlanRequest:
    """A `PlanRequest` from the command line's values; raises InputError.

    ``host_memory`` is text such as 64GB, ``training`` holds fields of `TrainingRequest`. ``lora_rank`` is a number or
    ``auto``, ``max_seq`` a length that may be shortened. ``was`` holds fields of `FormerBatch`: of the configuration
    that this one replaces, whose samples are the global batch where none is given.
    """
    memory = parse_size(host_memory) if host_memory is not None else None
    if host_memory is not None and not memory:
        raise InputError(f"host memory {host_memory!r} is no size", hint="for example 64GB", field="host_memory")
    inventory = parse_inventory(gpus, host_memory_bytes=memory)
    inventory = with_links(inventory, link, network)
    if lora_rank is not None:
        fields = _with_rank(fields, lora_rank)
    if max_seq is not None:
        fields = _with_limit(fields, max_seq)
    if was:
        fields = moved(fields, was, inventory.world_size)
    if inventory.text.strip().lower() == "local":
        fields["missing_packages"] = missing_packages()
    if "seq_len" not in fields:
        fields = {**fields, "seq_len": _default_seq_len(fields["model"]), "seq_len_is_default": True}
    try:
        return PlanRequest.model_validate(
            {**fields, "inventory": inventory, "training": training_request(training or {})}
        )
    except ValidationError as error:
        raise input_error(error) from error


def with_links(inventory: Inventory, link: str | None, network: str | None) -> Inventory:
    """The inventory with the links that are stated; raises InputError for what is none."""
    links = get_args(Link)
    if link is not None and link not in links:
        raise InputError(f"link {link!r} is unknown", hint=f"valid: {', '.join(links)}", field="link")
    speed = parse_size(network) if network is not None else None
    if network is not None and not speed:
        raise InputError(f"network {network!r} is no rate", hint="bytes a second, such as 25GB", field="network")
    stated = {"link": link, "network_bytes_per_second": float(speed) if speed else None}
    return inventory.model_copy(update={name: value for name, value in stated.items() if value is not None})


def _with_rank(fields: Mapping[str, Any], lora_rank: str) -> dict[str, Any]:
    """A rank that is asked for is a pin; ``auto`` leaves it to the planner."""
    if lora_rank.strip().lower() == "auto":
        return {**fields, "highest_rank": True}
    try:
        number = int(lora_rank)
    except ValueError:
        number = 0
    if number < 1:
        raise InputError(f"rank {lora_rank!r} is no rank", hint="a number of at least 1, or auto", field="lora_rank")
    return {**fields, "pins": {**fields.get("pins", {}), "lora_rank": number}}


def _with_limit(fields: Mapping[str, Any], max_seq: int) -> dict[str, Any]:
    if "seq_len" in fields:
        raise InputError("--seq-len and --max-seq exclude each other", hint="give one of them", field="max_seq")
    return {**fields, "seq_len": max_seq, "seq_len_is_limit": True}


def _default_seq_len(model: str) -> int:
    """The usual length, or all positions of a model with fewer learned ones."""
    profile = load_model(model)
    learned = profile.layers[0].attention.positions == "learned"
    return min(DEFAULT_SEQ_LEN, profile.max_positions or DEFAULT_SEQ_LEN) if learned else DEFAULT_SEQ_LEN


def load_plan(path: Path) -> Plan:
    """The plan that ``--out`` wrote; raises InputError if the file is none."""
    file = path / "plan.json" if path.is_dir() else path
    try:
        return from_json(Plan, file.read_bytes())
    except OSError as error:
        hint = "write one with ftplan plan --out DIR"
        raise InputError(f"cannot read {file}: {error.strerror}", hint=hint, field="plan") from error
    except ValueError as error:
        raise InputError(
            f"{file} is not a plan of this version of ftplan", hint="write one with ftplan plan --out DIR", field="plan"
        ) from error


def write_plan(chosen: Plan, folder: Path) -> tuple[Path, ...]:
    """Write plan.json, the configuration as YAML and a script that launches it into ``folder``; return their paths.

    Each file is complete or absent. Raises InputError if the folder cannot be written.
    """
    files = native_files(chosen)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomic(folder / name, text)
        (folder / "launch.sh").chmod(0o755)
    except OSError as error:
        hint = "name a folder that can be made or written"
        raise InputError(f"cannot write to {folder}: {error.strerror}", hint=hint, field="out") from error
    return tuple(folder / name for name in files)


def native_files(chosen: Plan) -> dict[str, str]:
    """The plan as ftplan's own files, by name; raises DoesNotFitError where nothing fits."""
    config, _ = require_config(chosen)
    return {"plan.json": to_json(chosen), "config.yaml": _yaml(config), "launch.sh": LAUNCH_SCRIPT}


def _yaml(config: RunConfig) -> str:
    import yaml

    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def require_config(chosen: Plan) -> tuple[RunConfig, Estimate]:
    """The plan's configuration; raises DoesNotFitError with the nearest miss if there is none."""
    if chosen.config is None or chosen.estimate is None:
        nearest = chosen.rejections[0].rejection if chosen.rejections else None
        hint = f"nearest miss: {nearest.reason}; {nearest.hint}" if nearest else ""
        raise DoesNotFitError("no configuration fits", hint=hint)
    return chosen.config, chosen.estimate
