"""Every figure on a report page is the one that --json prints, as the terminal shows it."""

import json

import pytest

from ftplan.render.charts.drawing import clean
from ftplan.render.pages import SHOWN
from ftplan.results import Phase
from tests.report_pages import read, sums, value_at
from tests.unit.workflows.checks import llamafactory

PLAN = ("plan", "--seq-len", "512")
CASES = {
    "plan": (*PLAN, "--model", "Qwen-7B", "--gpus", "2x24GB"),
    "plan that nothing fits": (*PLAN, "--model", "Qwen2.5-72B", "--gpus", "1x8GB"),
    "plan that nothing comes near": (*PLAN, "--model", "Qwen2.5-72B", "--gpus", "1x4GB", "--offload", "none"),
    "plan over nodes": (*PLAN, "--model", "Llama-3.1-8B", "--gpus", "2x8xH100", "--method", "full"),
    "plan of unequal cards": (*PLAN, "--model", "gpt2", "--gpus", "1xA100-80GB+1xRTX3090"),
    "plan on a CPU": (*PLAN, "--model", "gpt2", "--gpus", "2xcpu:16GB"),
    "plan of a training": (
        *PLAN,
        "--model",
        "Qwen2.5-0.5B",
        "--gpus",
        "1xRTX4090",
        "--samples",
        "9000",
        "--price",
        "0.5",
    ),
    "plan for a tool": (
        *(*PLAN, "--model", "Qwen2.5-0.5B", "--gpus", "1x24GB"),
        *("--format", "llamafactory", "--out", "out", "--dataset", "identity"),
    ),
    "check that fits": ("check", "fits.yaml", "--gpus", "2x24GB"),
    "check out of memory": ("check", "oom.yaml", "--gpus", "2x24GB"),
    "check that cannot tell": ("check", "unknown.yaml", "--gpus", "1x24GB"),
    "estimate": ("estimate", "--model", "Qwen-7B", "--gpus", "2x24GB"),
    "estimate too large": ("estimate", "--model", "Llama-3.1-70B", "--gpus", "1x24GB", "--method", "full"),
    "estimate of a training": (
        "estimate",
        "--model",
        "gpt2",
        "--gpus",
        "1xRTX4090",
        "--samples",
        "900",
        "--price",
        "1",
    ),
    "estimate with offload": (
        *("estimate", "--model", "Mixtral-8x7B-v0.1", "--gpus", "8xA100-80GB"),
        *("--sharding", "zero3", "--offload", "optimizer+params"),
    ),
}
FILES = {
    "fits.yaml": llamafactory(),
    "oom.yaml": llamafactory(model_name_or_path="Qwen/Qwen2.5-7B", finetuning_type="full", cutoff_len=2048),
    "unknown.yaml": llamafactory(use_muon=True),
}


def base(document):
    return document.get("estimate", document)


def the_page_holds_the_document(document, page):
    assert page.document == document
    assert json.dumps(page.document) == json.dumps(document), "in its order"


def every_figure_is_the_document_s_as_the_terminal_shows_it(document, page):
    figures = page.having("data-path")
    for figure in figures:
        value = value_at(document, figure["data-path"])
        assert json.loads(figure["data-value"]) == value, figure
        assert figure.text == clean(SHOWN[figure["data-kind"]](value))
    assert len(figures) >= (0 if document.get("verdict") == "unknown" else 2)
    for figure in page.having("data-derived"):
        assert figure.text == SHOWN[figure["data-kind"]](json.loads(figure["data-value"]))


def what_is_alive_in_each_phase_is_drawn(document, page):
    told = base(document)
    if told is None:
        assert page.chart("timeline") == []
        return
    drawn = sums(page.chart("timeline"), "data-phase")
    assert max(drawn.values()) == max([told["needed_bytes"], *(each["bytes"] for each in document.get("phases", []))])
    for phase in Phase:
        alive = [term for term in told["terms"] if phase in term["alive"]]
        assert drawn.get(phase, 0) >= sum(term["bytes"] for term in alive)
        for name in {term["name"] for term in alive}:
            marks = [
                int(mark["data-bytes"])
                for mark in page.chart("timeline")
                if mark.attributes.get("data-phase") == phase and mark["data-term"] == name
            ]
            assert marks == [sum(term["bytes"] for term in alive if term["name"] == name)]
    for phase in document.get("phases", []):
        assert drawn[phase["phase"]] == phase["bytes"]


def the_terms_at_the_peak_are_drawn(document, page):
    told = base(document)
    if told is None:
        return
    drawn = sum(int(bar["data-bytes"]) for bar in page.chart("terms") if "data-bytes" in bar.attributes)
    phases = {phase: sum(t["bytes"] for t in told["terms"] if phase in t["alive"]) for phase in Phase}
    assert drawn == max(phases.values())


def the_host_s_phases_are_drawn_with_shared_pages_once(document, page):
    told = base(document)
    if told is None:
        return
    host = told["host"]
    drawn = sums(page.chart("host"), "data-phase")
    for phase in Phase:
        shared = host["shared_bytes"] if phase == "load" else 0
        alive = sum(term["bytes"] for term in host["terms"] if phase in term["alive"])
        assert drawn.get(phase, 0) == alive - shared
    of_host = [each for each in page.having("data-derived") if each["data-derived"].startswith("host.terms")]
    assert int(of_host[0]["data-value"]) == max(drawn.values())
    limits = [mark["data-limit-bytes"] for mark in page.chart("host") if "data-limit-bytes" in mark.attributes]
    assert limits == [str(host["capacity_bytes"])]


def every_rank_is_in_a_bar(document, page):
    told = base(document)
    bars = [mark for mark in page.chart("ranks") if "data-rank" in mark.attributes]
    if told is None or len(told["ranks"]) == 1:
        assert bars == []
        return
    starts = [int(bar["data-rank"]) for bar in bars]
    assert starts[0] == 0
    for number, rank in enumerate(told["ranks"]):
        bar = bars[max(index for index, start in enumerate(starts) if start <= number)]
        assert int(bar["data-needed-bytes"]) == rank["needed_bytes"]
        assert int(bar["data-capacity-bytes"]) == rank["capacity_bytes"]


def the_parts_of_a_step_are_drawn(document, page):
    told = base(document)
    if told is None:
        return
    for bar in page.chart("step"):
        if "data-part" in bar.attributes:
            assert float(bar["data-seconds"]) == told["step"][bar["data-part"]]


def the_chosen_configuration_is_among_the_others_with_its_own_figures(document, page):
    told = base(document)
    marks = [mark for mark in page.chart("tradeoff") if "data-needed-bytes" in mark.attributes]
    chosen = [mark for mark in marks if "chosen" in mark["class"].split()]
    if told is None:
        assert chosen == []
        return
    (star,) = chosen
    assert int(star["data-needed-bytes"]) == told["needed_bytes"]
    assert float(star["data-tokens-per-second"]) == told["tokens_per_second"]


def fixes_are_among_the_others(document, page):
    for fix in document.get("fixes", []):
        assert [
            mark
            for mark in page.chart("tradeoff")
            if mark.attributes.get("data-needed-bytes") == str(fix["estimate"]["needed_bytes"])
            and "marked" in mark["class"].split()
        ]


def the_front_is_the_plan_s(document, page):
    front = document.get("pareto", [])
    lines = [mark for mark in page.chart("tradeoff") if mark.attributes.get("class") == "front"]
    assert len(lines) == (len(front) > 1)
    if lines:
        assert len(lines[0]["points"].split()) == len(front)


HOLD = (
    the_page_holds_the_document,
    every_figure_is_the_document_s_as_the_terminal_shows_it,
    what_is_alive_in_each_phase_is_drawn,
    the_terms_at_the_peak_are_drawn,
    the_host_s_phases_are_drawn_with_shared_pages_once,
    every_rank_is_in_a_bar,
    the_parts_of_a_step_are_drawn,
    the_chosen_configuration_is_among_the_others_with_its_own_figures,
    fixes_are_among_the_others,
    the_front_is_the_plan_s,
)
VERDICTS = {
    "plan that nothing fits": (1, "short"),
    "plan that nothing comes near": (1, "short"),
    "check out of memory": (1, "short"),
    "check that cannot tell": (1, "unsure"),
    "estimate too large": (1, "short"),
}
"""The others exit with 0, and fit."""


@pytest.mark.parametrize("case", CASES)
def test_everything_on_a_page_is_as_json_has_it(cli, tmp_path, case):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    answer = cli(*CASES[case], "--json", "--report", "page.html")
    page = read(tmp_path / "page.html")
    (verdict,) = page.having("data-verdict")
    assert (answer.code, verdict["data-verdict"]) == VERDICTS.get(case, (0, "fits"))
    assert answer.err.endswith("wrote page.html\n")
    for holds in HOLD:
        holds(answer.document, page)


@pytest.mark.parametrize("case", ["check that fits", "estimate of a training"])
def test_a_report_changes_neither_answer_nor_exit_code(cli, tmp_path, case):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    without = cli(*CASES[case])
    answer = cli(*CASES[case], "--report", "page.html")
    assert (answer.code, answer.out) == (without.code, without.out)


def test_files_on_the_page_are_those_that_are_written(cli, tmp_path):
    case = CASES["plan for a tool"]
    assert cli(*case, "--report", "page.html").code == 0
    held = read(tmp_path / "page.html").files
    written = {file.name: file.read_text() for file in (tmp_path / "out").iterdir()}
    assert written.pop("plan.json")
    assert {name: held[name] for name in written} == written
