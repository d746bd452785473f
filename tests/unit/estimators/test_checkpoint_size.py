"""Predicted sizes beside the files that runs of the demo wrote; the data says which and how they were made."""

import json
from pathlib import Path

import pytest

from ftplan.estimators.checkpoint_size import checkpoint_size
from ftplan.estimators.workload import Workload
from ftplan.launcher import demo
from ftplan.planner.inventory import parse_inventory, resolve_inventory
from ftplan.profiles.models import load_model
from ftplan.spec import RunConfig

DATA = json.loads((Path(__file__).parent / "data" / "checkpoints.json").read_text("utf-8"))
CASES = DATA["cases"]


def work_of(model, inventory, **config):
    return Workload(RunConfig(model=model, **config), load_model(model), resolve_inventory(parse_inventory(inventory)))


def demo_work(case):
    sharding = case["config"].get("sharding", "ddp" if case["ranks"] > 1 else "none")
    config = {"stack": "trl", **case["config"], "sharding": sharding}
    return work_of(str(demo.model_path()), f"{case['ranks']}xcpu:4GB", **config)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_what_a_run_wrote_is_told(case):
    size = checkpoint_size(demo_work(case), tokenizer_bytes=DATA["tokenizer_bytes"])
    assert size.checkpoint_bytes == pytest.approx(sum(case["checkpoint"].values()), rel=0.02)
    assert size.final_bytes == pytest.approx(case["final_bytes"], rel=0.02)


@pytest.mark.parametrize(
    "case", [case for case in CASES if "optimizer.pt" in case["checkpoint"]], ids=lambda case: case["id"]
)
def test_each_part_of_it_is_told(case):
    """A total can be right by two errors."""
    size = checkpoint_size(demo_work(case), tokenizer_bytes=DATA["tokenizer_bytes"])
    files = case["checkpoint"]
    weights = files.get("model.safetensors", files.get("adapter_model.safetensors"))
    assert size.weights_bytes == pytest.approx(weights, rel=0.03)
    # States of SGD are a dictionary of settings, and adafactor's of so small a model half headers.
    assert size.optimizer_bytes == pytest.approx(files["optimizer.pt"], rel=0.04, abs=10_000)


def test_a_checkpoint_is_written_before_the_oldest_goes():
    size = checkpoint_size(demo_work(CASES[0]))
    assert size.run_bytes(2) == 3 * size.checkpoint_bytes + size.final_bytes


def test_full_fine_tuning_under_zero_keeps_an_fp32_copy():
    params = load_model("Qwen2.5-7B").total_params
    for stage, copies in ((2, 2), (3, 1)):
        size = checkpoint_size(work_of("Qwen2.5-7B", "8xH100", method="full", sharding=f"zero{stage}"))
        assert size.weights_bytes == copies * 2 * params
        assert size.optimizer_bytes == pytest.approx(12 * params, rel=1e-6)


def test_fsdp_saves_what_it_trains_in_and_a_tied_head_twice():
    for name in ("Qwen2.5-7B", "Qwen2.5-0.5B"):
        model = load_model(name)
        size = checkpoint_size(work_of(name, "8xH100", method="full", sharding="fsdp2"))
        again = model.embedding_params if model.tied else 0
        assert size.weights_bytes == 4 * (model.total_params + again)
        assert size.optimizer_bytes == pytest.approx(8 * model.total_params, rel=1e-4)
