"""What users write is text on a report page: it makes no element and no attribute, and is shown for what it is."""

import json

import pytest

from ftplan.render.charts.drawing import clean
from ftplan.verdicts import Place
from tests.report_pages import parsed, read
from tests.unit.workflows.checks import llamafactory

HOSTILE = (
    "<script>alert(1)<",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "<!--x",
    "{{7*7}}{% raw %}",
    "a\x1b[31m\x07b",
    "evil\u202egnp.exe",
    "\u200b\ufeff\u2028x",
    "javascript:alert(1)",
    "n" * 200,
    "caf\u00e9 \u6f22 \U0001f600",
    "&lt;b&gt;&#0;",
)
OURS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "link",
        "style",
        "body",
        "a",
        "nav",
        "span",
        "button",
        "main",
        "header",
        "footer",
    ),
    *("p", "h1", "h2", "h3", "dl", "div", "dt", "dd", "small", "section", "figure", "figcaption", "output", "br"),
    *("svg", "rect", "line", "text", "path", "polyline", "ul", "ol", "li", "details", "summary", "strong", "script"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "pre", "code"),
}
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "http-equiv", "rel", "href", "class", "type", "aria-label", "aria-live"),
    *("id", "tabindex", "role", "scope", "open", "xmlns", "viewbox", "text-anchor", "x", "x1", "x2", "y", "y1", "y2"),
    *("width", "height", "d", "points"),
}


def check_ours(page):
    """No element and no attribute that our templates and charts do not write, and nothing that could run or load."""
    assert {element.tag for element in page.elements} <= OURS
    for element in page.elements:
        for name in element.attributes:
            assert name in ATTRIBUTES or name.startswith("data-"), (element.tag, name)
    assert len(page.tagged("script")) == 2
    assert [link["href"] for link in page.having("href")] == ["data:,", "#answer"]
    policy = page.having("http-equiv")[0]["content"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    seen = page.source.split('<script type="application/json"')[0]
    assert all(char.isprintable() or char in "\n\t" for char in seen)
    for button in page.having("data-save"):
        assert clean(button["data-save"]) == button["data-save"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_model_s_path(cli, model_folder, tmp_path, hostile):
    model_folder(hostile)
    answer = cli("estimate", "--model", f"./{hostile}", "--gpus", "1x24GB", "--report", "page.html", "--json")
    assert answer.code == 0
    page = read(tmp_path / "page.html")
    check_ours(page)
    (heading,) = page.tagged("h1")
    assert heading.text == f"{clean(f'./{hostile}')} on 1x24GB"
    assert page.tagged("title")[0].text == f"ftplan estimate: {clean(f'./{hostile}')} on 1x24GB"
    assert page.document == answer.document


@pytest.mark.parametrize("hostile", [HOSTILE[1], HOSTILE[4], HOSTILE[5]])
def test_a_model_s_path_in_a_plan_and_its_files(cli, model_folder, tmp_path, hostile):
    model_folder(hostile)
    asked = ("--model", f"./{hostile}", "--gpus", "1x24GB", "--seq-len", "64", "--global-batch", "2")
    answer = cli("plan", *asked, "--report", "page.html", "--out", "out")
    assert answer.code == 0
    page = read(tmp_path / "page.html")
    check_ours(page)
    assert clean(hostile) in page.tagged("h1")[0].text
    assert page.files["config.yaml"] == (tmp_path / "out" / "config.yaml").read_text("utf-8")


@pytest.mark.parametrize("hostile", [*HOSTILE[:2], HOSTILE[5], "../../x", "</script>"])
def test_a_file_s_name_and_what_is_in_it(cli, tmp_path, hostile):
    name = hostile.replace("/", "|")
    said = llamafactory(**{hostile: hostile, "dataset": hostile, "output_dir": hostile, "finetuning_type": "full"})
    (tmp_path / f"{name}.yaml").write_text(f"# {hostile if hostile.isprintable() else ''}\n{said}", "utf-8")
    answer = cli("check", f"{name}.yaml", "--gpus", "1x4GB", "--report", "page.html", "--json")
    assert answer.code in (0, 1), answer.err
    page = read(tmp_path / "page.html")
    check_ours(page)
    assert page.tagged("h1")[0].text == f"{answer.document['files'][0]} on 1x4GB"
    assert any(clean(key) in problem.text for key in (hostile, name) for problem in page.tagged("li"))
    assert page.document == answer.document


@pytest.mark.parametrize("hostile", ["1x24GB<b>", '1x"24GB', "<script>"])
def test_gpus_that_nobody_knows_make_no_page(cli, tmp_path, hostile):
    answer = cli("estimate", "--model", "gpt2", "--gpus", hostile, "--report", "page.html")
    assert answer.code == 2
    assert not (tmp_path / "page.html").exists()


def test_a_dataset_s_name_in_emitted_files(cli, tmp_path):
    name = '</code><script>alert(1)</script>"><img src=x onerror=alert(1)>'
    answer = cli(
        *("plan", "--model", "gpt2", "--gpus", "1x24GB", "--seq-len", "64", "--out", "out", "--report", "page.html"),
        *("--format", "trl", "--dataset", name),
    )
    assert answer.code == 0, answer.err
    page = read(tmp_path / "page.html")
    check_ours(page)
    assert any(name in text for text in page.files.values())


@pytest.mark.parametrize("text", ["a\tb", "a\r\nb", "a\x1bb\u202ec", "a\x00b"])
def test_a_file_is_copied_and_saved_as_it_is_and_shown_so_that_all_is_seen(text):
    from ftplan.render.pages import _environment

    template = _environment().from_string(
        '{% import "parts.html.j2" as parts with context %}{{ parts.code("f", text) }}'
    )
    page = parsed(template.render(text=text))
    assert page.files["f"] == text
    (pre,) = page.tagged("pre")
    assert pre.text == clean(text.replace("\r\n", "\n"))


def test_what_is_no_string_is_spelled_out_too():
    from ftplan.render.pages import _environment

    place = Place("<b>a\x1b\u202e.yaml", 3)
    assert _environment().from_string("{{ place }}").render(place=place) == "&lt;b&gt;a\\x1b\\u202e.yaml:3"


def test_the_json_ends_no_script(cli, model_folder, tmp_path):
    model_folder("a<")
    folder = model_folder("a</script><script>alert(1)<")
    answer = cli("estimate", "--model", folder, "--gpus", "1x24GB", "--report", "page.html", "--json")
    page = read(tmp_path / "page.html")
    check_ours(page)
    assert json.dumps(page.document) == json.dumps(answer.document)
