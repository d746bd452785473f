from __future__ import annotations

import pytest

from ftplan.estimators.analytic import estimate
from ftplan.launcher import demo
from ftplan.planner.falling_back import LESS, fallback
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.models import load_model
from ftplan.spec import RunConfig

MARGIN = 0.03
SMALL = RunConfig(
    model=str(demo.model_path()), seq_len=128, stack="trl", gradient_checkpointing=False, micro_batch=8, sharding="ddp"
)


def after(config: RunConfig, **asked):
    model, cluster = load_model(config.model), resolve_inventory(parse_inventory("2x8GB"))
    told = estimate(config, model, cluster, margin=MARGIN, replays=True)
    return told, fallback(config, told, model, cluster, margin=MARGIN, **asked)


@pytest.mark.parametrize("same_sharding", [True, False])
def test_it_needs_less_and_keeps_the_batch_and_what_is_trained(same_sharding):
    told, found = after(SMALL, same_sharding=same_sharding)
    assert found is not None
    config, expected = found
    assert expected.needed_bytes <= (1 - LESS) * told.needed_bytes
    assert config.micro_batch * config.accumulation == SMALL.micro_batch * SMALL.accumulation
    for name in ("method", "lora_rank", "lora_targets", "quantization", "weights_dtype", "seq_len", "packing"):
        assert getattr(config, name) == getattr(SMALL, name)
    if same_sharding:
        assert (config.sharding, config.offload) == (SMALL.sharding, SMALL.offload)


def test_packages_that_are_missing_are_left_out():
    _, found = after(SMALL, same_sharding=False, missing_packages=("liger-kernel", "deepspeed"))
    if found is not None:
        assert found[0].kernels == "none"
        assert not found[0].sharding.startswith("zero")


def test_where_nothing_is_left_there_is_no_fallback():
    least = SMALL.model_copy(update={"micro_batch": 1, "accumulation": 8, "gradient_checkpointing": True})
    _, found = after(least, same_sharding=True, missing_packages=("liger-kernel", "deepspeed"))
    assert found is None


def test_one_process_of_several_devices_stays_one():
    alone = SMALL.model_copy(update={"sharding": "none", "micro_batch": 1, "accumulation": 16})
    _, found = after(alone, same_sharding=False)
    assert found is None or found[0].sharding == "none"
