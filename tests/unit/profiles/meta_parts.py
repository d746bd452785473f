"""Counts parameters by part in the real modules of transformers, on the meta device: no weights, no download.

``python tests/unit/profiles/meta_parts.py`` rewrites ``data/parts.json`` from the catalogue; needs torch and
transformers.
"""

import importlib.resources
import json
import re
from pathlib import Path

DATA = Path(__file__).parent / "data" / "parts.json"
_RULES = (
    ("vision", r"vision_tower|multi_modal_projector|\.visual\."),
    ("head", r"^(lm_head|embed_out)\."),
    ("norms", r"norm|\.ln_"),
    ("embedding", r"embed_tokens|embed_positions|embed_in|\.wte\.|\.wpe\.|word_embeddings"),
    ("attention", r"self_attn|attention|\.attn\."),
    ("mlp", r"mlp|\.fc[12]\."),
)


def meta_model(config):
    """The causal model of ``config`` on the meta device, or None where transformers has no class for it."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = config["architectures"][0]
    if config["model_type"] not in CONFIG_MAPPING or not hasattr(transformers, name):
        return None
    parsed = CONFIG_MAPPING[config["model_type"]].from_dict(
        {key: value for key, value in config.items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        model = getattr(transformers, name)(parsed)
    model.tie_weights()
    return model


def part_of(name):
    return next(part for part, pattern in _RULES if re.search(pattern, name))


def count_parts(model):
    parts = {part: 0 for part, _ in _RULES}
    for name, parameter in model.named_parameters():
        parts[part_of(name)] += parameter.numel()
    return parts


def catalogue():
    return json.loads(importlib.resources.files("ftplan.profiles").joinpath("data/models.json").read_text("utf-8"))


def main():
    import transformers

    models = {slug: meta_model(row["config"]) for slug, row in catalogue().items()}
    parts = {slug: count_parts(model) for slug, model in models.items() if model is not None}
    lines = ",\n".join(f"    {json.dumps(slug)}: {json.dumps(row)}" for slug, row in parts.items())
    source = f"named_parameters of transformers {transformers.__version__} models on the meta device (meta_parts.py)"
    DATA.write_text(f'{{\n  "source": {json.dumps(source)},\n  "parts": {{\n{lines}\n  }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
