from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from written_formats import comes_back, lost, of_stack, targets, usual

from ftplan.launcher.formats.axolotl import FORMAT
from ftplan.launcher.formats.axolotl_writing import DTYPES
from ftplan.launcher.formats.given import Target
from ftplan.spec import RunConfig


@given(of_stack("axolotl"), targets)
def test_what_is_written_says_the_configuration_or_names_what_it_cannot(config, target):
    assert set(lost(FORMAT, config, target)) <= set(RunConfig.model_fields)


@given(usual("axolotl"), st.sampled_from(sorted(DTYPES)), st.booleans(), st.booleans())
def test_what_axolotl_has_words_for_is_written(chosen, dtypes, packing, keeps_dtype):
    config, target = chosen
    fields = {
        **config.model_dump(),
        "weights_dtype": dtypes[0],
        "precision": dtypes[1],
        "packing": packing,
        "padding": not packing and config.micro_batch > 1,
        "adapter_dtype": dtypes[0] if keeps_dtype else "fp32",
    }
    if config.sharding.startswith("fsdp") and config.optimizer == "adamw_bnb_8bit":
        fields["optimizer"] = "adamw_torch"
    comes_back(FORMAT, RunConfig(**fields), target)


@given(usual("axolotl", padding=st.just(True)))
def test_hybrid_shards_are_written_for_several_machines(chosen):
    config, target = chosen
    fields = {**config.model_dump(), "sharding": "hsdp", "offload": "none", "optimizer": "adamw_torch"}
    comes_back(FORMAT, RunConfig(**fields), replace(target, nodes=2, per_node=max(target.per_node, 2)))


def test_a_target_of_many_machines():
    comes_back(FORMAT, RunConfig(model="m", stack="axolotl", padding=True, sharding="zero1"), Target(64, 8))
