"""The local page in a real browser: plan, compare, check, launch, watch, stop, resume; hosted and with a token."""

from __future__ import annotations

import json
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from looks import poor, width_beyond
from served import HOSTS, figures, served, value_at

from ftplan import cli
from ftplan.render.pages import SHOWN

OpenPage = Callable[..., Any]
SECONDS = 1000
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
UNNAMED = """
() => [...document.querySelectorAll("input, textarea, button, select, [role=tab], [role=listbox]")]
  .filter((each) => each.getClientRects().length && each.type !== "file")
  .filter((each) => !(each.getAttribute("aria-label") || each.title || each.textContent.trim() || each.placeholder
    || each.labels?.length && [...each.labels].some((label) => label.textContent.trim())
    || document.getElementById(each.getAttribute("aria-labelledby") || "")?.textContent.trim()))
  .map((each) => each.outerHTML.slice(0, 200))
"""
"""Controls that a screen reader could not call by a name."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def site(browser: Any, home: Path) -> Iterator[str]:
    with served(home, FTPLAN_DATA=str(home / "data")) as told:
        assert told["token"] is None
        yield told["url"]


def opened(open_page: OpenPage, site: str, **options: Any) -> Any:
    page = open_page(site, hosts=HOSTS, **options)
    exact(page)
    return page


def exact(page: Any) -> None:
    """Wait until the plan in front is the exact one."""
    page.wait_for_selector("#plan-answer .verdict", timeout=60 * SECONDS)
    page.wait_for_selector("#plan-answer .draft", state="detached", timeout=60 * SECONDS)


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def slide(page: Any, label: str, key: str, times: int) -> None:
    """Move a slider by keys, as one does without a mouse."""
    slider = page.get_by_role("slider", name=re.compile(label))
    slider.focus()
    for _ in range(times):
        page.keyboard.press(key)


def test_a_plan_by_sliders_is_the_commands_plan(
    site: str, open_page: OpenPage, capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every figure on the page is that of the command that the page shows, run with --json."""
    page = opened(open_page, site)
    before = page.inner_text("#plan-answer .asked")
    slide(page, "Sequence length", "ArrowRight", 8)
    slide(page, "Cards in a machine", "ArrowRight", 2)
    slide(page, "Global batch", "ArrowRight", 4)
    page.get_by_label("qlora").check()
    page.wait_for_function(
        "() => document.querySelector('#plan-answer .choice')?.textContent.startsWith('qlora')", timeout=45 * SECONDS
    )
    page.wait_for_timeout(300)
    exact(page)
    assert page.inner_text("#plan-answer .asked") != before
    words = shlex.split(page.locator("#plan-answer .same code").text_content())
    assert words[:2] == ["ftplan", "plan"]
    monkeypatch.setenv("FTPLAN_DATA", str(home / "data"))
    assert cli.run([*words[1:], "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = figures(page, "#plan-answer")
    assert {"estimate.needed_bytes", "estimate.tokens_per_second", "global_batch"} <= found.keys()
    assert document["config"]["method"] == "qlora"
    for path, (kind, value, text) in found.items():
        if path == "search.seconds":
            continue
        assert value == value_at(document, path), path
        assert text == SHOWN[kind](value), path


def test_the_plan_follows_a_slider_before_it_is_exact(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site)
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => window.seen.push(!!document.querySelector(".draft")))
          .observe(document.querySelector("#plan-answer"), { childList: true, subtree: true }); }"""
    )
    slide(page, "Sequence length", "ArrowRight", 1)
    page.wait_for_function("() => window.seen.includes(true)", timeout=45 * SECONDS)
    exact(page)
    assert page.evaluate("window.seen.at(-1)") is False
    # And it is said to those who do not see it.
    verdict = page.locator("#plan-answer .verdict").text_content()
    page.wait_for_function(
        "text => document.querySelector('[role=status].ftplan-said').textContent === text", arg=verdict
    )


def test_what_cannot_be_planned_is_said_where_the_plan_stood(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site)
    page.get_by_role("spinbutton", name=re.compile("Global batch")).fill("33")
    page.keyboard.press("Tab")
    page.wait_for_selector("#plan-answer [role=alert]", timeout=45 * SECONDS)
    assert "33 does not split evenly over 2 ranks" in page.inner_text("#plan-answer")
    assert "hint:" in page.inner_text("#plan-answer")


def test_many_cards_and_an_empty_box_do_not_stop_the_page(site: str, open_page: OpenPage) -> None:
    """What a box holds beyond its slider, or does not hold, is said; the figures before do not stay."""
    page = opened(open_page, site)
    batch = page.get_by_role("spinbutton", name=re.compile("Global batch"))
    for name, number in (("Machines", "8"), ("Cards in a machine", "16")):
        page.get_by_role("spinbutton", name=re.compile(name)).fill(number)
        page.keyboard.press("Tab")
    page.wait_for_function("() => document.querySelector('#plan-answer').textContent.includes('does not split')")
    batch.fill("5120")
    page.keyboard.press("Tab")
    page.wait_for_function("() => document.querySelector('#plan-answer h1')?.textContent.includes('8x16x24GB')")
    exact(page)
    assert "5,120" in page.inner_text("#plan-answer .asked")


def test_a_hostile_name_is_text(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site)
    model = page.get_by_label("Model", exact=False).first
    model.fill(HOSTILE)
    model.press("Enter")
    model.press("Tab")
    page.wait_for_selector("#plan-answer [role=alert]", timeout=45 * SECONDS)
    assert "<script>alert(2)</script>" in page.inner_text("#plan-answer")
    assert page.locator("#plan-answer img, #plan-answer script").count() == 0


def test_files_are_written_and_saved(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site, accept_downloads=True)
    page.get_by_role("button", name="Write files").click()
    page.wait_for_selector("#plan-files details", timeout=45 * SECONDS)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as ZIP").click()
    assert download.value.suggested_filename == "ftplan-native.zip"
    config = yaml.safe_load(page.locator("#plan-files pre").first.text_content())
    assert config["model"] == "Qwen/Qwen2.5-7B"


def test_two_plans_side_by_side(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site)
    tab(page, "Compare")
    page.wait_for_function("() => document.querySelector('#comparison').textContent.includes('Nothing is kept')")
    tab(page, "Plan")
    page.get_by_role("button", name="Keep as A").click()
    page.wait_for_function("() => document.querySelector('#kept').textContent.includes('Kept as A')")
    slide(page, "Cards in a machine", "ArrowRight", 2)
    page.wait_for_function("() => document.querySelector('#plan-answer h1')?.textContent.includes('4x24GB')")
    page.wait_for_timeout(300)
    exact(page)
    tab(page, "Compare")
    page.wait_for_selector("#comparison table", timeout=45 * SECONDS)
    heads = page.locator("#comparison thead").first.inner_text()
    assert "2x24GB" in heads
    assert "4x24GB" in heads
    assert page.locator("#comparison svg").count() == 2


def test_a_dropped_file_is_checked_and_mended(site: str, open_page: OpenPage, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}))
    (tmp_path / "train.yaml").write_text(
        yaml.safe_dump(
            {
                "model_name_or_path": "meta-llama/Llama-3.1-8B",
                "stage": "sft",
                "do_train": True,
                "finetuning_type": "full",
                "deepspeed": "ds.json",
                "dataset": "identity",
                "template": "llama3",
                "cutoff_len": 4096,
                "per_device_train_batch_size": 4,
                "bf16": True,
                "output_dir": "<script>alert(1)</script>",
            }
        )
    )
    page = opened(open_page, site, accept_downloads=True, said=("Method not implemented.",))
    tab(page, "Check")
    page.get_by_label("Devices", exact=False).last.fill("4x24GB")
    page.set_input_files("#check-files input[type=file]", [str(tmp_path / "train.yaml"), str(tmp_path / "ds.json")])
    page.wait_for_selector("#check-answer [data-verdict]", timeout=60 * SECONDS)
    page.get_by_role("button", name="Check", exact=True).click()
    page.wait_for_function("() => document.querySelector('#check-answer h1').textContent.includes('4x24GB')")
    assert page.locator("#check-answer [data-verdict=short]").inner_text().startswith("out of memory")
    assert "llamafactory" in page.inner_text("#check-answer .kicker").lower()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the files with fix 1").click()
    assert download.value.suggested_filename == "fix-1.zip"


def test_a_pasted_file_is_checked(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site)
    tab(page, "Check")
    page.get_by_role("button", name="Check", exact=True).click()
    page.wait_for_function("() => document.querySelector('#check-answer').textContent.includes('nothing to check')")
    page.get_by_label("Or paste one").fill(
        "base_model: Qwen/Qwen2.5-0.5B\nadapter: lora\nlora_r: 8\nsequence_len: 512\n"
    )
    page.get_by_role("button", name="Check", exact=True).click()
    page.wait_for_selector("#check-answer [data-verdict]", timeout=60 * SECONDS)
    assert "axolotl" in page.inner_text("#check-answer .kicker").lower()


def shown_step(page: Any) -> int:
    found = figures(page, "#run-shown").get("steps")
    return int(found[1]) if found else 0


def wait_for(page: Any, what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, page.inner_text("#run-shown")[:2000] + page.inner_text("#run-said")
        page.wait_for_timeout(300)


def state(page: Any) -> str:
    return str(page.evaluate("document.querySelector('#run-shown .verdict strong')?.textContent ?? ''"))


@pytest.mark.integration
def test_the_demo_is_launched_watched_stopped_and_resumed(site: str, open_page: OpenPage, home: Path) -> None:
    page = opened(open_page, site)
    tab(page, "Run")
    page.get_by_role("button", name="Launch").click()
    wait_for(page, lambda: shown_step(page) >= 8, 180)
    assert state(page) == "running"
    (folder,) = [path for path in (home / "ftplan-runs").iterdir() if (path / "job.json").exists()]
    page.get_by_role("button", name="Save and stop").click()
    wait_for(page, lambda: state(page) == "interrupted", 90)
    stopped_at = shown_step(page)
    assert 8 <= stopped_at < 60
    # A page that is opened anew finds the run where it is, and goes on with it.
    page = opened(open_page, site, viewport={"width": 390, "height": 844})
    tab(page, "Run")
    wait_for(page, lambda: state(page) == "interrupted", 30)
    assert width_beyond(page) <= 0
    page.get_by_role("button", name="Resume").click()
    wait_for(page, lambda: state(page) == "finished", 180)
    found = figures(page, "#run-shown")
    report = _report(folder)
    for path, (kind, value, text) in found.items():
        assert value == value_at(report, path), path
        assert text == SHOWN[kind](value), path
    losses = report["curves"][0]["values"]
    assert losses[-1] < losses[0] / 2
    assert page.locator("#run-shown svg[data-name=loss] .curve").count() == 1
    assert page.locator("#run-shown svg[data-name=learning-rate] .curve").count() == 1
    assert page.locator("#run-shown svg[data-name=memory] [data-predicted-bytes]").count() == 2
    assert [attempt["ended"] for attempt in report["attempts"]] == ["interrupted", "finished"]
    page.locator("#run-shown details.log summary").click()
    assert "plan: lora" in page.inner_text("#run-shown details.log pre")
    assert folder.name in page.inner_text("#run-list")
    assert page.get_by_role("button", name="Resume").is_disabled()


def _report(folder: Path) -> Any:
    from ftplan.results import to_jsonable
    from ftplan.workflows import reporting

    return to_jsonable(reporting.report(folder))


def test_what_cannot_be_launched_is_said(site: str, open_page: OpenPage) -> None:
    page = opened(open_page, site)
    tab(page, "Run")
    page.get_by_label("the plan of the first tab", exact=True).check()
    page.get_by_role("button", name="Launch").click()
    page.wait_for_function("() => document.querySelector('#run-said').textContent.includes('no data')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_tab_is_labelled_legible_and_not_too_wide(site: str, open_page: OpenPage, scheme: str) -> None:
    page = opened(open_page, site, color_scheme=scheme, viewport={"width": 390, "height": 844})
    for fold in ("Pins", "Machine and training"):
        page.get_by_role("button", name=fold).click()
    for name in ("Plan", "Compare", "Check", "Run"):
        tab(page, name)
        page.wait_for_timeout(400)
        assert (name, page.evaluate(UNNAMED)) == (name, [])
        assert (name, poor(page)) == (name, [])
        for width in (390, 1400):
            page.set_viewport_size({"width": width, "height": 844})
            page.wait_for_timeout(100)
            assert (name, width, width_beyond(page)) <= (name, width, 0)
        page.set_viewport_size({"width": 390, "height": 844})


def test_everything_is_reached_by_keys(site: str, open_page: OpenPage) -> None:
    """From the top, each tab and control of the plan by Tab."""
    page = opened(open_page, site)
    names = set()
    page.locator("body").press("Tab")
    for _ in range(60):
        names.add(
            page.evaluate(
                """() => { const at = document.activeElement; return at.getAttribute("aria-label")
                  || at.labels?.[0]?.textContent.trim() || at.textContent.trim().slice(0, 60); }"""
            )
        )
        page.keyboard.press("Tab")
    told = " | ".join(sorted(names))
    for wanted in (
        "Plan",
        "Model",
        "Card",
        "Cards in a machine",
        "Global batch",
        "Sequence length",
        "Pins",
        "Keep as A",
    ):
        assert wanted in told
    page.get_by_role("tab", name="Compare").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('[role=tab][aria-selected=true]').textContent.includes('Compare')"
    )


def test_a_hosted_page_plans_and_checks_and_trains_nothing(browser: Any, open_page: OpenPage, tmp_path: Path) -> None:
    with served(tmp_path, "--hosted") as told:
        page = opened(open_page, told["url"])
        assert page.get_by_role("tab", name="Run").count() == 0
        model = page.get_by_label("Model", exact=False).first
        model.fill("/etc/hostname")
        model.press("Enter")
        model.press("Tab")
        page.wait_for_selector("#plan-answer [role=alert]", timeout=45 * SECONDS)
        assert "unknown model" in page.inner_text("#plan-answer")
        tab(page, "Check")
        page.get_by_label("Or paste one").fill(
            "model_name_or_path: /etc\nfinetuning_type: lora\nstage: sft\ndo_train: true\ndeepspeed: /etc/x.json\n"
        )
        page.get_by_role("button", name="Check", exact=True).click()
        page.wait_for_function(
            "() => document.querySelector('#check-answer').textContent.includes('not among the files')"
        )
    assert not (tmp_path / "ftplan-runs").exists()


def test_a_page_reads_nothing_that_was_not_dropped_into_it(tmp_path: Path) -> None:
    """A request of one's own that names a file of this machine, as if it had been dropped."""
    secret = tmp_path / "secret.yaml"
    secret.write_text("model_name_or_path: Qwen/Qwen2.5-0.5B\naws_secret_access_key: hunter2\n")
    with served(tmp_path, "--hosted", is_attacked=True) as told:
        with urllib.request.urlopen(told["url"] + "config") as answer:
            config = json.loads(answer.read())
        (index,) = [each["id"] for each in config["dependencies"] if each["api_name"] == "checked"]
        file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
        said = asked(told["url"], index, [None, [file], "", "1x12GB", "transformers", "as the files tell"])
    assert "process_completed" in said
    assert '"success":false' in said.replace(" ", "")
    assert "hunter2" not in said
    assert str(tmp_path) not in said  # nor is it told what there is


def asked(site: str, index: int, data: list[Any]) -> str:
    """All that the page's server says to one event."""
    body = json.dumps({"data": data, "fn_index": index, "session_hash": "mine", "event_data": None}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{site}gradio_api/queue/join", body, headers)) as joined:
        assert joined.status == 200
    told = ""
    with urllib.request.urlopen(f"{site}gradio_api/queue/data?session_hash=mine", timeout=60) as stream:
        for line in stream:
            told += line.decode()
            if "process_completed" in told or "unexpected_error" in told:
                break
    return told


def refusal(request: str | urllib.request.Request) -> int:
    """The status of an answer that is a refusal."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    return refused.value.code


def test_with_a_token_nothing_is_shown_without_it(browser: Any, open_page: OpenPage, tmp_path: Path) -> None:
    with served(tmp_path, "--token", FTPLAN_UI_TOKEN="correct horse") as told:
        bare = told["url"].split("?")[0]
        for place in ("", "config", "gradio_api/info", "gradio_api/queue/data?session_hash=x"):
            assert refusal(bare + place) == 401
        page = opened(open_page, told["url"])
        assert "token" not in page.url
        assert "fits" in page.inner_text("#plan-answer .verdict")


def test_no_website_reaches_it(site: str) -> None:
    """By a name of its own (DNS rebinding), or by a form on another page."""
    for headers, method, status in (
        ({"Host": "evil.example"}, "GET", 421),
        ({"Origin": "https://evil.example"}, "POST", 403),
    ):
        request = urllib.request.Request(site, headers=headers, method=method, data=b"" if method == "POST" else None)
        assert refusal(request) == status
