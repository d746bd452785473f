"""Files that ftplan writes, through the own parsers of LLaMA-Factory and axolotl, in packages of their own.

Both pin other releases than this environment has, so they are installed beside it (a minute), and skipped with the
reason where that cannot be done.
"""

import json
import os
import subprocess
import sys

import pytest

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.registry import FORMATS
from ftplan.launcher.formats.rendering import rendered
from ftplan.spec import RunConfig

pytestmark = pytest.mark.integration

VERSIONS = {"llamafactory": "0.9.5", "axolotl": "0.19.0"}
"""The releases that are installed, and for which the files are written."""
LLAMAFACTORY = (
    # What these import, with what that needs; torch is this environment's.
    "huggingface_hub==1.33.0 fsspec==2025.3.0 dill==0.3.8 multiprocess==0.70.16 requests "
    "omegaconf einops pandas xxhash aiohttp",
    f"llamafactory=={VERSIONS['llamafactory']} transformers==5.6.0 accelerate==1.11.0 peft==0.18.1 trl==0.24.0 "
    "datasets==4.0.0 tokenizers==0.22.2",
)
AXOLOTL = ("", f"axolotl=={VERSIONS['axolotl']} axolotl-contribs-lgpl axolotl-contribs-mit")

PARSE_LLAMAFACTORY = """
import json, sys
from llamafactory.hparams.parser import _parse_train_args
found = []
for text in json.load(sys.stdin):
    # A machine without a GPU has no bf16; nothing else of the file is changed.
    model, data, training, finetuning, _ = _parse_train_args({**text, "use_cpu": True})
    found.append([model.model_name_or_path, finetuning.finetuning_type, data.cutoff_len,
                  training.per_device_train_batch_size, training.gradient_accumulation_steps, model.quantization_bit,
                  training.deepspeed is not None])
print("PARSED" + json.dumps(found))
"""
PARSE_AXOLOTL = """
import json, sys
from axolotl.utils.schemas.config import AxolotlInputConfig
found = []
for text in json.load(sys.stdin):
    config = AxolotlInputConfig(**text)
    found.append([config.base_model, config.adapter, config.sequence_len, config.micro_batch_size,
                  config.gradient_accumulation_steps, bool(config.load_in_4bit), config.deepspeed is not None])
print("PARSED" + json.dumps(found))
"""


def installed(folder, needs, packages):
    """A folder with ``needs`` and their own needs, and ``packages`` alone; skips where an index has them not."""
    for names, alone in ((needs.split(), ()), (packages.split(), ("--no-deps",))):
        if names:
            command = [sys.executable, "-m", "pip", "install", "-q", *alone, "--target", str(folder), *names]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if "No matching distribution found" in done.stderr:
                pytest.skip(f"the index has no {packages.split()[0]}: {done.stderr.strip().splitlines()[-1][:200]}")
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def llamafactory(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("llamafactory"), *LLAMAFACTORY)


@pytest.fixture(scope="module")
def axolotl(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("axolotl"), *AXOLOTL)


def configurations(name):
    """Configurations of every method and sharding that the format can say, with their main files."""
    chosen = FORMATS[name]
    for method in ("full", "lora", "qlora"):
        for sharding, offload in (
            *(("none", "none"), ("ddp", "none"), ("zero2", "none"), ("zero2", "optimizer"), ("zero3", "none")),
            *(("zero3", "optimizer+params"), ("fsdp2", "none")),
        ):
            fields = {
                **{"model": "Qwen/Qwen2.5-7B", "method": method, "sharding": sharding, "offload": offload},
                **{"micro_batch": 2, "accumulation": 4, "padding": True, "seq_len": 2048, "precision": "bf16"},
                **{"optimizer": "adamw_torch_fused", "expandable_segments": True, **chosen.pins(method)},
            }
            if sharding == "fsdp2":
                fields["sync_each_batch"] = True
            target = Target(per_node=1 if sharding == "none" else 2, version=VERSIONS[name])
            try:
                yield RunConfig(**fields), rendered(chosen, RunConfig(**fields), target)
            except CannotExpressError:
                continue


def parsed(site, program, files, folder):
    """What the framework's own parser makes of the files, in a process with its packages before this environment's."""
    import yaml

    texts = []
    for number, written in enumerate(files):
        here = folder / str(number)
        here.mkdir()
        for name, text in written.items():
            (here / name).write_text(text)
        main = next(name for name in written if name.endswith(".yaml") and name != "accelerate.yaml")
        settings = yaml.safe_load(written[main])
        if isinstance(settings.get("deepspeed"), str):
            settings["deepspeed"] = str(here / settings["deepspeed"])
        texts.append({**settings, "output_dir": str(folder / "out")})
    environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=folder,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("PARSED")), None)
    assert line is not None, done.stderr[-3000:]
    return json.loads(line.removeprefix("PARSED"))


def test_llamafactory_takes_what_is_written(llamafactory, tmp_path):
    found = list(configurations("llamafactory"))
    assert len(found) >= 14
    answers = parsed(llamafactory, PARSE_LLAMAFACTORY, [files for _, files in found], tmp_path)
    for (config, _), answer in zip(found, answers, strict=True):
        kind = "full" if config.method == "full" else "lora"
        bits = 4 if config.method == "qlora" else None
        zero = config.sharding.startswith("zero")
        assert answer == [config.model, kind, config.seq_len, config.micro_batch, config.accumulation, bits, zero]


def test_axolotl_takes_what_is_written(axolotl, tmp_path):
    found = list(configurations("axolotl"))
    assert len(found) >= 12
    answers = parsed(axolotl, PARSE_AXOLOTL, [files for _, files in found], tmp_path)
    for (config, _), answer in zip(found, answers, strict=True):
        adapter = None if config.method == "full" else config.method
        four = config.method == "qlora"
        zero = config.sharding.startswith("zero")
        assert answer == [config.model, adapter, config.seq_len, config.micro_batch, config.accumulation, four, zero]
