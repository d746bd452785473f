"""Counts what peft trains on the real modules of transformers, on the meta device: no weights, no download.

``python tests/unit/estimators/meta_lora.py`` rewrites ``data/lora.json``; needs torch, transformers and peft.
"""

import json
import sys
from pathlib import Path

DATA = Path(__file__).parent / "data" / "lora.json"
sys.path.insert(0, str(Path(__file__).parents[1] / "profiles"))

CASES = (
    ("qwen2.5-7b", "all-linear", 16),
    ("qwen2.5-7b", "q_proj,v_proj", 8),
    ("llama-3.1-8b", "all-linear", 64),
    ("llama-2-7b", "q_proj,k_proj,v_proj,o_proj", 16),
    ("mistral-7b-v0.1", "self_attn.q_proj,mlp.down_proj", 16),
    ("qwen3-8b", "all-linear", 16),
    ("gemma-2-9b", "all-linear", 16),
    ("gemma-3-1b", "all-linear", 16),
    ("gemma-3-4b", "all-linear", 16),
    ("gemma-3-4b", "q_proj,v_proj", 16),
    ("qwen2-vl-2b", "all-linear", 16),
    ("qwen2.5-vl-7b", "all-linear", 16),
    ("phi-2", "all-linear", 16),
    ("phi-2", "q_proj,v_proj", 16),
    ("phi-3-mini", "all-linear", 16),
    ("phi-3-mini", "qkv_proj", 16),
    ("gpt2", "all-linear", 16),
    ("gpt2", "c_attn", 16),
    ("gpt2", "c_proj", 16),
    ("gpt2", "mlp.c_proj", 16),
    ("gpt-j-6b", "all-linear", 16),
    ("gpt-neox-20b", "all-linear", 16),
    ("gpt-neox-20b", "dense", 16),
    ("pythia-160m", "query_key_value", 16),
    ("opt-1.3b", "all-linear", 16),
    ("bloom-560m", "all-linear", 16),
    ("falcon-7b", "all-linear", 16),
    ("falcon-40b", "query_key_value", 16),
    ("starcoder2-3b", "all-linear", 16),
    ("olmo-2-7b", "all-linear", 16),
    ("mixtral-8x7b", "all-linear", 16),
    ("mixtral-8x7b", "q_proj,v_proj", 16),
    ("mixtral-8x7b", "w1,w2,w3", 16),
    ("mixtral-8x7b", "gate", 16),
    ("qwen3-30b-a3b", "all-linear", 16),
    ("qwen3-30b-a3b", "down_proj", 16),
    ("qwen3-30b-a3b", "q_proj,gate_proj,up_proj", 16),
    ("deepseek-v2-lite", "all-linear", 16),
    ("deepseek-v2-lite", "q_proj,kv_b_proj", 16),
    ("deepseek-v2-lite", "gate_proj,up_proj,down_proj", 8),
    ("deepseek-v3", "all-linear", 16),
    ("gpt-oss-20b", "all-linear", 16),
)


def count_trainable(config, targets, rank):
    """Trainable elements of the model of ``config`` with a LoRA adapter."""
    from meta_parts import meta_model
    from peft import LoraConfig, get_peft_model

    modules = "all-linear" if targets == "all-linear" else targets.split(",")
    lora = LoraConfig(r=rank, target_modules=modules, task_type="CAUSAL_LM")
    model = get_peft_model(meta_model(config), lora, low_cpu_mem_usage=True)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def main():
    import peft
    import transformers
    from meta_parts import catalogue

    rows = catalogue()
    found = [
        {
            "model": slug,
            "lora_targets": targets,
            "lora_rank": rank,
            "trainable_params": count_trainable(rows[slug]["config"], targets, rank),
        }
        for slug, targets, rank in CASES
    ]
    lines = ",\n".join(f"    {json.dumps(row)}" for row in found)
    source = f"peft {peft.__version__} on transformers {transformers.__version__}, meta device (meta_lora.py)"
    DATA.write_text(f'{{\n  "source": {json.dumps(source)},\n  "cases": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
