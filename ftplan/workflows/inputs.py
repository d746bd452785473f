"""A user's values as specs: pydantic's errors become ours, with the field and what is valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ftplan.errors import InputError
from ftplan.spec import RunConfig, TrainingRequest


def run_config(fields: Mapping[str, Any]) -> RunConfig:
    """A `RunConfig` from ``fields``; raises InputError that names the field and its valid values."""
    try:
        return RunConfig.model_validate(dict(fields))
    except ValidationError as error:
        raise input_error(error) from error


def training_request(given: Mapping[str, Any]) -> TrainingRequest | None:
    """The training that ``given`` asks about, None if it names none; raises InputError if it lacks the samples."""
    fields = {name: given[name] for name in TrainingRequest.model_fields if given.get(name) is not None}
    if not fields:
        return None
    if "samples" not in fields:
        message = f"{next(iter(fields))} says nothing without samples"
        raise InputError(message, hint="give the number of training samples, too", field="samples")
    try:
        return TrainingRequest.model_validate(fields)
    except ValidationError as error:
        raise input_error(error) from error


def input_error(error: ValidationError) -> InputError:
    """The first problem of a pydantic error in a user's words."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        valid = ", ".join(sorted(RunConfig.model_fields))
        return InputError(f"unknown field {field!r}", hint=f"valid: {valid}", field=field)
    if first["type"] == "missing":
        return InputError(f"{field} is missing", hint=f"give a value for {field}", field=field)
    if not field:
        return InputError(message, hint="change one of these options", field=field)
    return InputError(f"{field}: {message}", hint=f"given: {first['input']!r:.80}", field=field)
