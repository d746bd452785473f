from pathlib import Path

import pytest

from ftplan.launcher.formats.files import Files
from ftplan.launcher.formats.sources import opened

HEAD = """
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
model = AutoModelForCausalLM.from_pretrained("gpt2"{loading})
"""


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def of_text(text):
    Path("train.py").write_text(text, "utf-8")
    return opened(["train.py"], Files()).understood(1)


def said(body="", *, loading="", arguments="output_dir='o', bf16=True, per_device_train_batch_size=2"):
    head = HEAD.replace("{loading}", loading) + f"args = TrainingArguments({arguments})\n"
    return of_text(f"{head}{body}\nTrainer(model, args)\n")


def unsure(part):
    """Keys of what may change the verdict either way."""
    return {each.key for each in part.problems if each.may_need_more and each.may_need_less}


def test_a_plain_script_leaves_nothing_open():
    assert not unsure(said())
    assert not unsure(said(arguments="output_dir='o', **{'bf16': True}"))
    assert not unsure(said(loading=", device_map={'': 0}"))


@pytest.mark.parametrize(
    "unpacked", ["cfg", "vars(cli)", "{**cfg}", "dict(**cfg)", "dict(cfg)", "{name: 1}", "({} if cli else {'fp16': 1})"]
)
def test_arguments_that_are_unpacked_from_elsewhere_leave_the_verdict_open(unpacked):
    part = said(arguments=f"output_dir='o', bf16=True, **{unpacked}")
    (problem,) = [each for each in part.problems if each.may_need_more]
    assert problem.kind == "unresolved"
    assert problem.key.startswith("TrainingArguments(**")
    assert str(problem.place).endswith("train.py:5")


def test_a_mapping_that_is_changed_before_it_is_unpacked():
    head = "cfg = {'bf16': True}\n"
    text = f"{HEAD.replace('{loading}', '')}{head}%sTrainer(model, TrainingArguments(output_dir='o', **cfg))\n"
    assert not unsure(of_text(text % ""))
    for change in ("cfg['fp16'] = True\n", "cfg.update(fp16=True)\n"):
        assert unsure(of_text(text % change)) == {"TrainingArguments(**cfg)"}


def test_adapters_that_are_unpacked_from_elsewhere():
    assert unsure(said("model = get_peft_model(model, LoraConfig(r=8, **c))")) == {"LoraConfig(**c)"}


def test_attributes_that_are_set_after_construction():
    part = said("args.per_device_train_batch_size = 64")
    assert part.fields["micro_batch"] == 64
    assert not unsure(part)
    assert unsure(said("args.per_device_train_batch_size = f()")) == {"per_device_train_batch_size"}
    assert unsure(said("args.per_device_train_batch_size *= 2")) == {"per_device_train_batch_size"}
    assert unsure(said("if small:\n    args.per_device_train_batch_size = 1")) == {"per_device_train_batch_size"}
    main = said("if __name__ == '__main__':\n    args.per_device_train_batch_size = 4")
    assert main.fields["micro_batch"] == 4
    assert said("other.per_device_train_batch_size = 64").fields["micro_batch"] == 2


def test_checkpointing_that_the_model_is_told_of():
    assert not said().fields["gradient_checkpointing"]
    assert said("model.gradient_checkpointing_enable()").fields["gradient_checkpointing"]
    assert unsure(said("if cli:\n    model.gradient_checkpointing_enable()")) == {"activation_checkpointing"}


@pytest.mark.parametrize(
    ("body", "loading", "key"),
    [
        ("model = torch.compile(model)", "", "torch_compile"),
        ("", ", device_map='auto'", "model_init_kwargs.device_map"),
        ("", ", device_map=placed()", "model_init_kwargs.device_map"),
        ("", ", quantization_config={'quant_method': 'gptq'}", "model_init_kwargs.quantization_config"),
        ("class Mine(Trainer):\n    def compute_loss(self, model, inputs):\n        pass", "", "Mine.compute_loss"),
        ("class Mine(transformers.Trainer):\n    def training_step(self):\n        pass", "", "Mine.training_step"),
    ],
)
def test_what_is_not_modelled_is_named(body, loading, key):
    assert unsure(said(body, loading=loading)) == {key}


def test_a_subclass_that_changes_no_step_is_no_matter():
    assert not unsure(said("class Mine(Trainer):\n    def log(self, logs):\n        pass"))


def test_bits_in_a_mapping():
    part = said(
        "model = get_peft_model(model, LoraConfig(r=4))",
        loading=", quantization_config={'load_in_4bit': True, 'bnb_4bit_quant_type': 'nf4'}",
    )
    assert (part.fields["method"], part.fields["quantization"]) == ("qlora", "nf4")
    assert not part.fields["double_quantization"]


def test_trl_s_scripts_are_looked_at_alike():
    text = "class Mine(SFTTrainer):\n    def compute_loss(self):\n        pass\n"
    text += "Mine(model='gpt2', args=SFTConfig(output_dir='o', max_length=512, **cfg))\n"
    assert {"Mine.compute_loss", "SFTConfig(**cfg)"} <= unsure(of_text(text))
