"""Plan, and keep plans as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ftplan.errors import DoesNotFitError, InputError
from ftplan.files import write_atomic
from ftplan.planner.inventory import parse_inventory
from ftplan.planner.search import plan as search_plan
from ftplan.profiles.models import load_model
from ftplan.results import Estimate, Plan, from_json, to_json
from ftplan.spec import PlanRequest, RunConfig
from ftplan.units import parse_size
from ftplan.workflows.clusters import known_cluster
from ftplan.workflows.inputs import input_error, training_request

DEFAULT_SEQ_LEN: Final = 2048

LAUNCH_SCRIPT: Final = """\
#!/usr/bin/env bash
# Trains the plan beside this script; give the data: ./launch.sh --data FILE.jsonl
set -euo pipefail
exec ftplan run "$(dirname "$0")/plan.json" "$@"
"""


def plan(request: PlanRequest) -> Plan:
    """The best configuration for ``request``; raises InputError for what cannot be planned."""
    model = load_model(request.model)
    cluster = known_cluster(request.inventory)
    try:
        return search_plan(request, model, cluster)
    except ValidationError as error:
        raise input_error(error) from error


def plan_request(
    gpus: str, *, host_memory: str | None = None, training: Mapping[str, Any] | None = None, **fields: Any
) -> PlanRequest:
    """A `PlanRequest` from the command line's values; raises InputError.

    ``host_memory`` is text such as 64GB, ``training`` holds fields of `TrainingRequest`.
    """
    memory = parse_size(host_memory) if host_memory is not None else None
    if host_memory is not None and not memory:
        raise InputError(f"host memory {host_memory!r} is no size", hint="for example 64GB", field="host_memory")
    inventory = parse_inventory(gpus, host_memory_bytes=memory)
    if "seq_len" not in fields:
        fields = {**fields, "seq_len": _default_seq_len(fields["model"]), "seq_len_is_default": True}
    try:
        return PlanRequest.model_validate(
            {**fields, "inventory": inventory, "training": training_request(training or {})}
        )
    except ValidationError as error:
        raise input_error(error) from error


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
    config, _ = require_config(chosen)
    files = {
        "plan.json": to_json(chosen),
        "config.yaml": _yaml(config),
        "launch.sh": LAUNCH_SCRIPT,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomic(folder / name, text)
        (folder / "launch.sh").chmod(0o755)
    except OSError as error:
        hint = "name a folder that can be made or written"
        raise InputError(f"cannot write to {folder}: {error.strerror}", hint=hint, field="out") from error
    return tuple(folder / name for name in files)


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
