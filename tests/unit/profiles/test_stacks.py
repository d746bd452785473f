import pytest

from ftplan.errors import UnknownNameError
from ftplan.profiles.stacks import list_stacks, load_stack
from ftplan.spec import RunConfig


def config(**fields):
    return RunConfig(**{"model": "Qwen2.5-7B", "method": "lora", "sharding": "zero3", **fields})


@pytest.mark.parametrize(
    ("stack", "fields", "reenters"),
    [
        ("trainer", {}, False),
        ("trl", {}, True),  # forced, sft_trainer.py
        ("trl", {"sharding": "zero2"}, False),
        ("trl", {"method": "full"}, False),
        ("llamafactory", {"sharding": "ddp"}, True),
        ("axolotl", {"sharding": "none"}, True),
        ("swift", {"sharding": "zero2"}, True),
    ],
)
def test_which_checkpoints_are_reentrant(stack, fields, reenters):
    assert load_stack(stack).reenters(config(**fields)) is reenters


@pytest.mark.parametrize(
    ("stack", "fields", "holds"),
    [
        ("trl", {}, False),  # ftplan run puts checkpoints around forwards
        ("llamafactory", {}, True),
        ("axolotl", {}, True),  # transformers before 5.23, as in swift
        ("swift", {}, True),
        ("llamafactory", {"gradient_checkpointing": False}, False),
        ("llamafactory", {"method": "full"}, False),
        ("trainer", {}, False),
    ],
)
def test_where_frozen_weights_stay_whole_through_a_backward(stack, fields, holds):
    assert load_stack(stack).holds_frozen(config(**fields)) is holds


def test_every_stack_says_where_it_was_read():
    assert all(load_stack(name).source for name in list_stacks())


def test_an_unknown_stack_names_those_there_are():
    with pytest.raises(UnknownNameError, match="trainr"):
        load_stack("trainr")


@pytest.mark.parametrize(
    ("stack", "fields", "upcasts"),
    [
        ("llamafactory", {"method": "lora"}, True),
        ("llamafactory", {"method": "full"}, True),
        ("llamafactory", {"method": "full", "precision": "none"}, False),
        ("llamafactory", {"method": "full", "precision": "none", "weights_dtype": "fp32"}, True),
        ("llamafactory", {"method": "lora", "precision": "none"}, True),
        ("trl", {"method": "full"}, False),
    ],
)
def test_llamafactory_casts_what_trains_but_in_pure_16_bit(stack, fields, upcasts):
    config = RunConfig(**{"model": "m", "weights_dtype": "bf16", **fields})
    assert load_stack(stack).upcasts(config) is upcasts
