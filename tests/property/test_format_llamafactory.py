"""LLaMA-Factory's files of any configuration: what they say is what was meant, or an error names what they cannot."""

from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import configs

from ftplan.errors import CannotExpressError
from ftplan.launcher.formats.given import Target
from ftplan.launcher.formats.llamafactory import FORMAT, pins
from ftplan.launcher.formats.rendering import _without_effect, read_back, rendered, spelled_targets
from ftplan.profiles.models import hub_id
from ftplan.spec import RunConfig

EXPRESSIBLE = 0.35
"""At least this part of configurations that respect LLaMA-Factory's own decisions can be written."""


def attempt(config, target):
    """What is read back from the files for ``config``, or None and the fields that they cannot say."""
    try:
        files = rendered(FORMAT, config, target)
    except CannotExpressError as error:
        return None, set(error.fields)
    return RunConfig.model_validate(read_back(FORMAT, target, files)), set()


def targets(config, nodes, per_node):
    return Target(1, 1) if config.sharding == "none" else Target(nodes, max(per_node, 2))


shapes = st.tuples(st.sampled_from((1, 2)), st.sampled_from((1, 2, 8)))


def same(back, config):
    ignored = _without_effect(config)
    meant = config.model_copy(update={"model": hub_id(config.model), "lora_targets": spelled_targets(config)})
    return [
        name for name in RunConfig.model_fields if name not in ignored and getattr(back, name) != getattr(meant, name)
    ]


@given(configs(), shapes)
def test_any_configuration_is_said_exactly_or_not_at_all(config, shape):
    back, lost = attempt(config, targets(config, *shape))
    if back is None:
        assert lost
        assert lost <= set(RunConfig.model_fields)
    else:
        assert same(back, config) == []


def pinned(config):
    """``config`` with what LLaMA-Factory decides by itself."""
    fixed = dict(pins(config.method))
    dtype = config.precision if config.precision != "none" else "bf16"
    batch = {"padding": config.micro_batch > 1 and not config.packing}
    fields = {**config.model_dump(), **batch, "weights_dtype": dtype, **fixed}
    if config.method == "full" and config.precision == "fp16":
        fields["weights_dtype"] = "fp16"
    if not fields["sharding"].startswith("zero"):
        fields |= {"zero_reduce_bucket": None, "zero_overlap": True}
    if fields["sharding"] != "zero3":
        fields |= {"zero_prefetch_bucket": None, "zero_persistence_threshold": None}
    if fields["kernels"] != "liger":
        fields["loss_path"] = "full"
    if not fields["sharding"].startswith("zero"):
        fields |= (
            {"offload": "optimizer+params"} if fields["sharding"] == "fsdp2" and config.padding else {"offload": "none"}
        )
    return RunConfig.model_validate(fields)


def test_most_of_what_respects_its_decisions_can_be_said():
    told = []

    @settings(max_examples=80)
    @given(configs().map(pinned), shapes)
    def collect(config, shape):
        back, lost = attempt(config, targets(config, *shape))
        told.append(back is not None)
        if back is None:
            assert lost & {
                "sharding",
                "offload",
                "expandable_segments",
                "weights_dtype",
                "precision",
                "sync_each_batch",
            }
        else:
            assert same(back, config) == []

    collect()
    assert sum(told) > EXPRESSIBLE * len(told)
