import pytest

from ftplan.estimators.states import OPTIMIZERS
from ftplan.launcher.formats.dialect import fsdp_words, optimizer_of, pattern_problem, present, targets_of
from ftplan.launcher.formats.presets import AXOLOTL_DEEPSPEED, SWIFT_DEEPSPEED, SWIFT_FSDP
from ftplan.launcher.formats.settings import Setting, Settings


@pytest.mark.parametrize(
    ("names", "targets", "guessed"),
    [
        (["q_proj", "v_proj"], "q_proj,v_proj", False),
        (["self_attn.q_proj"], "self_attn.q_proj", False),
        (["layers.*.(q|v)_proj"], "q_proj,v_proj", True),
        (["layers.(3|7).(k|o)_proj|x.mlp.(gate|up|down)_proj"], "k_proj,o_proj,gate_proj,up_proj,down_proj", True),
        (["q_proj", "mlp.(fc1|fc2)"], "q_proj,fc1,fc2", True),
        (["layers.\\d+.self_attn.(q_a_proj|o_proj)|.*down_proj"], "q_a_proj,o_proj,down_proj", True),
        ([".*"], "all-linear", True),
        (["(" * 5000], "all-linear", True),
        (["(" + "a|" * 5000 + "q)_proj"], "all-linear", True),
    ],
)
def test_names_out_of_patterns(names, targets, guessed):
    assert targets_of(names) == (targets, guessed)


@pytest.mark.parametrize("targets", ["all-linear", "q_proj"])
def test_a_pattern_matches_no_more_than_it_is_read_as(targets):
    found = pattern_problem(Settings({"targets": Setting("targets", ".*")}), "targets", targets)
    assert (found.may_need_more, found.may_need_less) == (False, True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_modelled_optimizers_stay_as_they_are(name):
    assert optimizer_of(name) == name


def test_others_are_estimated_as_one_of_their_kind():
    assert optimizer_of("adamw_torch_8bit") == "adamw_8bit"
    assert optimizer_of("muon") == "adamw_torch"


def test_present_names_win_over_older_ones():
    given = Settings({name: Setting(name, value) for name, value in (("train_type", "full"), ("sft_type", "lora"))})
    assert present(given, "swift").text("tuner_type") in ("full", "lora")
    both = given.replaced({"tuner_type": Setting("tuner_type", "adalora")})
    assert dict(present(both, "swift")).keys() == {"tuner_type"}
    assert present(both, "swift").text("tuner_type") == "adalora"


@pytest.mark.parametrize(
    ("words", "inside", "kept"),
    [
        (["full_shard", "auto_wrap"], {"version": 1}, "full_shard auto_wrap"),
        (["full_shard", "offload"], {"version": 2, "reshard_after_forward": False}, "offload"),
        (["shard_grad_op"], {"version": 2}, "shard_grad_op"),
        ([], {}, True),
    ],
)
def test_words_beside_a_key_that_says_the_same(words, inside, kept):
    assert fsdp_words(words, inside) == kept


def test_presets_have_a_stage_and_leave_the_batch_to_the_arguments():
    for preset in (*AXOLOTL_DEEPSPEED.values(), *SWIFT_DEEPSPEED.values()):
        assert preset["zero_optimization"]["stage"] in (0, 1, 2, 3)
        assert preset["train_micro_batch_size_per_gpu"] == "auto"
    assert SWIFT_FSDP["fsdp2"]["fsdp_config"]["fsdp_version"] == 2
