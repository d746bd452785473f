"""What a library's own file says of a configuration is what it has, though the file says only a part."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from meant import meant, names_what_is_missing, plain, without_effect, written

from ftplan.launcher.formats import libraries
from ftplan.launcher.formats.given import Format, Target
from ftplan.launcher.formats.rendering import PARTIAL, read_back
from ftplan.spec import RunConfig

ZERO = ("zero1", "zero2", "zero3")
RELEASES = {
    "deepspeed": ("", "0.15.0"),
    "accelerate": ("", "1.15.0", "1.6.0", "1.0.0"),
    "transformers": ("", "", "5.23.0", "5.20.0", "5.8.0", "5.0.0", "4.57.0", "4.45.0", "4.40.0"),
}
SAID = {
    "deepspeed": {"sharding", "offload", "micro_batch", "accumulation", "zero_overlap"},
    "accelerate": {"sharding"},
    "transformers": {"sharding", "micro_batch", "accumulation", "optimizer", "precision", "gradient_checkpointing"},
}
"""At least these are in every file of the format."""


def fixed(name, config):
    if name == "deepspeed":
        if config.sharding not in ZERO:
            return {"sharding": "zero2", "offload": "optimizer"}
        return {}
    if name == "accelerate":
        return {"precision": "bf16"}
    liger = config.kernels == "liger"
    return {"method": "full", "quantization": "none", "loss_path": "liger" if liger else "full"}


def says_what_is_meant(chosen: Format, config: RunConfig, target: Target) -> bool:
    files, error = written(chosen, config, target)
    if error is not None:
        assert names_what_is_missing(error, target)
        return False
    said = read_back(chosen, target, files)
    assert said.keys() >= SAID[chosen.name]
    meant_to_be = config.model_dump()
    taken = without_effect(config) | PARTIAL[chosen.name]
    kept = said.keys() - taken
    assert plain({key: said[key] for key in kept}) == plain({key: meant_to_be[key] for key in kept})
    return True


@pytest.mark.parametrize("chosen", [libraries.DEEPSPEED, libraries.ACCELERATE, libraries.TRANSFORMERS])
def test_what_a_file_says_is_what_was_meant(chosen):
    outcomes = []

    @settings(max_examples=150, deadline=None)
    @given(pair=meant(lambda config: fixed(chosen.name, config), RELEASES[chosen.name]))
    def one(pair):
        outcomes.append(says_what_is_meant(chosen, *pair))

    one()
    assert sum(outcomes) > 0.3 * len(outcomes)
