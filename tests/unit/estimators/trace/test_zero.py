"""Invariants of traced ZeRO ranks, traced in child processes because DeepSpeed patches globally."""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "deepspeed")
pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in LIBRARIES), reason=f"needs {', '.join(LIBRARIES)}"
)

MODEL = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": False,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
RUN = {"model": "tiny", "method": "full", "seq_len": 16}
STAGES = ("zero1", "zero2", "zero3")
LARGE_BUCKET = 10**8
"""Elements: a hundred times the model."""
TWO = {
    "zero1": {}, "zero2": {}, "zero3": {},
    "zero2 optimizer": {"offload": "optimizer"},
    "zero3 params": {"offload": "optimizer+params"},
    "zero1 accumulated": {"accumulation": 3}, "zero2 accumulated": {"accumulation": 3},
    "zero3 accumulated": {"accumulation": 3},
    "zero2 offloaded and accumulated": {"offload": "optimizer", "accumulation": 3},
    "zero2 adapters": {"method": "lora"}, "zero3 adapters": {"method": "lora"},
    **{f"{stage} large bucket": {"method": "lora", "zero_reduce_bucket": LARGE_BUCKET} for stage in STAGES},
    "zero1 large bucket alone": {"method": "lora", "zero_reduce_bucket": LARGE_BUCKET, "zero_overlap": False},
    "zero3 large bucket alone": {"method": "lora", "zero_reduce_bucket": LARGE_BUCKET, "zero_overlap": False},
    "zero1 large bucket accumulated": {"method": "lora", "zero_reduce_bucket": LARGE_BUCKET, "accumulation": 3},
}  # fmt: skip
FOUR = {"zero1": {}, "zero2": {}, "zero3": {}}
PARAMETERS = 2 * 4096 * 128 + 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256) + 5 * 128
BF16, FP32 = 2, 4


def traces(world_size):
    """What each run held on rank 0."""
    return children()[world_size]


@cache
def children():
    """One child for each number of ranks, at the same time; all runs of a child share its process group."""
    started = {world_size: child(world_size, runs) for world_size, runs in ((2, TWO), (4, FOUR))}
    told = {}
    for world_size, process in started.items():
        out, err = process.communicate()
        assert process.returncode == 0, err[-2000:]
        told[world_size] = json.loads(out.splitlines()[-1])
    return told


def child(world_size, runs):
    configs = {name: RUN | {"sharding": name.split()[0]} | extra for name, extra in runs.items()}
    asked = json.dumps({"world_size": world_size, "configs": configs})
    paths = [str(Path(__file__).parents[4]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, __file__, asked], stdout=pipe, stderr=pipe, env=environment, text=True)


@pytest.mark.parametrize("stage", STAGES)
def test_more_ranks_never_raise_what_is_held(stage):
    two, four = traces(2)[stage], traces(4)[stage]
    assert four["prepared"] < two["prepared"]
    assert four["held"] < two["held"]
    assert four["parts"]["optimizer states"] == pytest.approx(two["parts"]["optimizer states"] / 2, rel=0.01)


def test_each_stage_holds_less_than_the_one_before():
    # With two ranks ZeRO-3 holds more: its gradient buffer is there between the steps too.
    held = [traces(4)[stage]["prepared"] for stage in STAGES]
    assert held == sorted(held, reverse=True)
    assert held[2] < held[1]


def test_stages_1_and_2_keep_whole_weights_and_stage_3_a_shard():
    assert traces(4)["zero2"]["parts"]["weights"] == pytest.approx(BF16 * PARAMETERS, rel=0.01)
    assert traces(4)["zero3"]["parts"]["weights"] == pytest.approx(BF16 * PARAMETERS / 4, rel=0.01)


@pytest.mark.parametrize(("offloaded", "kept"), [("zero2 optimizer", "zero2"), ("zero3 params", "zero3")])
def test_offload_moves_the_states_to_the_host(offloaded, kept):
    there, here = traces(2)[offloaded], traces(2)[kept]
    states = here["parts"]["optimizer states"]
    assert states == pytest.approx(2 * FP32 * PARAMETERS / 2, rel=0.01)
    assert there["host"]["optimizer states"] == pytest.approx(states, rel=0.01)
    assert there["host"]["master weights"] >= FP32 * PARAMETERS / 2
    assert not {"optimizer states", "master weights"} & set(there["parts"])
    assert not here["host"]
    assert there["held"] < here["held"] - states


def test_offloaded_parameters_leave_the_device():
    assert traces(2)["zero3 params"]["held"] < BF16 * PARAMETERS / 4
    assert traces(2)["zero3 params"]["host"]["weights"] >= BF16 * PARAMETERS / 2


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_ends_where_one_micro_batch_does(stage):
    once, thrice = traces(2)[stage], traces(2)[f"{stage} accumulated"]
    assert thrice["held"] == once["held"]
    assert thrice["peak"] >= once["peak"]
    assert thrice["backwards"] == 3 * once["backwards"]


def test_offloaded_gradients_accumulate_on_the_host():
    once, thrice = traces(2)["zero2 optimizer"], traces(2)["zero2 offloaded and accumulated"]
    assert sum(thrice["host"].values()) > sum(once["host"].values())
    assert thrice["held"] == once["held"]


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_adapters_alone_have_states(stage):
    parts = traces(2)[f"{stage} adapters"]["parts"]
    assert parts["optimizer states"] < 0.2 * traces(2)[stage]["parts"]["optimizer states"]


LARGE = [f"{stage} large bucket" for stage in STAGES]
ALONE = ["zero1 large bucket alone", "zero3 large bucket alone"]


@pytest.mark.parametrize(("name", "count"), [*zip(LARGE, (2, 2, 1), strict=True), *((name, 1) for name in ALONE)])
def test_a_bucket_is_whole_whatever_trains(name, count):
    assert traces(2)[name]["peak"] == pytest.approx(count * BF16 * LARGE_BUCKET, rel=0.05)


@pytest.mark.parametrize("name", ALONE)
def test_without_overlap_there_is_one_stream(name):
    assert traces(2)[name]["streams"] == [0]


@pytest.mark.parametrize("name", [*LARGE, *ALONE])
def test_the_analytic_estimate_has_the_same_bucket(name):
    from ftplan.estimators.analytic import estimate
    from ftplan.planner.inventory import parse_inventory, resolve_inventory
    from ftplan.profiles.hf_config.__init__ import profile_from_config
    from ftplan.spec import RunConfig

    config = RunConfig(**RUN | {"sharding": name.split()[0]} | TWO[name])
    cluster = resolve_inventory(parse_inventory("2xH100"))
    estimated = estimate(config, profile_from_config(MODEL, id="tiny", source="tests"), cluster)
    workspace = sum(term.bytes for term in estimated.terms if term.name == "workspace")
    assert estimated.peak_allocated_bytes - workspace == pytest.approx(traces(2)[name]["peak"], rel=0.005)


def test_accumulating_stage_1_keeps_its_buckets_between_micro_batches():
    told = traces(2)["zero1 large bucket accumulated"]
    assert told["forward"] > 2 * BF16 * LARGE_BUCKET
    assert traces(2)["zero1 large bucket"]["forward"] < BF16 * LARGE_BUCKET


def test_reductions_and_gathers_have_streams_of_their_own():
    assert traces(2)["zero2"]["streams"] == [0, 1]
    assert len(traces(2)["zero3"]["streams"]) == 3
    assert traces(2)["zero3"]["records"] > 0


# ---------------------------------------------------------------------- in the child


def main(asked):
    from ftplan.estimators.trace.running import ZERO_ENVIRONMENT

    os.environ.update(ZERO_ENVIRONMENT)
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    world_size = asked["world_size"]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    told = {name: traced(config, world_size) for name, config in asked["configs"].items()}
    sys.stdout.write("\n" + json.dumps(told))


def traced(config, world_size):
    import gc
    from contextlib import ExitStack

    from torch._subclasses.fake_tensor import FakeTensorMode

    from ftplan.estimators.trace import zero
    from ftplan.estimators.trace.building import Loader, build
    from ftplan.estimators.trace.kernels import Device
    from ftplan.estimators.trace.loop import run
    from ftplan.estimators.trace.patches import device_behaviour
    from ftplan.estimators.trace.recorder import Recorder
    from ftplan.estimators.trace.settings import TraceSettings
    from ftplan.profiles.stacks import load_stack
    from ftplan.results import Phase
    from ftplan.spec import RunConfig

    settings = TraceSettings(
        RunConfig(**config), MODEL, load_stack("trainer"), world_size, whole=True, workspace_bytes=0, load="built",
        evaluates=False,
    )  # fmt: skip
    device = Device(workspace_bytes=0)
    recorder = Recorder(device)
    with ExitStack() as stack:
        stack.enter_context(device_behaviour(device, settings.config))
        built = build(settings)
        stack.enter_context(zero.deepspeed_behaviour(settings, recorder))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(recorder)
        recorder.mark(Phase.LOAD)
        if settings.config.sharding == "zero3":
            zero.load_partitioned(built, settings, recorder)
        else:
            Loader(built, settings, recorder).load()
        loop = zero.ZeroLoop(built, settings, recorder)
        gc.collect()
        prepared = len(recorder.recording.events)
        recorder.reset_peak()
        run(built, settings, recorder, loop)
    return _told(recorder, prepared)


def _told(recorder, prepared):
    from ftplan.estimators.trace.replay import replay
    from ftplan.estimators.trace.stream import Kind
    from ftplan.results import Phase

    events = recorder.recording.events
    backward = list(Phase).index(Phase.BACKWARD)
    return {
        "prepared": replay(events[:prepared]).end_allocated_bytes,
        "held": replay(events).end_allocated_bytes,
        "peak": replay(events).peak_allocated_bytes,
        "forward": replay(events).phases[list(Phase).index(Phase.FORWARD)][0],
        "parts": _alive(recorder.recording),
        "host": _alive(recorder.host),
        "streams": sorted({event.stream for event in events if event.kind is Kind.ALLOC}),
        "records": sum(event.kind is Kind.RECORD for event in events),
        "backwards": sum(event.kind is Kind.MARK and event.key == backward for event in events),
    }


def _alive(recording):
    """Bytes by category of what is alive at the end, without what is too small to matter."""
    from ftplan.estimators.trace.stream import Kind

    alive = {}
    for event in recording.events:
        if event.kind is Kind.ALLOC:
            alive[event.key] = event.size
        elif event.kind is Kind.FREE:
            del alive[event.key]
    parts = {}
    for key, size in alive.items():
        category = recording.allocations[key].category
        parts[category] = parts.get(category, 0) + size
    return {category: size for category, size in parts.items() if size > 1024}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
