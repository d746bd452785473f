"""Report pages in a browser: seen by day and by night, on a phone and a wide screen, by keyboard, saved and printed."""

import json
import struct
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from ftplan.cli import run
from tests.e2e.looks import contrast, cut_or_overlapping, poor, width_beyond
from tests.unit.workflows.checks import llamafactory

NODES = ("--model", "Llama-3.1-8B", "--gpus", "2x8xH100", "--method", "full", "--seq-len", "512")
PAGES = {
    "plan": ("plan", "--model", "gpt2", "--gpus", "2x24GB", "--seq-len", "512", "--samples", "1000"),
    "nothing": ("plan", "--model", "Qwen2.5-72B", "--gpus", "1x8GB", "--seq-len", "512"),
    "nodes": ("estimate", *NODES, "--sharding", "fsdp2"),
    "unequal": ("estimate", "--model", "Llama-3.1-8B", "--gpus", "1xA100-80GB+1xRTX3090"),
    "large": ("estimate", "--model", "Llama-3.1-70B", "--gpus", "1x24GB", "--method", "full"),
    "experts": (
        *("estimate", "--model", "Mixtral-8x7B-v0.1", "--gpus", "8xA100-80GB"),
        *("--sharding", "zero3", "--offload", "optimizer+params"),
    ),
    "check": ("check", "oom.yaml", "--gpus", "2x24GB"),
    "long": ("estimate", "--model", "/".join(["models", "n" * 90, "m" * 90]), "--gpus", "1x24GB"),
}
UNFOLD = "for (const each of document.querySelectorAll('details')) each.open = true;"
WIDTHS = (360, 390, 1100, 1600)
OOM = llamafactory(model_name_or_path="Qwen/Qwen2.5-7B", finetuning_type="full", cutoff_len=2048, unknown_key="x" * 300)
TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    (folder / "oom.yaml").write_text(OOM)
    model = folder / PAGES["long"][2]
    model.mkdir(parents=True)
    tiny = {**TINY, "architectures": ["LlamaForCausalLM"], "num_attention_heads": 4, "vocab_size": 1000}
    (model / "config.json").write_text(json.dumps(tiny))
    return folder


@pytest.fixture
def shown(folder, open_page, monkeypatch):
    """Open the report page of that name."""

    def show(name, **options):
        file = folder / f"{name}.html"
        if not file.exists():
            monkeypatch.chdir(folder)
            run([*PAGES[name], "--report", str(file)])
        return open_page(file.as_uri(), **options)

    return show


def saved(page, button):
    """What a click on ``button`` saves: its name and content."""
    with page.expect_download() as waited:
        button.click()
    return waited.value.suggested_filename, waited.value.path().read_bytes()


def paper(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("name", ["plan", "nothing", "check"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(shown, name, scheme):
    page = shown(name, color_scheme=scheme)
    page.evaluate(UNFOLD)
    assert poor(page) == []
    assert contrast(page.locator(".verdict strong")) >= 4.5


def test_light_and_dark_really_differ_and_the_button_turns_them(shown):
    light, dark = shown("plan", color_scheme="light"), shown("plan", color_scheme="dark")
    assert (paper(light), paper(dark)) == ("rgb(255, 255, 255)", "rgb(20, 22, 26)")
    colours = "[...document.querySelectorAll('.legend .swatch')].map((each) => getComputedStyle(each).backgroundColor)"
    by_day, by_night = light.evaluate(colours), dark.evaluate(colours)
    seen = [(day, night) for day, night in zip(by_day, by_night, strict=True) if day != "rgba(0, 0, 0, 0)"]
    assert len(seen) >= 5
    assert all(day != night for day, night in seen)
    for page in (light, dark):
        before = paper(page)
        page.get_by_role("button", name="Dark or light").click()
        assert paper(page) != before
        page.get_by_role("button", name="Dark or light").click()
        assert paper(page) == before
    dark.get_by_role("button", name="Dark or light").click()
    assert (paper(dark), dark.evaluate(colours)) == (paper(light), by_day)


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_or_overlaps_or_has_to_be_scrolled_to(shown, name):
    page = shown(name)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(UNFOLD)
        assert width_beyond(page) <= 0, width
        assert cut_or_overlapping(page) == [], width
        assert min(page.evaluate("[...document.querySelectorAll('figure')].map((each) => each.clientWidth)")) > 300


def test_chart_text_can_be_read_on_a_phone(shown):
    page = shown("plan", viewport={"width": 390, "height": 800})
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg.chart text')].map((each) =>"
        " parseFloat(getComputedStyle(each).fontSize) * each.ownerSVGElement.clientWidth / 480)"
    )
    assert min(sizes) >= 8.4


@pytest.mark.parametrize("name", ["plan", "nothing", "check", "nodes"])
def test_headings_are_in_order_and_every_chart_has_a_name(shown, name):
    page = shown(name)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((each) => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    charts = page.locator("svg").all()
    assert len(charts) == page.get_by_role("img").count() > 0
    for chart in charts:
        assert len(chart.get_attribute("aria-label")) > 20
    names = page.evaluate("[...document.querySelectorAll('button')].map((each) => each.ariaLabel || each.textContent)")
    assert all(names)
    assert page.locator("html[lang=en]").count() == page.locator("main").count() == 1


def test_everything_is_reached_by_keyboard_and_seen_to_be(shown):
    page = shown("check")
    wanted = page.evaluate(
        """() => [...document.querySelectorAll("a, button, summary")].filter((each) => each.checkVisibility())
             .map((each, at) => (each.dataset.at = at, at))"""
    )
    reached = []
    for _ in range(len(wanted) + 15):
        page.keyboard.press("Tab")
        at, outline, width = page.evaluate(
            """() => { const at = document.activeElement, style = getComputedStyle(at);
                 return [at.dataset.at, style.outlineStyle, parseFloat(style.outlineWidth)]; }"""
        )
        if at is None:
            continue
        assert (outline, width >= 2) == ("solid", True)
        reached.append(int(at))
        if len(set(reached)) == len(wanted):
            break
    assert reached == wanted, "each once, in the order of the page"
    page.locator("summary").last.focus()
    was = page.locator("details").last.get_attribute("open")
    page.keyboard.press("Enter")
    assert page.locator("details").last.get_attribute("open") != was


def test_a_link_leads_past_the_bar(shown):
    page = shown("plan")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "answer"


def test_a_file_is_copied_and_saved_as_it_is(shown):
    page = shown("plan", permissions=["clipboard-read", "clipboard-write"])
    first = page.locator(".file-set details").first
    text = first.locator("pre").text_content()
    assert text.startswith("model: ")
    first.get_by_role("button", name="Copy config.yaml").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == text
    name, content = saved(page, first.get_by_role("button", name="Save config.yaml"))
    assert (name, content.decode()) == ("config.yaml", text)


def test_a_file_is_copied_without_leave_to_use_the_clipboard(shown):
    page = shown("plan")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    button = page.locator("[data-copy]").first
    button.click()
    assert button.text_content() in ("Copied", "Select it and copy")
    assert page.locator("textarea").count() == 0


def test_what_cannot_be_seen_is_saved_nevertheless(shown):
    page = shown("plan")
    page.evaluate("document.querySelector('pre').dataset.exact = JSON.stringify('a\\tb\\u202e\\r\\n')")
    assert saved(page, page.locator("[data-save]").first)[1] == "a\tb\u202e\r\n".encode()


def test_the_json_that_is_saved_is_the_answer(shown, folder, capsys, monkeypatch):
    page = shown("unequal")
    name, content = saved(page, page.get_by_role("button", name="Save as JSON"))
    assert name == "ftplan-estimate.json"
    capsys.readouterr()
    run([*PAGES["unequal"], "--json"])
    assert json.dumps(json.loads(content)) == json.dumps(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (390, "dark")])
def test_a_chart_is_saved_as_an_image_of_its_own(shown, width, scheme):
    page = shown("nodes", viewport={"width": width, "height": 800}, color_scheme=scheme)
    for figure in page.locator("figure").all():
        chart = figure.locator("svg").get_attribute("data-name")
        _, _, wide, high = map(float, figure.locator("svg").get_attribute("viewBox").split())
        name, content = saved(page, figure.locator("[data-export=svg]"))
        assert name == f"ftplan-{chart}.svg"
        root = ET.fromstring(content)  # noqa: S314 - our own
        assert (float(root.attrib["width"]), float(root.attrib["height"])) == (wide, high)
        styles = [each.attrib["style"] for each in root.iter() if "style" in each.attrib]
        assert len(styles) == len(list(root.iter()))
        assert not any("var(" in style for style in styles)
        assert "fill:rgb(" in "".join(styles)
        if chart != "timeline":
            continue
        name, content = saved(page, figure.locator("[data-export=png]"))
        assert name == f"ftplan-{chart}.png"
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", content[16:24]) == (round(wide * 3), round(high * 3))


def test_a_saved_chart_looks_as_on_the_page(shown, open_page, tmp_path):
    page = shown("nodes")
    _, content = saved(page, page.locator("figure").first.locator("[data-export=svg]"))
    (tmp_path / "chart.svg").write_bytes(content)
    alone = open_page((tmp_path / "chart.svg").as_uri())
    colours = "[...document.querySelectorAll('rect.term')].map((each) => getComputedStyle(each).fill)"
    on_page = page.evaluate(colours.replace("rect.term", "figure:first-of-type rect.term"))
    assert alone.evaluate(colours) == on_page[: len(alone.evaluate(colours))]
    assert len(set(alone.evaluate(colours))) > 2


def test_pointing_at_a_mark_tells_it_below_its_chart(shown):
    page = shown("plan")
    for name, mark in (("timeline", "rect.term"), ("terms", "rect.term"), ("tradeoff", "path.chosen")):
        figure = page.locator("figure", has=page.locator(f"svg[data-name={name}]"))
        assert figure.locator("output").text_content() == ""
        figure.locator(mark).first.hover()
        title = figure.locator(mark).first.locator("title").text_content()
        assert figure.locator("output").text_content() == title != ""


def test_a_finger_on_a_mark_tells_it_too(shown):
    page = shown("plan", viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page.locator("path.chosen").first.tap()
    told = page.locator("figure", has=page.locator("path.chosen")).locator("output")
    assert "tokens/s" in told.text_content()


def test_a_printed_page_has_no_buttons_and_is_black_on_white(shown):
    page = shown("plan", color_scheme="light")
    page.emulate_media(media="print")
    assert [each for each in page.locator("button").all() if each.is_visible()] == []
    assert paper(page) == "rgb(255, 255, 255)"
    assert page.locator("h1").is_visible()
    assert page.locator("svg").first.is_visible()
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("chosen", [False, True])
def test_a_dark_page_is_printed_light(shown, chosen):
    page = shown("plan", color_scheme="light" if chosen else "dark")
    if chosen:
        page.get_by_role("button", name="Dark or light").click()
    dark = paper(page)
    assert dark == "rgb(20, 22, 26)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert paper(page) == "rgb(255, 255, 255)"
    assert poor(page) == []
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert paper(page) == dark


def test_a_script_that_is_not_the_page_s_own_does_not_run(browser, shown, folder):
    """The policy holds even for what gets past the escaping."""
    shown("plan")
    source = (folder / "plan.html").read_text("utf-8")
    evil = "<script>window.ran = true</script><img src=x onerror='window.ran = true'>"
    (folder / "evil.html").write_text(source.replace("</main>", f"{evil}</main>"), "utf-8")
    page = browser.new_page()
    page.goto((folder / "evil.html").as_uri())
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.documentElement.dataset.theme") is not None, "the page's own script runs"
    page.context.close()


def test_what_these_tests_look_for_is_found(open_page, tmp_path):
    text = "<text x='{}' y='20'>{}</text>"
    chart = f"<svg class='chart' data-name='it' viewBox='0 0 100 40'>{text.format(5, 'one')}{text.format(9, 'two')}"
    style = "<style>svg { width: 100px; font: 12px sans-serif } p { color: #999; margin-right: -2000px; width: 3000px }"
    file = tmp_path / "bad.html"
    file.write_text(f"<!doctype html>{style}</style><p>pale</p>{chart}{text.format(90, 'beyond')}</svg>")
    page = open_page(file.as_uri())
    assert cut_or_overlapping(page) == ["cut: beyond", "it: one over two"]
    assert [each.split(" ", 1)[1] for each in poor(page)] == ["pale"]
    assert width_beyond(page) > 0
