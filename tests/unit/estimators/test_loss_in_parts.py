"""torchtune's linear cross entropy against TRL's tiles and transformers' whole logits."""

import pytest

from ftplan.estimators.analytic import estimate
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.models import load_model
from ftplan.results import Phase
from ftplan.spec import RunConfig

MODEL = load_model("Llama-3.2-1B")
ONE_CARD = resolve_inventory(parse_inventory("1xA100-80GB"))
LOGITS = 4 * 2 * 4096 * MODEL.vocab_size


def told(method, *, stack="torchtune", loss_path="chunked", gpus=ONE_CARD, **fields):
    config = RunConfig(
        model="Llama-3.2-1B", method=method, precision="none", adapter_dtype="bf16", stack=stack, loss_path=loss_path,
        micro_batch=2, seq_len=4096, optimizer="adamw_torch_fused", **fields,
    )  # fmt: skip
    return estimate(config, MODEL, gpus)


def loss_bytes(estimated):
    terms = estimated.ranks[0].terms
    return sum(term.bytes for term in terms if Phase.LOSS in term.alive and term.name == "logits and loss")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_probabilities_of_all_tokens_are_kept_and_one_part_of_the_logits(method):
    kept = told(method).peak_allocated_bytes - told(method, stack="trl").peak_allocated_bytes
    assert kept < 1.5 * LOGITS
    assert 0.85 * LOGITS < loss_bytes(told(method)) < 1.5 * LOGITS
    assert told(method).peak_allocated_bytes < told(method, loss_path="full").peak_allocated_bytes - LOGITS


def test_other_stacks_have_no_parts():
    assert loss_bytes(told("lora", stack="trl")) < LOGITS / 8


def test_sharded_heads_train_in_parts():
    gpus = resolve_inventory(parse_inventory("4xA100-80GB"))
    one, four = told("full"), told("full", gpus=gpus, sharding="fsdp2", sync_each_batch=True)
    assert four.peak_allocated_bytes < one.peak_allocated_bytes
    assert loss_bytes(four) > LOGITS / 2
