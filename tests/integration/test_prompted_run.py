"""LLaMA-Adapter trained for real: the demo model on two processes, stopped, resumed and exported."""

import json

import pytest
from test_demo_run import demo_job, launch, losses, stop_at

from ftplan.launcher import engine
from ftplan.launcher.events import Started
from ftplan.launcher.records import RunDir

pytestmark = pytest.mark.integration
pytest.importorskip("trl")

LEARNING = {"max_steps": 12, "save_steps": 12, "learning_rate": 9e-2}
STOPS_AFTER = 5


def test_prompts_learn_and_go_on_after_a_stop(tmp_path):
    folder = tmp_path / "run"
    prompts = {"method": "llama-adapter", "adapter_layers": 3, "adapter_dtype": "fp32", "gradient_checkpointing": True}
    stopped, events = launch(demo_job(folder, 2, LEARNING, **prompts), stop_at(STOPS_AFTER))
    assert stopped.status == "interrupted"
    started = next(event for event in events if isinstance(event, Started))
    assert started.trainable_params == 3 * (10 * 128 + 1)

    record, _ = launch(engine.resume_job(RunDir(folder)))
    assert (record.status, record.steps, record.resumed_from_step) == ("finished", 12, stopped.steps)
    by_step = losses(folder)
    assert sorted(by_step) == list(range(1, 13))
    assert by_step[12] < by_step[1] - 0.2
    adapter = json.loads((folder / "final" / "adapter_config.json").read_text())
    assert (adapter["peft_type"], adapter["adapter_len"], adapter["adapter_layers"]) == ("ADAPTION_PROMPT", 10, 3)
    assert (folder / "final" / "adapter_model.safetensors").stat().st_size > 3 * 10 * 128 * 4
