#!/usr/bin/env bash
# An old command line of LLaMA-Factory with a DeepSpeed file. Try:
#   ftplan check examples/train.sh --gpus 2xA6000
GPUS=2

deepspeed --num_gpus $GPUS src/train_bash.py \
    --deepspeed zero2.json \
    --stage sft --do_train \
    --model_name_or_path Qwen/Qwen2.5-7B \
    --dataset alpaca_gpt4_zh --template qwen \
    --finetuning_type lora --lora_target q_proj,v_proj \
    --output_dir saves/qwen \
    --per_device_train_batch_size 4 \
    --gradient_accumulation_steps 8 \
    --learning_rate 5e-5 --num_train_epochs 3.0 \
    --fp16
