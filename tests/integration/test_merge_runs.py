"""Merged models say what the adapter on its base says: every kind of adapter that is merged, on tiny random models."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ftplan.errors import InputError
from ftplan.launcher import demo
from ftplan.launcher.job import Source
from ftplan.launcher.merge_job import MergeEnded, MergeEvent, MergeJob, MergeStated

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors")

from ftplan.launcher.merging import run_merge  # noqa: E402
from ftplan.launcher.train.merging import merge  # noqa: E402

LLAMA = {
    "model_type": "llama",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
TIED = LLAMA | {"tie_word_embeddings": True}
GPT2 = {"model_type": "gpt2", "vocab_size": 160, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.1}
QKV = ["q_proj", "k_proj", "v_proj"]


@dataclass(frozen=True)
class Case:
    model: dict[str, Any]
    lora: dict[str, Any]
    dtype: str = "float32"
    tolerance: float = 1e-5
    """Of the largest logit."""


CASES = {
    "all linear": Case(LLAMA, {"target_modules": "all-linear"}),
    "rank-stabilised": Case(LLAMA, {"target_modules": QKV, "use_rslora": True}),
    "patterns": Case(
        LLAMA,
        {"target_modules": QKV, "rank_pattern": {"q_proj": 2, "layers.1.v_proj": 8}, "alpha_pattern": {"k_proj": 64}},
    ),
    "DoRA": Case(LLAMA, {"target_modules": QKV, "use_dora": True}, tolerance=2e-5),
    "embeddings": Case(LLAMA, {"target_modules": ["embed_tokens", "q_proj", "lm_head"]}),
    "a head of its own": Case(LLAMA, {"target_modules": QKV, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "tied": Case(TIED, {"target_modules": "all-linear"}),
    "tied, head adapted": Case(TIED, {"target_modules": ["q_proj", "lm_head"]}),
    "tied, embeddings adapted": Case(TIED, {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied, embeddings retrained": Case(TIED, {"target_modules": QKV, "modules_to_save": ["embed_tokens"]}),
    "Conv1D": Case(GPT2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    # bf16 has 8 bits of mantissa: the merged weight is rounded once, the adapter's sum in every layer.
    "bf16": Case(LLAMA, {"target_modules": "all-linear"}, dtype="bfloat16", tolerance=2e-2),
}


def made(case: Case, folder: Path) -> Any:
    """The case's base and adapter as folders, and the model with both, on random adapter weights."""
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(**case.model)
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
    base.save_pretrained(folder / "base", max_shard_size="60KB")
    given = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "init_lora_weights": False} | case.lora
    model = peft.get_peft_model(base, peft.LoraConfig(**given))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            elif "lora_magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif "lora_" in name:
                parameter.mul_(0.3)
    model.save_pretrained(folder / "adapter")
    return model.eval()


def merge_job(folder: Path, **changes: Any) -> MergeJob:
    fields = {
        "adapter": str(folder / "adapter"),
        "base": Source(kind="folder", location=str(folder / "base")),
        "out": str(folder / "merged"),
        "max_shard_bytes": 100_000,
    }
    return MergeJob.model_validate(fields | changes)


def merged_here(folder: Path, **changes: Any) -> list[MergeEvent]:
    """Merge in this process."""
    (folder / "merged").mkdir()
    events: list[MergeEvent] = []
    merge(merge_job(folder, **changes), events.append)
    return events


def logits(model: Any) -> Any:
    tokens = torch.randint(0, 160, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens).logits.float()


def loaded(folder: Path) -> Any:
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return model.eval()


def off(found: Any, expected: Any) -> float:
    """The largest difference, of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_the_merged_model_says_what_the_adapter_says(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = made(case, tmp_path)
    merged_here(tmp_path)
    result = loaded(tmp_path / "merged")
    assert off(logits(result), logits(model)) < case.tolerance
    assert result.dtype == getattr(torch, case.dtype)
    with model.disable_adapter():
        assert off(logits(result), logits(model)) > 3 * case.tolerance, "the adapter changes nothing"


def test_shards_and_another_dtype(tmp_path: Path) -> None:
    model = made(CASES["all linear"], tmp_path)
    events = merged_here(tmp_path, dtype="bf16", max_shard_bytes=40_000)
    out = tmp_path / "merged"
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < 45_000
    stated = next(event for event in events if isinstance(event, MergeStated))
    assert stated.files == len(files)
    assert (stated.changed_weights, stated.weights) == (14, 21)
    result = loaded(out)
    assert result.dtype == torch.bfloat16
    assert off(logits(result), logits(model)) < 2e-2


def test_what_fp16_cannot_hold_is_told(tmp_path: Path) -> None:
    model = made(CASES["all linear"], tmp_path)
    state = peft.get_peft_model_state_dict(model)
    from safetensors.torch import save_file

    save_file({name: tensor * 1e4 for name, tensor in state.items()}, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(InputError, match="values that F16 cannot hold"):
        merged_here(tmp_path, dtype="fp16")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    made(CASES["all linear"], tmp_path)
    made(Case(GPT2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}), tmp_path / "other")
    (tmp_path / "other/base").rename(tmp_path / "other/unused")
    (tmp_path / "base").rename(tmp_path / "other/base")
    with pytest.raises(InputError, match=r"the adapter changes transformer\.h\.0\.attn\.c_attn\.weight"):
        merged_here(tmp_path / "other")


def test_a_narrower_model_is_refused(tmp_path: Path) -> None:
    made(CASES["all linear"], tmp_path)
    made(Case(LLAMA | {"hidden_size": 32, "num_attention_heads": 2}, {"target_modules": QKV}), tmp_path / "other")
    job = {"base": Source(kind="folder", location=str(tmp_path / "other/base"))}
    with pytest.raises(InputError, match=r"for a weight of shape \[96, 64\], the base's has \[96, 32\]"):
        merged_here(tmp_path, **job)


@pytest.mark.parametrize(("own", "kept"), [(None, [2]), (9, [9]), ([9, 10], [9, 10])])
def test_the_merged_model_stops_where_it_was_trained_to(own: Any, kept: list[int], tmp_path: Path) -> None:
    made(CASES["all linear"], tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.model_path())
    tokenizer.eos_token = "<|user|>"
    tokenizer.save_pretrained(tmp_path / "adapter")
    if own is None:
        (tmp_path / "base/generation_config.json").unlink()
    else:
        (tmp_path / "base/generation_config.json").write_text(json.dumps({"eos_token_id": own, "temperature": 0.6}))
    merged_here(tmp_path)
    result = loaded(tmp_path / "merged")
    assert result.generation_config.eos_token_id == [tokenizer.eos_token_id, *kept]
    assert result.generation_config.temperature == (None if own is None else 0.6)
    assert result.config.eos_token_id == tokenizer.eos_token_id


def test_what_stops_the_base_already_is_left_as_it_is(tmp_path: Path) -> None:
    made(CASES["all linear"], tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.model_path())
    tokenizer.save_pretrained(tmp_path / "adapter")
    settings = json.dumps({"eos_token_id": [9, tokenizer.eos_token_id]})
    (tmp_path / "base/generation_config.json").write_text(settings)
    merged_here(tmp_path)
    assert (tmp_path / "merged/generation_config.json").read_text() == settings


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 300 MB in many files, and an adapter on it."""
    folder = tmp_path_factory.mktemp("large")
    size = {"vocab_size": 16_000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4}
    config = transformers.AutoConfig.for_model(**LLAMA | size)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "base", max_shard_size="20MB")
    peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear")).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def least_ram(large: Path) -> int:
    """Bytes that the refusal of a merge with too little says are enough."""
    with pytest.raises(InputError, match="merging needs") as refused:
        run_merge(merge_job(large, out=str(large / "refused"), max_ram_bytes=10**8), 2, lambda event: None)
    assert not (large / "refused").exists()
    told = re.search(r"--max-ram (\d+)MB or more", refused.value.hint)
    assert told is not None
    return int(told[1]) * 10**6


def test_memory_stays_below_what_was_stated(large: Path, least_ram: int) -> None:
    assert sum(file.stat().st_size for file in (large / "base").glob("*.safetensors")) > 280e6
    assert len(list((large / "base").glob("*.safetensors"))) > 12
    events: list[MergeEvent] = []
    run_merge(merge_job(large, max_shard_bytes=10**8), 2, events.append)
    stated = next(event for event in events if isinstance(event, MergeStated))
    ended = next(event for event in events if isinstance(event, MergeEnded))
    assert ended.peak_bytes <= stated.peak_bytes
    # The libraries take 0.43 GB, the largest block 0.06 GB: twice as many layers would change neither.
    assert stated.peak_bytes < 700 * 10**6
    assert len(list((large / "merged").glob("*.safetensors"))) >= 3
    assert least_ram < stated.peak_bytes - 30 * 10**6


def test_a_kill_in_the_middle_leaves_no_folder(large: Path, least_ram: int) -> None:
    job = large / "job.json"
    out = large / "killed"
    job.write_text(merge_job(large, out=str(out)).model_dump_json())
    script = (
        "import sys; from ftplan.launcher.merging import run_merge; from ftplan.launcher.merge_job import MergeJob\n"
        "run_merge(MergeJob.model_validate_json(open(sys.argv[1]).read()), 1, lambda event: None)"
    )
    partial = large / ".killed.partial"
    with subprocess.Popen([sys.executable, "-c", script, str(job)]) as launcher:
        deadline = time.monotonic() + 60
        while not list(partial.glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert list(partial.glob("*.safetensors"))
        os.kill(launcher.pid, signal.SIGKILL)
    assert not out.exists()
    # The next merge to this place clears what was left. With little memory its blocks are small.
    time.sleep(1.5)
    events: list[MergeEvent] = []
    limit = least_ram + 20 * 10**6
    run_merge(merge_job(large, out=str(out), max_ram_bytes=limit), 2, events.append)
    assert isinstance(events[-1], MergeEnded)
    assert events[-1].peak_bytes <= limit
    assert not partial.exists()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {path.name for path in out.glob("*.safetensors")} == set(index["weight_map"].values())
    for name in ("model.layers.3.mlp.down_proj.weight", "model.norm.weight"):
        assert torch.allclose(tensor(out, name), tensor(large / "merged", name), rtol=1e-6)


def tensor(folder: Path, name: str) -> Any:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    with safetensors.safe_open(folder / index["weight_map"][name], "pt") as file:
        return file.get_tensor(name)
