import pytest
from small import HIDDEN, LAYERS, SMALL, cluster, small_config, small_model, workload

from ftplan.errors import InputError
from ftplan.estimators import states
from ftplan.estimators.params import trainable_params, trainable_tensor_count
from ftplan.estimators.prompts import MODEL_TYPES, unsupported, with_prompts
from ftplan.estimators.step_time import step_flops
from ftplan.estimators.workload import Workload
from ftplan.profiles.models import load_model


def prompts(**fields):
    return small_config(method="llama-adapter", **{"adapter_layers": 2, **fields})


def test_a_prompt_and_a_gate_train_in_each_layer():
    assert trainable_params(SMALL, prompts()) == 2 * (10 * HIDDEN + 1)
    assert trainable_params(SMALL, prompts(adapter_len=32, adapter_layers=LAYERS)) == LAYERS * (32 * HIDDEN + 1)
    assert trainable_tensor_count(SMALL, prompts()) == 4


def test_the_last_layers_get_prompts():
    found = with_prompts(SMALL, prompts())
    assert [layer.prompt_tokens for layer in found.layers] == [0, 10, 10]
    assert [group.indices for group in found.groups] == [(0,), (1, 2)]
    assert found.total_params == SMALL.total_params
    assert with_prompts(SMALL, prompts()) is found
    assert len(with_prompts(SMALL, prompts(adapter_layers=LAYERS)).groups) == 1
    assert with_prompts(SMALL, small_config()) is SMALL


def test_more_layers_than_the_model_has_are_refused():
    with pytest.raises(InputError, match="adapter_layers is 30, and small has 3 layers") as caught:
        Workload(prompts(adapter_layers=30), SMALL, cluster("1x24GB"))
    assert "--adapter-layers 3" in caught.value.hint


def test_other_architectures_are_refused_with_those_that_are_not():
    with pytest.raises(InputError, match="llama and mistral, not for qwen2"):
        trainable_params(load_model("Qwen2.5-7B"), prompts())
    assert all(kind in unsupported(load_model("Qwen2.5-7B")) for kind in MODEL_TYPES)


def test_heads_narrower_than_the_hidden_state_break_pefts_count_of_groups():
    narrow = small_model(model_type="mistral", architectures=["MistralForCausalLM"], head_dim=8)
    assert "4 of 8 over 64" in unsupported(narrow)
    assert not unsupported(small_model(model_type="mistral", architectures=["MistralForCausalLM"]))


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adamw_torch", 2 * 2 * 2 * (10 * HIDDEN + 1)),
        ("sgd", 0),
        ("adafactor", 4 * 2 * (10 + HIDDEN + 1)),
    ],
)
def test_states_of_prompts(optimizer, expected):
    work = workload(method="llama-adapter", adapter_layers=2, optimizer=optimizer)
    assert states.optimizer_states(work) == expected
    assert states.adapters(work).bytes == 2 * 2 * (10 * HIDDEN + 1)
    assert states.largest_trainable(work) == 10 * HIDDEN


def test_layers_below_the_first_prompt_run_backward_only_for_checkpointing():
    def flops(**fields):
        return step_flops(workload(method="llama-adapter", **fields))

    fewer, all_layers = (flops(adapter_layers=count, gradient_checkpointing=False) for count in (1, LAYERS))
    assert fewer < 0.7 * all_layers
    assert flops(adapter_layers=1) > 0.9 * flops(adapter_layers=LAYERS)
