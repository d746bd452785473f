"""What is written for TRL reads back as what was meant, or says which field cannot be written."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from meant import meant, names_what_is_missing, plain, without_effect, written

from ftplan.launcher.formats import trl
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.rendering import read_back, spelled_targets
from ftplan.spec import RunConfig

RELEASES = ("", "", "", "1.16.0", "1.10.0", "1.4.0", "0.20.0")


def of_trl(config: RunConfig) -> dict[str, Any]:
    fixed = dict(trl.pins(config.method))
    if config.method == "lora" and config.sharding == "zero3":
        fixed["adapter_dtype"] = config.weights_dtype
    return fixed


def reads_back(config: RunConfig, target: Target) -> bool:
    """Whether it can be written; then it comes back, else the error names a field."""
    files, error = written(trl.FORMAT, config, target)
    if error is not None:
        assert names_what_is_missing(error, target)
        return False
    back = RunConfig(**read_back(trl.FORMAT, target, files))
    ignored = without_effect(config)
    meant_config = config.model_copy(update={"lora_targets": spelled_targets(config)})
    assert plain(back.model_dump(exclude=ignored)) == plain(meant_config.model_dump(exclude=ignored))
    return True


def test_written_files_say_the_configuration_or_which_field_they_cannot():
    outcomes = []

    @settings(max_examples=250, deadline=None)
    @given(pair=meant(of_trl, RELEASES))
    def one(pair):
        outcomes.append(reads_back(*pair))

    one()
    assert sum(outcomes) > 0.25 * len(outcomes)
