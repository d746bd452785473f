"""What people come with: the checking part of the scenarios, with files as people write them."""

from typing import ClassVar

import pytest
from checks import checked, only, written, zero

from ftplan.units import GB, GIB
from ftplan.verdicts import Severity, Verdict
from ftplan.workflows import checking


def changes(fix):
    return {change.key: (change.old, change.new) for change in fix.changes}


class TestTwoA6000WithAGlobalBatchOf64:
    """1. Qwen-7B, LoRA on q_proj and v_proj, micro-batch 4, accumulation 8, fp16, DeepSpeed."""

    FILE = """\
model_name_or_path: Qwen/{model}
stage: sft
do_train: true
finetuning_type: lora
lora_target: q_proj,v_proj
deepspeed: ds.json
dataset: alpaca_en_demo
template: qwen
cutoff_len: 1024
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
fp16: true
output_dir: out
"""

    @pytest.fixture(scope="class")
    def check(self):
        files = {"train.yaml": self.FILE.format(model="Qwen1.5-7B"), "ds.json": zero(2, overlap_comm=True)}
        return checked(files, "2xA6000")

    def test_its_global_batch_is_64(self, check):
        assert (check.ranks, check.global_batch) == (2, 64)

    def test_it_fits(self, check):
        assert check.verdict is Verdict.FITS
        assert check.is_sound
        assert check.fixes == ()

    def test_ddp_fits_too_and_is_no_slower(self, check):
        (problem,) = [each for each in check.problems if each.message.startswith("DDP in place of zero2")]
        assert (problem.kind, problem.severity) == ("inefficiency", Severity.NOTE)
        assert problem.key == "zero_optimization.stage"
        assert problem.needed_bytes < problem.available_bytes

    def test_the_first_qwen_has_no_modules_of_these_names(self):
        files = {"train.yaml": self.FILE.format(model="Qwen-7B"), "ds.json": zero(2, overlap_comm=True)}
        check = checked(files, "2xA6000")
        problem = only(check, "conflict")
        assert "'q_proj' is no linear module" in problem.message
        assert problem.place.line == 5
        assert "c_attn" in problem.hint
        assert not check.is_sound


class TestBaichuanFullWithOffload:
    """3. Two A6000, Baichuan2-13B, ZeRO-3 with optimizer offload; the article claims a peak within 45 GB."""

    FILES: ClassVar = {
        "train.yaml": """\
model_name_or_path: baichuan-inc/Baichuan2-13B-Base
stage: sft
do_train: true
finetuning_type: full
deepspeed: ds.json
dataset: alpaca_en_demo
template: baichuan2
cutoff_len: 1024
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
bf16: true
output_dir: out
""",
        "ds.json": """\
{ "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
  "bf16": {"enabled": "auto"},
  "zero_optimization": {
    "stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": true}, "overlap_comm": true,
    "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto", "stage3_gather_16bit_weights_on_model_save": true } }
""",
    }

    @pytest.fixture(scope="class")
    def check(self):
        return checked(self.FILES, "2xA6000")

    def test_every_rank_stays_within_the_article_s_45_gb(self, check):
        assert [rank.rank for rank in check.estimate.ranks] == [0, 1]
        assert all(10 * GIB < rank.process_bytes < 45 * GB for rank in check.estimate.ranks)
        assert all(phase.fits for phase in check.phases)

    def test_the_host_is_what_runs_out(self, check):
        problem = only(check, "host-memory")
        assert problem.severity is Severity.ERROR
        assert problem.needed_bytes == check.estimate.host.needed_bytes > 13.9e9 * 16
        assert check.estimate.host.capacity_assumed
        assert "--host-memory" in problem.hint
        assert check.verdict is Verdict.OOM

    def test_a_way_that_fits_is_named_in_the_files_own_words(self, check):
        fix = check.fixes[0]
        assert fix.estimate.fits
        assert not fix.keeps_result
        assert changes(fix)["finetuning_type"] == ("full", "lora")

    def test_on_a_host_with_enough_ram_it_runs_and_could_be_faster(self):
        check = checked(self.FILES, "2xA6000", host_memory_bytes=512 * GB)
        assert check.verdict is Verdict.FITS
        better = [problem for problem in check.problems if problem.kind == "inefficiency"]
        assert any("micro-batch" in problem.message for problem in better)


class TestQwen2VL72BWithoutSharding:
    """5. Eight RTX 4090: every rank loads a full copy, and dies after a few of 38 shards."""

    FILE = """\
model_name_or_path: Qwen/Qwen2-VL-72B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
dataset: mllm_demo
template: qwen2_vl
cutoff_len: 2048
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
bf16: true
output_dir: out
"""

    @pytest.fixture(scope="class")
    def check(self):
        return checked({"train.yaml": self.FILE}, "8xRTX4090")

    def test_it_runs_out_of_memory_while_loading(self, check):
        assert check.verdict is Verdict.OOM
        first = check.phases[0]
        assert (first.phase, first.fits) == ("load", False)
        assert first.bytes > 5 * first.available_bytes

    def test_on_every_rank_in_one_of_the_first_shards_of_38(self, check):
        message = only(check, "memory").message
        assert message.startswith("every rank runs out of memory on RTX4090 in phase load")
        assert "because nothing shards it" in message
        shard = int(message.partition("in shard ")[2].split()[0])
        assert message.endswith("of 38")
        assert 5 <= shard <= 7

    def test_the_way_out_is_sharding_with_offload_and_the_ram_that_it_needs(self, check):
        assert check.fixes
        for fix in check.fixes:
            assert fix.config.sharding in ("fsdp2", "zero3")
            assert fix.config.offload == "optimizer+params"
            assert all(rank.fits for rank in fix.estimate.ranks)
            assert fix.config.micro_batch * fix.config.accumulation * 8 == check.global_batch

    def test_under_trl_s_loop_zero_3_suffices_for_the_host_that_is_assumed(self):
        check = checked({"train.yaml": self.FILE}, "8xRTX4090", fields={"stack": "trl"})
        (fix,) = [fix for fix in check.fixes if fix.config.sharding == "zero3"]
        assert fix.estimate.fits
        assert changes(fix) == {"deepspeed": (None, "deepspeed.json")}
        assert "deepspeed.json" in fix.new_files


class TestFromOneGpuToEight:
    """8. The same file on eight cards: the batch of a step grew eight times."""

    TEXT = """\
### from one card to eight
model_name_or_path: Qwen/Qwen2.5-0.5B
stage: sft
do_train: true
finetuning_type: lora  # adapters
dataset: identity
template: qwen

per_device_train_batch_size: 2
gradient_accumulation_steps: 8  # was good on one card
learning_rate: 1.0e-4
bf16: true
output_dir: out
"""

    @pytest.fixture(scope="class")
    def check(self):
        return checked({"train.yaml": self.TEXT}, "8xRTX4090", was={"gpus": 1})

    def test_it_says_what_became_of_the_batch(self, check):
        assert check.global_batch == 128
        (advice,) = [each for each in check.advice if each.topic == "batch"]
        assert "makes a step of 128 samples on 8 devices, 8 times the 16 on 1" in advice.text

    def test_accumulation_1_keeps_it(self, check):
        fix = check.fixes[0]
        assert changes(fix) == {"gradient_accumulation_steps": (8, 1)}
        assert fix.config.micro_batch * fix.config.accumulation * 8 == 16

    def test_both_scalings_of_the_learning_rate_are_told(self, check):
        (advice,) = [each for each in check.advice if each.topic == "learning_rate"]
        assert "0.000283" in advice.text
        assert "0.0008" in advice.text
        assert "square root" in advice.text
        assert "linear" in advice.text

    def test_it_still_fits(self, check):
        assert check.verdict is Verdict.FITS
        assert check.is_sound

    def test_what_is_written_keeps_comments_and_order(self, tmp_path):
        (path,) = written(tmp_path, {"train.yaml": self.TEXT})
        found = checking.check(checking.Asked((path,), gpus="8xRTX4090", was={"gpus": 1}))
        assert checking.write(found, found.check.fixes[0]) == (tmp_path / "train.yaml",)
        new = (tmp_path / "train.yaml").read_text("utf-8")
        assert new == self.TEXT.replace("gradient_accumulation_steps: 8", "gradient_accumulation_steps: 1")
        again = checking.check(checking.Asked((path,), gpus="8xRTX4090"))
        assert again.check.global_batch == 16


class TestScenario9:
    """9. llama-cookbook: LoRA under FSDP, full fine-tuning in pure bf16, 70B with low-memory loading."""

    TRAIN = "torchrun --nnodes 1 --nproc_per_node {gpus} finetuning.py --enable_fsdp"
    SAVING = "--dist_checkpoint_root_folder checkpoints --dist_checkpoint_folder fine-tuned"

    def checked(self, gpus, command):
        words = (*self.TRAIN.format(gpus=gpus.split("x")[0]).split(), *command.split(), *self.SAVING.split())
        return checking.check(checking.Asked(words, gpus=gpus, mends=False)).check

    def test_lora_on_four_a100(self):
        check = self.checked("4xA100-80GB", "--use_peft --peft_method lora --model_name meta-llama/Llama-3.1-8B")
        assert (check.config.method, check.config.sharding, check.config.lora_targets) == (
            "lora",
            "fsdp2",
            "q_proj,v_proj",
        )
        assert check.verdict is Verdict.FITS

    def test_full_in_pure_bf16_on_eight(self):
        check = self.checked("8xA100-80GB", "--fsdp_config.pure_bf16 --model_name meta-llama/Llama-3.1-8B")
        assert (check.config.method, check.config.weights_dtype, check.config.precision) == ("full", "bf16", "none")
        assert check.verdict is Verdict.FITS

    def test_70b_ends_in_the_optimizer_step(self):
        command = "--low_cpu_fsdp --fsdp_config.pure_bf16 --model_name meta-llama/Llama-3.1-70B --batch_size_training 1"
        check = self.checked("8xH100", command)
        assert check.verdict is Verdict.OOM
        assert [each.phase for each in check.phases if not each.fits] == ["optimizer"]
        assert check.estimate.host.fits
        assert any(each.kind == "host-memory" and "low_cpu_fsdp" in each.message for each in check.problems)
