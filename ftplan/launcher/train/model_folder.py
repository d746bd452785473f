"""The folder of a base model, wherever it comes from, and what stands beside the weights of a merged one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from huggingface_hub import snapshot_download

from ftplan.errors import InputError
from ftplan.files import sync, write_atomic
from ftplan.launcher.job import TrainJob
from ftplan.launcher.merge_job import MergeDtype, MergeJob
from ftplan.launcher.train.model import from_config

CONFIG: Final = "config.json"
MODEL_FILES: Final = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt"),
)
HUB_FILES: Final = ("*.safetensors", "*.safetensors.index.json", CONFIG, *MODEL_FILES, *TOKENIZER_FILES)
TORCH_NAMES: Final[Mapping[MergeDtype, str]] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def base_folder(job: MergeJob) -> Path:
    """Where the base's weights are: downloaded, or drawn at random as the run drew them, if they are nowhere yet."""
    if job.base.kind == "folder":
        return Path(job.base.location)
    if job.base.kind == "hub":
        return _downloaded(job.base.location)
    assert job.training is not None, "random weights are those of a run"
    return write_random(job.training, Path(job.out) / ".base")


def write_random(training: TrainJob, folder: Path) -> Path:
    """The random base of a run as a model folder."""
    # Which kernel computes the attention does not matter to the weights, and not every machine has all of them.
    config = training.config.model_copy(update={"attention": "eager"})
    from_config(training.model_copy(update={"config": config})).save_pretrained(folder)
    return folder


def _downloaded(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot get the base {hub_id} from the hub: {str(error).splitlines()[0]}",
            hint="name its folder with --base",
            field="base",
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The base's config.json; raises InputError if there is none, or if its weights are quantized."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} cannot be read", hint="a base is a model folder", field="base") from error
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "")
        raise InputError(
            f"the weights in {folder} are quantized ({method}): an adapter cannot be added to them",
            hint="name the 16-bit model they were made of with --base",
            field="base",
        )
    return config


def merged_config(config: Mapping[str, Any], dtype: MergeDtype, *, unties: bool) -> dict[str, Any]:
    """``config`` for the merged model: its dtype, and whether input and output embeddings are still one."""
    changed = dict(config)
    for part in ("text_config", "llm_config"):
        if isinstance(changed.get(part), dict):
            changed[part] = _changed(changed[part], dtype, unties=unties)
    changed = _changed(changed, dtype, unties=unties)
    # Where nothing is said, some architectures tie by default.
    return changed | ({"tie_word_embeddings": False} if unties else {})


def _changed(part: Mapping[str, Any], dtype: MergeDtype, *, unties: bool) -> dict[str, Any]:
    changed = dict(part)
    if dtype != "keep":
        changed |= {name: TORCH_NAMES[dtype] for name in ("dtype", "torch_dtype") if name in part}
    if unties and "tie_word_embeddings" in part:
        changed["tie_word_embeddings"] = False
    return changed


def copy_beside(job: MergeJob, base: Path, config: Mapping[str, Any]) -> None:
    """Write ``config`` and copy what else belongs to the model; the tokenizer is the one that was trained with."""
    out = Path(job.out)
    write_atomic(out / CONFIG, json.dumps(config, indent=2) + "\n")
    _copy(base, out, MODEL_FILES)
    places = (Path(job.adapter), *([Path(job.tokenizer)] if job.tokenizer else []), base)
    having = (place for place in places if any((place / name).is_file() for name in TOKENIZER_FILES))
    found = next(having, None)
    if found is not None:
        _copy(found, out, TOKENIZER_FILES)
    shutil.rmtree(out / ".base", ignore_errors=True)


def _copy(source: Path, out: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
            sync(out / name)
