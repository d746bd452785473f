from hypothesis import given
from hypothesis import strategies as st
from written_formats import comes_back, lost, of_stack, targets, usual

from ftplan.launcher.formats.swift import FORMAT
from ftplan.spec import RunConfig


@given(of_stack("swift"), targets)
def test_what_is_written_says_the_configuration_or_names_what_it_cannot(config, target):
    assert set(lost(FORMAT, config, target)) <= set(RunConfig.model_fields)


@given(
    usual(
        "swift",
        weights_dtype=st.sampled_from(("bf16", "fp16", "fp32")),
        precision=st.sampled_from(("bf16", "fp16", "none")),
        adapter_dtype=st.sampled_from(("bf16", "fp32")),
    ),
    st.booleans(),
    st.booleans(),
)
def test_what_swift_has_words_for_is_written(chosen, packing, padding):
    config, target = chosen
    flash = config.attention == "flash_attention_2"
    padded = config.micro_batch > 1 and (padding or not flash)
    fields = {**config.model_dump(), "packing": packing and flash}
    fields["padding"] = padded and not fields["packing"]
    comes_back(FORMAT, RunConfig(**fields), target)
