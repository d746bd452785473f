import json

import pytest
from checks import checked, kinds, llamafactory, only, written, zero

from ftplan.errors import InputError
from ftplan.launcher.formats.fsdp import FSDP1_WITHIN
from ftplan.verdicts import Severity, Verdict
from ftplan.workflows import checking


def check_of(gpus="1xRTX4090", *, asked=None, **settings):
    return checked({"train.yaml": llamafactory(**settings)}, gpus, **{"mends": False, **(asked or {})})


def by_command(command, gpus, *, asked=None, **settings):
    files = {"run.sh": command, "train.yaml": llamafactory(**settings)}
    return checked(files, gpus, **{"mends": False, **(asked or {})})


class TestVerdicts:
    def test_what_fits_fits(self):
        check = check_of()
        assert check.verdict is Verdict.FITS
        assert check.problems == ()
        assert all(phase.fits for phase in check.phases)
        assert check.phases[0].phase == "load"

    def test_what_does_not_says_where_and_how_much(self):
        check = check_of("1x8GB", cutoff_len=16384, per_device_train_batch_size=8)
        assert check.verdict is Verdict.OOM
        problem = only(check, "memory")
        assert problem.severity is Severity.ERROR
        assert problem.needed_bytes > problem.available_bytes
        assert "rank 0 runs out of memory on 8GB in phase" in problem.message

    def test_a_large_margin_makes_it_tight(self):
        check = check_of(asked={"margin": 0.9})
        assert check.verdict is Verdict.TIGHT
        assert only(check, "memory").severity is Severity.WARNING
        assert check.is_sound

    def test_what_may_need_more_makes_fits_unknown(self):
        check = check_of(use_llama_pro=True, finetuning_type="freeze")
        assert check.verdict is Verdict.UNKNOWN
        assert not check.is_sound

    def test_an_unmodelled_key_is_named_where_everything_else_fits(self):
        check = check_of(use_muon=True)
        problem = only(check, "unmodelled")
        assert (problem.key, problem.place.line) == ("use_muon", 12)
        assert (check.verdict, check.is_sound) == (Verdict.UNKNOWN, False)

    def test_what_may_only_need_less_keeps_fits(self):
        check = check_of(use_galore=True, finetuning_type="full")
        problem = only(check, "unmodelled")
        assert (problem.key, problem.may_need_more, problem.may_need_less) == ("use_galore", False, True)
        assert (check.verdict, check.is_sound) == (Verdict.FITS, True)

    def test_what_may_need_less_keeps_oom_from_being_told(self):
        check = check_of("1x8GB", cutoff_len=16384, per_device_train_batch_size=8, quantization_bit=8)
        assert check.verdict is Verdict.UNKNOWN

    def test_a_bounded_assumption_keeps_fits_where_there_is_room(self):
        fsdp = "distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  fsdp_sharding_strategy: FULL_SHARD\n"
        command = "accelerate launch --config_file acc.yaml -m llamafactory.launcher train.yaml\n"
        files = {"run.sh": command, "train.yaml": llamafactory(), "acc.yaml": fsdp}
        check = checked(files, "2xRTX4090", mends=False)
        problem = only(check, "assumption")
        assert problem.within == FSDP1_WITHIN
        assert check.verdict is Verdict.FITS
        assert check.config.sharding == "fsdp2"


def test_an_unknown_key_is_told_with_the_nearest_name_and_its_line():
    check = check_of(cutof_len=128)
    problem = only(check, "unknown-key")
    assert (problem.key, problem.place.line) == ("cutof_len", 12)
    assert "cutoff_len" in problem.hint
    assert check.verdict is Verdict.FITS


class TestEvaluation:
    SETTINGS = {  # noqa: RUF012
        "eval_strategy": "steps",
        "val_size": 0.1,
        "cutoff_len": 4096,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
    }

    def test_one_of_8_samples_by_default_does_not_fit_where_training_does(self):
        check = check_of("1x24GB", asked={"mends": True}, **self.SETTINGS)
        assert check.verdict is Verdict.OOM
        problem = only(check, "memory")
        assert problem.key == "per_device_eval_batch_size"
        assert "phase eval" in problem.message
        assert [phase.phase for phase in check.phases if not phase.fits] == ["eval"]
        (fix,) = check.fixes
        assert [(change.key, change.old, change.new) for change in fix.changes] == [
            ("per_device_eval_batch_size", None, 1)
        ]
        assert fix.fields == {}
        assert fix.estimate.fits

    def test_the_fix_is_written_and_then_it_fits(self, tmp_path):
        paths = written(tmp_path, {"train.yaml": llamafactory(**self.SETTINGS)})
        found = checking.check(checking.Asked(tuple(paths), gpus="1x24GB"))
        checking.write(found, found.check.fixes[0])
        again = checking.check(checking.Asked(tuple(paths), gpus="1x24GB", mends=False))
        assert again.check.verdict is Verdict.FITS

    def test_one_as_large_as_training_needs_no_word(self):
        check = check_of("1x24GB", **self.SETTINGS, per_device_eval_batch_size=1)
        assert check.verdict is Verdict.FITS
        assert "eval" in [phase.phase for phase in check.phases]

    def test_without_evaluation_there_is_no_such_phase(self):
        assert "eval" not in [phase.phase for phase in check_of().phases]


class TestDevices:
    def test_cards_that_a_launch_leaves_idle(self):
        check = by_command("CUDA_VISIBLE_DEVICES=0,1 llamafactory-cli train train.yaml\n", "4xRTX4090")
        assert check.ranks == 2
        problem = only(check, "inefficiency")
        assert problem.message.startswith("2 of 4 GPUs stay idle")

    def test_more_processes_than_cards(self):
        check = by_command("torchrun --nproc_per_node 4 -m llamafactory.launcher train.yaml\n", "2xRTX4090")
        problem = only(check, "devices")
        assert "4 GPUs, and there are 2xRTX4090" in problem.message
        assert check.ranks == 2
        assert not check.is_sound

    def test_one_process_that_sees_several_cards_is_refused_by_llamafactory(self):
        check = by_command("python src/train.py train.yaml\n", "2xRTX4090", asked={"framework": "llamafactory"})
        assert "one process sees several GPUs" in only(check, "conflict").message
        assert check.ranks == 1

    def test_one_process_that_sees_one_is_not(self):
        command = "CUDA_VISIBLE_DEVICES=0 python src/train.py train.yaml\n"
        check = by_command(command, "2xRTX4090", asked={"framework": "llamafactory"})
        assert "conflict" not in kinds(check)

    def test_one_process_under_torchrun_makes_a_process_group(self):
        check = by_command("FORCE_TORCHRUN=1 llamafactory-cli train train.yaml\n", "1xRTX4090")
        problem = only(check, "assumption")
        assert "NCCL" in problem.message
        assert 0 < problem.within < 1
        assert check.verdict is Verdict.FITS

    def test_an_accelerate_configuration_of_two_machines(self):
        accelerate = "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\nmixed_precision: bf16\n"
        command = "accelerate launch --config_file acc.yaml -m llamafactory.launcher train.yaml\n"
        files = {"run.sh": command, "train.yaml": llamafactory(), "acc.yaml": accelerate}
        check = checked(files, "2x8xH100", mends=False)
        assert (check.ranks, check.global_batch) == (16, 2 * 8 * 16)
        assert check.problems == ()

    def test_on_one_machine_it_is_too_many(self):
        accelerate = "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\n"
        command = "accelerate launch --config_file acc.yaml -m llamafactory.launcher train.yaml\n"
        files = {"run.sh": command, "train.yaml": llamafactory(), "acc.yaml": accelerate}
        assert "2 machines of 8 GPUs" in only(checked(files, "8xH100", mends=False), "devices").message


class TestConflicts:
    def test_a_batch_of_deepspeed_s_that_differs(self):
        files = {
            "train.yaml": llamafactory(deepspeed="ds.json"),
            "ds.json": json.dumps({"train_micro_batch_size_per_gpu": 4, **json.loads(zero(2))}),
        }
        check = checked(files, "2xRTX4090", mends=False)
        assert only(check, "conflict").key == "train_micro_batch_size_per_gpu"
        assert check.verdict is Verdict.FITS
        assert not check.is_sound

    def test_bf16_on_a_card_without(self):
        check = check_of("1xRTX2080Ti", asked={"mends": True})
        assert only(check, "conflict").message == "RTX2080Ti has no bf16 arithmetic"
        fix = check.fixes[0]
        assert fix.what == "fp16 in place of bf16"
        assert {(change.key, change.new) for change in fix.changes} == {("fp16", True), ("bf16", None)}

    def test_modules_that_the_model_has_not(self):
        check = check_of(lora_target="c_attn")
        problem = only(check, "conflict")
        assert (problem.key, problem.place.line) == ("lora_target", 12)
        assert check.config.lora_targets == "all-linear"

    def test_a_checkpoint_that_is_quantized_already(self):
        check = check_of(asked={"fields": {"model": "Qwen2.5-0.5B"}}, model_name_or_path="x/y-GPTQ")
        assert "unmodelled" not in kinds(check)


class TestWhatIsStatedBeside:
    def test_fields_take_the_place_of_what_files_say(self):
        check = check_of(asked={"fields": {"seq_len": 64, "stack": "trl"}})
        assert (check.config.seq_len, check.config.stack) == (64, "trl")

    def test_settings_are_in_the_framework_s_own_words(self):
        check = check_of(asked={"settings": {"cutoff_len": "64", "enable_liger_kernel": "true"}})
        assert (check.config.seq_len, check.config.kernels) == (64, "liger")

    def test_settings_stay_in_what_is_proposed(self):
        asked = {"settings": {"cutoff_len": "8192"}, "mends": True}
        check = check_of("1x12GB", asked=asked, per_device_train_batch_size=8)
        assert check.verdict is Verdict.OOM
        assert check.fixes
        assert {fix.config.seq_len for fix in check.fixes} == {8192}

    def test_host_memory(self):
        check = check_of(asked={"host_memory_bytes": 10**9})
        assert check.verdict is Verdict.OOM
        assert only(check, "host-memory").hint.startswith("more RAM")

    def test_a_file_that_names_no_model(self, tmp_path):
        paths = written(tmp_path, {"ds.json": zero(2)})
        with pytest.raises(InputError, match="names no model") as caught:
            checking.check(checking.Asked(tuple(paths), gpus="2xRTX4090"))
        assert "--model" in caught.value.hint

    def test_a_library_s_file_with_the_rest_stated(self, tmp_path):
        paths = written(tmp_path, {"ds.json": zero(2)})
        fields = {"model": "Qwen2.5-0.5B", "seq_len": 128}
        check = checking.check(checking.Asked(tuple(paths), gpus="2xRTX4090", fields=fields, mends=False)).check
        assert (check.framework, check.config.sharding) == ("deepspeed", "zero2")


class TestFixes:
    SHORT = {"cutoff_len": 8192, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}  # noqa: RUF012

    @pytest.fixture(scope="class")
    def check(self):
        return check_of("1xRTX4090", asked={"mends": True}, **self.SHORT)

    def test_each_has_its_edits_and_a_replayed_estimate(self, check):
        assert check.verdict is Verdict.OOM
        assert check.fixes
        for fix in check.fixes:
            assert fix.changes
            assert fix.estimate.fits
            assert fix.fields

    def test_edits_of_the_file_name_it_and_what_was_there(self, check):
        edits = [change for fix in check.fixes for change in fix.changes if change.key == "per_device_train_batch_size"]
        assert edits
        assert {change.old for change in edits} == {4}

    def test_every_fix_that_is_written_then_fits(self, check, tmp_path):
        for number, fix in enumerate(check.fixes[:2]):
            folder = tmp_path / str(number)
            folder.mkdir()
            paths = written(folder, {"train.yaml": llamafactory(**self.SHORT)})
            found = checking.check(checking.Asked(tuple(paths), gpus="1xRTX4090"))
            checking.write(found, found.check.fixes[number])
            again = checking.check(checking.Asked(tuple(paths), gpus="1xRTX4090", mends=False))
            # The allocator's option stands in the environment, where the user has to set it.
            meant = fix.config.model_copy(update={"expandable_segments": again.check.config.expandable_segments})
            assert again.check.config == meant
            assert again.check.estimate.fits or fix.config.expandable_segments

    def test_a_field_that_was_stated_beside_the_file_does_not_hide_the_edits(self):
        check = check_of(
            "1xRTX4090", asked={"mends": True, "fields": {"seq_len": 8192}}, **{**self.SHORT, "cutoff_len": 64}
        )
        assert check.fixes
        assert any(fix.changes for fix in check.fixes)

    def test_a_new_file_is_not_written_over_one_that_is_there(self, tmp_path):
        whole = {"model_name_or_path": "Qwen/Qwen2.5-1.5B", "finetuning_type": "full", "cutoff_len": 512}
        paths = written(tmp_path, {"train.yaml": llamafactory(**whole), "deepspeed.json": "{}"})
        found = checking.check(checking.Asked((paths[0],), gpus="2xRTX3060"))
        fix = next(fix for fix in found.check.fixes if "deepspeed.json" in fix.new_files)
        with pytest.raises(InputError, match="is there already"):
            checking.write(found, fix)
        assert (tmp_path / "deepspeed.json").read_text("utf-8") == "{}"
