"""Measures what fine-tuning takes on real devices; ``benchmarks/data/README.md`` says how to run it.

The rows of ``benchmarks/data`` come from this program. It imports torch, transformers, accelerate and peft, for some
cases trl, bitsandbytes or deepspeed, and nothing of ftplan: it must run on a machine that has only these.
"""
