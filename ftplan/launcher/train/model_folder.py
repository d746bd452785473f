"""The folder of a base model, wherever it comes from, and what stands beside the weights of a merged one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

from ftplan.errors import InputError
from ftplan.files import sync, write_atomic
from ftplan.launcher.job import TrainJob
from ftplan.launcher.merge_job import MergeDtype, MergeJob
from ftplan.launcher.train.model import from_config

CONFIG: Final = "config.json"
EOS: Final = "eos_token_id"
GENERATION: Final = "generation_config.json"
MODEL_FILES: Final = (GENERATION, "preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt"),
)
HUB_FILES: Final = ("*.safetensors", "*.safetensors.index.json", CONFIG, *MODEL_FILES, *TOKENIZER_FILES)
HUB_OTHERS: Final = ("consolidated*", "*/*")
"""The weights again in another format, and folders: of variants, or of other models."""
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
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_OTHERS)))
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


def tokenizer_folder(job: MergeJob, base: Path) -> Path | None:
    """Where the tokenizer's files are, those trained with before those of the base; None if nowhere."""
    places = (Path(job.adapter), *([Path(job.tokenizer)] if job.tokenizer else []), base)
    return next((place for place in places if any((place / name).is_file() for name in TOKENIZER_FILES)), None)


def end_of_sequence(folder: Path) -> int | None:
    """The token that ends a sequence for the tokenizer in ``folder``; None where its files do not say."""
    try:
        named = json.loads((folder / "tokenizer_config.json").read_bytes()).get("eos_token")
        token = named.get("content") if isinstance(named, dict) else named
        return Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token) if token else None
    except Exception:  # `tokenizers` raises nothing narrower; a folder may lack the files
        return None


def merged_config(config: Mapping[str, Any], dtype: MergeDtype, *, unties: bool, end: int | None) -> dict[str, Any]:
    """``config`` for the merged model: dtype, whether both embeddings are still one, and the token a text ends with."""
    changed = dict(config)
    for part in ("text_config", "llm_config"):
        if isinstance(changed.get(part), dict):
            changed[part] = _changed(changed[part], dtype, unties=unties, end=end)
    changed = _changed(changed, dtype, unties=unties, end=end)
    # Where nothing is said, some architectures tie by default.
    return changed | ({"tie_word_embeddings": False} if unties else {})


def _changed(part: Mapping[str, Any], dtype: MergeDtype, *, unties: bool, end: int | None) -> dict[str, Any]:
    changed = dict(part)
    if dtype != "keep":
        changed |= {name: TORCH_NAMES[dtype] for name in ("dtype", "torch_dtype") if name in part}
    if unties and "tie_word_embeddings" in part:
        changed["tie_word_embeddings"] = False
    if EOS in part and end is not None and end not in _ends(part):
        changed[EOS] = end
    return changed


def merged_generation(base: Path, config: Mapping[str, Any], end: int | None) -> dict[str, Any] | None:
    """The base's settings of generation, which stop at ``end``, too; None where they need no change.

    A run makes the end of a turn the end of sequence: without it the merged model would go on after its answer.
    Training a whole model changes the settings likewise (transformers, ``align_special_tokens``).
    """
    try:
        settings = json.loads((base / GENERATION).read_bytes())
    except (OSError, ValueError):
        stated = config.get("text_config", config)
        settings = {name: stated[name] for name in ("bos_token_id", EOS, "pad_token_id") if name in stated}
    own = _ends(settings)
    return settings | {EOS: [end, *own]} if end is not None and end not in own else None


def _ends(settings: Mapping[str, Any]) -> list[int]:
    own = settings.get(EOS)
    return own if isinstance(own, list) else [] if own is None else [own]


def copy_beside(job: MergeJob, base: Path, documents: Mapping[str, Mapping[str, Any]], tokenizer: Path | None) -> None:
    """Write ``documents`` by name, and copy what else belongs to the model, with the tokenizer's files."""
    out = Path(job.out)
    _copy(base, out, [name for name in MODEL_FILES if name not in documents])
    for name, document in documents.items():
        write_atomic(out / name, json.dumps(document, indent=2) + "\n")
    if tokenizer is not None:
        _copy(tokenizer, out, TOKENIZER_FILES)
    shutil.rmtree(out / ".base", ignore_errors=True)


def _copy(source: Path, out: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
            sync(out / name)
