"""Pages as text: what stands where, which needs no browser to be seen."""

import base64
import hashlib
import re
from dataclasses import replace

import pytest

from ftplan.render import pages
from ftplan.render.console import size
from ftplan.results import HostEstimate, Phase, Term, Timeline
from ftplan.units import GIB
from ftplan.workflows import estimating, picturing, planning
from ftplan.workflows.estimating import estimate_document
from tests.report_pages import parsed


@pytest.fixture(scope="module")
def estimated():
    return picturing.of_estimate(estimating.estimate({"model": "Qwen2.5-0.5B", "seq_len": 512}, "2x24GB"))


@pytest.fixture(scope="module")
def chosen():
    return planning.plan(planning.plan_request("1x24GB", model="Qwen2.5-0.5B", seq_len=512, global_batch=4))


def with_estimate(picture, **changes):
    told = replace(picture.answer, estimate=replace(picture.answer.estimate, **changes))
    return replace(picture, answer=told, document=estimate_document(told))


def test_a_page_needs_nothing_else(estimated):
    source = pages.page(estimated)
    page = parsed(source)
    assert re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?([^"'\s>)]+)""", source.split("<script>")[0]) == [
        "data:,",
        "#answer",
    ]
    assert not re.search(r"@import|@font-face|fetch\(|XMLHttpRequest|eval\(|innerHTML", source)
    ours = page.tagged("script")[1].text
    digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.having("http-equiv")[0]["content"]
    assert not [name for each in page.elements for name in each.attributes if name.startswith("on")]


def test_the_script_ends_no_element():
    for name in ("page.js", "page.css"):
        assert "</" not in pages.asset(name)
        assert pages.asset(name).isascii() or name == "page.js"


def test_a_piece_is_the_page_s_main_part(estimated):
    assert pages.piece(estimated) in pages.page(estimated)
    assert parsed(f"<main>{pages.piece(estimated)}</main>").tagged("h1")


def test_the_legend_has_the_kinds_that_are_drawn(estimated):
    page = parsed(pages.page(estimated))
    drawn = {
        kind
        for chart in ("timeline", "host")
        for mark in page.chart(chart)
        for kind in re.findall(r"kind-(\w+)", mark.attributes.get("class", ""))
    }
    (legend,) = page.having("aria-label", aria_label="Colours")
    shown = {each["class"].split("kind-")[1] for each in page.elements if legend in each.within and each.tag == "span"}
    assert shown == drawn


def test_a_rank_alone_has_no_chart_of_ranks():
    one = picturing.of_estimate(estimating.estimate({"model": "gpt2", "seq_len": 64}, "1x24GB"))
    assert parsed(pages.page(one)).chart("ranks") == []


def test_a_training_is_told_where_it_was_asked_for(estimated):
    asked = {"samples": 1000, "price": 2.0}
    told = estimating.estimate({"model": "gpt2", "seq_len": 64}, "1x24GB", training=asked)
    page = parsed(pages.page(picturing.of_estimate(told)))
    paths = {figure["data-path"] for figure in page.having("data-path")}
    assert {"training.seconds", "training.dollars"} <= paths
    assert "training.seconds" not in {each["data-path"] for each in parsed(pages.page(estimated)).having("data-path")}


def test_a_draft_says_so(chosen):
    draft = picturing.draft(chosen.request)
    assert "quick figures; exact ones follow" in pages.page(draft)
    assert "Files to run it with" not in pages.page(draft)


def test_files_of_another_plan_say_what_they_are(chosen):
    picture = picturing.of_plan(chosen)
    other = chosen.config.model_copy(update={"lora_rank": 5})
    changed = replace(picture.files[1], config=other)
    page = parsed(pages.page(replace(picture, files=(picture.files[0], changed, replace(changed, problem="why not")))))
    notes = [each.text for each in page.tagged("p") if "trains in a way of its own" in each.text]
    assert len(notes) == 2
    assert size(chosen.estimate.needed_bytes) in notes[0]
    assert "no files: why not" in page.source


def test_what_a_plan_rejected_is_folded_where_there_is_a_plan(chosen):
    nothing = planning.plan(planning.plan_request("1x8GB", model="Qwen2.5-72B", seq_len=512))

    def folded(plan):
        page = parsed(pages.page(picturing.of_plan(plan)))
        (details,) = [each for each in page.tagged("details") if "by the nearest of each" in each.text]
        return "open" not in details.attributes

    assert folded(chosen)
    assert not folded(nothing)


def test_where_nothing_comes_near_there_is_no_empty_chart():
    nothing = planning.plan(planning.plan_request("1x4GB", model="Qwen2.5-72B", seq_len=512, pins={"offload": "none"}))
    page = parsed(pages.page(picturing.of_plan(nothing)))
    assert page.chart("tradeoff") == []
    assert "How near the others come" not in page.source


def test_the_limit_where_nothing_fits_is_a_card_s_and_no_host_s():
    nothing = planning.plan(planning.plan_request("1x8GB", model="Qwen2.5-72B", seq_len=512, host_memory="16GB"))
    assert any(group.rejection.rule == "host-memory" for group in nothing.rejections)
    page = parsed(pages.page(picturing.of_plan(nothing)))
    limits = [int(mark["data-limit-bytes"]) for mark in page.chart("tradeoff") if "data-limit-bytes" in mark.attributes]
    assert all(limit <= 8 * GIB for limit in limits)


def test_the_note_counts_what_is_not_drawn(chosen):
    picture = picturing.of_plan(chosen)
    page = parsed(pages.page(picture))
    marks = [each for each in page.chart("tradeoff") if "data-fits" in each.attributes]
    missing = len(picture.landscape) - len(marks)
    told = re.search(r"(\d+) that needs? far more than the limit (?:is|are) not drawn", page.source)
    assert (int(told[1]) if told else 0) == missing


@pytest.mark.parametrize(("shared", "expected"), [(0, 30), (8, 22)])
def test_shared_pages_are_counted_once_in_what_loads_them(shared, expected):
    terms = (
        Term("processes", 18, tuple(Phase), "", ""),
        Term("loading", 12, (Phase.LOAD,), "", ""),
        Term("saving", 3, (Phase.SAVE,), "", ""),
    )
    host = HostEstimate(30, 100, True, True, Phase.LOAD, terms, shared)
    counted = pages._once(host)
    assert Timeline(tuple(counted)).bytes_at(Phase.LOAD) == expected
    assert {term.name: term.bytes for term in counted} == {"processes": 18, "loading": 12 - shared, "saving": 3}
    assert max(Timeline(tuple(counted)).by_phase.values()) == host.needed_bytes


def test_a_verdict_that_the_host_decides_is_short(estimated):
    told = estimated.answer.estimate
    full = replace(told.host, capacity_bytes=1, fits=False)
    page = parsed(pages.page(with_estimate(estimated, host=full, fits=False)))
    (verdict,) = page.having("data-verdict")
    assert (verdict["data-verdict"], verdict.text) == (
        "short",
        f"does not fithost RAM needs {size(full.needed_bytes)} of 0.0 MiB",
    )


def test_a_figure_that_the_document_has_not_is_an_error(estimated):
    with pytest.raises(KeyError):
        pages._figure(estimated.document, "estimate.nothing", "size")
