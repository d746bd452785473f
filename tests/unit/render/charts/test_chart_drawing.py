"""What the charts share: text of any kind, ticks, the colours of terms."""

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.errors import InputError
from ftplan.estimators.analytic import estimate, process_terms
from ftplan.estimators.trace import digest
from ftplan.estimators.workload import Workload
from ftplan.render.charts.drawing import KINDS, Svg, byte_scale, byte_ticks, clean, kind_of, ticks
from ftplan.render.pages import KIND_NAMES, asset
from ftplan.spec import RunConfig
from ftplan.units import GIB, MIB
from tests.property.strategies import cluster, model_of
from tests.unit.render.charts.svgs import parsed

ANY = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    [
        "\x00\x1b[31m",
        "a\u202eb",
        "\ud800",
        "\ufffe",
        "<script>alert(1)</script>",
        '"><img onerror=x>',
        "]]>",
        "&amp;",
        "\ufeff",
    ]
)


@given(ANY, ANY)
def test_an_image_is_xml_whatever_it_is_told(text, title):
    svg = Svg(title, text, 100, name=text)
    svg.label(1, 2, text)
    svg.add("rect", title=title, data_term=text, class_=title)
    root = parsed(svg.text())
    assert [element.tag for element in root.iter()] == ["svg", "text", "rect", *(["title"] if title else [])]
    assert (root[0].text or "").replace("\r", "") == clean(text)
    svg.text().encode()


@given(ANY)
def test_what_nobody_sees_is_spelled_out(text):
    shown = clean(text)
    assert all(char.isprintable() or char in "\n\t" for char in shown)
    assert clean(shown) == shown
    assert shown == text or any(not char.isprintable() for char in text)


def test_control_and_bidi_characters_are_spelled():
    assert clean("a\x1b\u202e\x00\ud800") == "a\\x1b\\u202e\\x00\\ud800"
    assert clean("ü 漢 \t\n") == "ü 漢 \t\n"


@given(st.floats(1e-6, 1e15), st.integers(2, 12))
def test_ticks_are_round_and_ordered(highest, most):
    found = ticks(highest, most)
    assert found[0] == 0
    assert found == sorted(set(found))
    assert found[-1] <= highest * (1 + 1e-6)
    assert len(found) - 1 <= most
    assert len(found) > 1
    step = found[1]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert any(math.isclose(mantissa, each, rel_tol=1e-6) for each in (1, 2, 2.5, 5, 10))
    assert found[-1] + step > highest * (1 - 1e-6)


@pytest.mark.parametrize("highest", [0, -1, math.nan, math.inf])
def test_an_axis_without_a_length_has_its_origin(highest):
    assert ticks(highest) == [0.0]


@given(st.integers(1, 10**14))
def test_labels_of_bytes_are_in_the_axis_unit(highest):
    unit, name = byte_scale(highest)
    assert (unit, name) in ((GIB, "GiB"), (MIB, "MiB"))
    for value, text in byte_ticks(highest):
        assert float(text.replace(",", "")) * unit == pytest.approx(value, rel=1e-4)


CONFIGS = [
    {"model": model, "method": method, "sharding": sharding, "offload": offload, **more}
    for model, method, (sharding, offloads), more in itertools.product(
        ("gpt2", "Qwen-7B", "Mixtral-8x7B-v0.1"),
        ("full", "lora", "qlora", "llama-adapter"),
        (
            ("none", ("none",)),
            ("ddp", ("none",)),
            ("fsdp2", ("none", "optimizer+params")),
            ("hsdp", ("none",)),
            ("zero1", ("none", "optimizer")),
            ("zero2", ("none", "optimizer")),
            ("zero3", ("none", "optimizer+params")),
        ),
        (
            {"optimizer": "adamw_torch", "gradient_checkpointing": True, "accumulation": 4},
            {"optimizer": "paged_adamw_8bit", "gradient_checkpointing": False, "evaluates": True},
            {"weights_dtype": "fp32", "precision": "bf16", "kernels": "liger", "evaluates": True},
        ),
    )
    for offload in offloads
]


def _terms(fields, gpus):
    try:
        config = RunConfig(seq_len=256, **fields)
        told = estimate(config, model_of(config.model), cluster(gpus))
    except InputError:
        return set()
    work = Workload(config, model_of(config.model), cluster(gpus))
    outside = {term.name for gpu in work.gpus for term in process_terms(work, gpu)}
    return {term.name for rank in told.ranks for term in rank.terms} | {term.name for term in told.host.terms} | outside


@pytest.fixture(scope="module")
def names():
    """Every term that these configurations are estimated with, on cards, over nodes and on a CPU."""
    found = set()
    for index, fields in enumerate(CONFIGS):
        gpus = ("2xcpu:64GB", "8xA100-80GB", "1x24GB", "2x2xH100")[index % 4]
        found |= _terms(fields, "2xA100-80GB") | _terms(fields, gpus)
    return found


def test_every_term_of_an_estimate_has_its_kind(names):
    assert len(names) > 30
    assert sorted(names - set(KINDS)) == []


def test_every_name_in_the_estimators_has_its_kind():
    """Also those that no configuration above comes upon: names that are written where terms are made."""
    folder = Path(digest.__file__).parents[1]
    written = {
        name
        for file in (*folder.glob("*.py"), folder / "trace" / "estimate.py")
        for name in re.findall(r'(?:Term|bill\.add|self\.add)\(\s*"([^"]+)"', file.read_text("utf-8"))
    }
    assert len(written) > 15
    assert sorted(written - set(KINDS)) == []


def test_every_part_of_a_trace_has_its_kind():
    assert sorted(name for name in digest._REASONS if kind_of(name) == "other") == ["scratch", "workspace"]


@pytest.mark.parametrize(
    ("term", "kind"),
    [
        ("weights", "weights"),
        ("loading", "weights"),
        ("master weights", "optimizer"),
        ("host optimizer", "optimizer"),
        ("saving", "communication"),
        ("processes", "outside"),
        ("recorded excess", "outside"),
        ("layer backward", "activations"),
        ("activations: residual stream", "activations"),
        ("activations: something new", "activations"),
        ("offloaded master weights", "optimizer"),
        ("offloaded gradients", "gradients"),
        ("nobody knows", "other"),
    ],
)
def test_the_kind_of_a_term(term, kind):
    assert kind_of(term) == kind


def test_every_kind_has_a_name_and_a_colour_in_light_and_dark():
    assert set(KINDS.values()) == set(KIND_NAMES)
    css = asset("page.css")
    for kind in KIND_NAMES:
        assert f".kind-{kind} " in css
        assert css.count(f" --{kind}: #") == 3  # light, dark by the system, dark by the button
