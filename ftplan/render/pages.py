"""Answers as HTML: one self-contained page, or a piece of one.

What users wrote is text (Jinja2 escapes it, control characters are spelled out), and nothing is loaded: styles, script
and charts are inside, and a policy in the page forbids anything else. Each figure is looked up in the document that
``--json`` prints, and says which one it is (``data-path``, ``data-value``).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from ftplan import __version__
from ftplan.errors import FtplanError
from ftplan.estimators.combined import worst_of
from ftplan.render.charts.drawing import clean, kind_of
from ftplan.render.charts.lines import figure
from ftplan.render.charts.memory import LOW, by_phase, by_rank, by_term
from ftplan.render.charts.steps import by_part
from ftplan.render.charts.tradeoff import MARKS, by_speed, drawn
from ftplan.render.checks import VERDICTS, change_line, need
from ftplan.render.console import count, duration, percent, size
from ftplan.render.estimates import basis_notes, fit, summary
from ftplan.results import Estimate, HostEstimate, Phase, Plan, Term, Timeline
from ftplan.verdicts import Check, Verdict
from ftplan.workflows.estimating import Estimated
from ftplan.workflows.picturing import FileSet, Picture

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

KIND_NAMES: Final = {
    "weights": "weights",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "loss": "logits and loss",
    "communication": "gathered or in transit",
    "other": "workspace and scratch",
    "outside": "allocator, context, libraries",
}

SHOWN: Final[Mapping[str, Callable[[Any], str]]] = {
    "size": size,
    "duration": duration,
    "count": count,
    "integer": lambda value: f"{value:,.0f}",
    "ratio": lambda value: f"{value:.2f}",
    "speed": lambda value: f"{value:,.0f} tokens/s",
    "figure": figure,
    "percent": percent,
    "dollars": lambda value: f"${value:,.2f}",
    "text": str,
}
"""How a figure of each kind is shown."""

VERDICT_KINDS: Final = {
    Verdict.FITS: "fits",
    Verdict.TIGHT: "unsure",
    Verdict.UNKNOWN: "unsure",
    Verdict.OOM: "short",
}


def page(picture: Picture) -> str:
    """A whole page about an answer, which needs nothing else."""
    script = asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = _environment()
    from markupsafe import Markup

    return environment.get_template("page.html.j2").render(
        title=f"ftplan {picture.command}: {_subject(picture)}",
        body=Markup(piece(picture)),  # noqa: S704 - rendered by the same environment
        css=Markup(asset("page.css")),  # noqa: S704 - our own file
        js=Markup(script),  # noqa: S704 - our own file
        script_hash=f"sha256-{digest}",
        document=picture.document,
        json_name=f"ftplan-{picture.command}.json",
        version=__version__,
    )


def piece(picture: Picture, same: str = "") -> str:
    """The part of the page that tells the answer, to stand in another page with the same styles and script.

    ``same`` is the command that gives the answer.
    """
    return rendered(
        f"{picture.command}.html.j2",
        picture.document,
        view=view(picture),
        landscape=picture.landscape,
        files=picture.files,
        is_draft=picture.is_draft,
        same=same,
        **{_NAMES[type(picture.answer)]: picture.answer},
    )


def problem(error: FtplanError, title: str = "not possible") -> str:
    """What is wrong with what was asked, and a hint."""
    return rendered("problem.html.j2", {}, title=title, message=error.message, hint=error.hint)


def files_piece(plan: Plan, files: FileSet) -> str:
    """The files of one tool for ``plan``, to copy and to save."""
    return rendered("files.html.j2", {}, set=files, plan=plan)


def rendered(template: str, document: Mapping[str, Any], **values: Any) -> str:
    """A template with the figures of ``document`` and ``values``."""
    own = {
        "shown": partial(_shown, document),
        "figure": partial(_figure, document),
        "derived": _derived,
    }
    return _environment().get_template(template).render({**own, **values})


def asset(name: str) -> str:
    """A file that pages are made of, such as ``page.css``."""
    return resources.files("ftplan.render").joinpath("templates", name).read_text(encoding="utf-8")


_NAMES: Final = {Plan: "plan", Check: "check", Estimated: "estimated"}


def view(picture: Picture) -> dict[str, Any]:
    """What the templates show that takes more than a look at the answer: charts, the verdict in words."""
    told, config = picture.estimate, picture.config
    common = {**_tradeoff(picture), **_verdict(picture)}
    if told is None or config is None:
        return common
    base = "" if picture.command == "estimate" else "estimate."
    return {"base": base, "estimate": told, **_charts(picture, told), **common}


def _charts(picture: Picture, told: Estimate) -> dict[str, Any]:
    worst = worst_of(told.ranks)
    tops = dict(worst.needed_by_phase)
    if isinstance(picture.answer, Check):
        tops |= {phase: each.bytes for each in picture.answer.phases for phase in tops if str(phase) == each.phase}
    host_limit = "assumed limit" if told.host.capacity_assumed else "limit"
    host = _once(told.host)
    charts = {
        "timeline": by_phase(worst.terms, told.capacity_bytes, tops=tops),
        "terms": by_term(worst.terms, Timeline(worst.terms).peak_phase),
        "ranks": by_rank(told.ranks) if len(told.ranks) > 1 else "",
        "host": by_phase(
            host, told.host.capacity_bytes, title="Host RAM by phase", limit=host_limit, name="host", height=LOW
        ),
        "step": by_part(told.step),
    }
    held = {kind_of(term.name) for term in (*worst.terms, *host)} | {"outside"}
    return {
        **{name: _markup(svg) for name, svg in charts.items()},
        "kinds": {kind: name for kind, name in KIND_NAMES.items() if kind in held},
        "peak_phase": str(Timeline(worst.terms).peak_phase),
        "notes": (*told.notes, *basis_notes(told.basis)),
        "host_note": "Pages of files that several processes map are counted once." if told.host.shared_bytes else "",
    }


def _tradeoff(picture: Picture) -> dict[str, Any]:
    """The chart of everything that was estimated, with what it leaves out and what its marks are."""
    answer = picture.answer
    front = answer.pareto if isinstance(answer, Plan) else ()
    fixes = [fix.config for fix in answer.fixes] if isinstance(answer, Check) else []
    limit = picture.estimate.capacity_bytes if picture.estimate is not None else _nearest_limit(picture)
    near = drawn(picture.landscape, limit, {picture.config, *fixes}) if limit else []
    if not near:
        return {"tradeoff": ""}
    chart = by_speed(picture.landscape, front, picture.config, limit, marked=fixes)
    return {
        "tradeoff": _markup(chart),
        "tradeoff_note": _tradeoff_note(len(picture.landscape) - len(near)),
        "marks": [MARKS[method] for method in MARKS if any(one.config.method == method for one in near)],
        "some_fit": any(one.fits for one in near),
        "has_front": len(front) > 1,
        "has_fixes": bool(fixes),
    }


def _once(host: HostEstimate) -> list[Term]:
    """The host's terms with pages that several ranks map counted once, in what is there to load from them."""
    if not host.shared_bytes:
        return list(host.terms)
    mapped = max((term for term in host.terms if term.alive == (Phase.LOAD,)), key=lambda term: term.bytes)
    rest = [term for term in host.terms if term is not mapped]
    return [*rest, replace(mapped, bytes=mapped.bytes - host.shared_bytes)]


def _tradeoff_note(beyond: int) -> str:
    told = "Hollow marks do not fit. Point at a mark to see which configuration it is."
    if not beyond:
        return told
    far = (
        "1 that needs far more than the limit is" if beyond == 1 else f"{beyond} that need far more than the limit are"
    )
    return f"{told} {far} not drawn."


def _nearest_limit(picture: Picture) -> int:
    """What a card offers where nothing fits; 0 where no rejection tells."""
    rejections = picture.answer.rejections if isinstance(picture.answer, Plan) else ()
    offered = (group.rejection.available_bytes for group in rejections if group.rejection.rule == "memory")
    return next((each for each in offered if each), 0)


def _verdict(picture: Picture) -> dict[str, str]:
    answer = picture.answer
    if isinstance(answer, Check):
        word, _ = VERDICTS[answer.verdict]
        text = need(answer) if answer.estimate is not None else "what it needs cannot be told"
        return {"verdict_kind": VERDICT_KINDS[answer.verdict], "verdict_word": word, "verdict_text": text}
    if picture.estimate is None:
        return {}
    word, text = fit(picture.estimate)
    return {"verdict_kind": "fits" if picture.estimate.fits else "short", "verdict_word": word, "verdict_text": text}


def _subject(picture: Picture) -> str:
    answer = picture.answer
    if isinstance(answer, Plan):
        return f"{answer.request.model} on {answer.request.inventory.text}"
    if isinstance(answer, Check):
        return f"{', '.join(answer.files) or 'command line'} on {answer.inventory}"
    return f"{answer.name} on {answer.cluster.text}"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def spelled(value: object) -> object:
        return value if isinstance(value, Markup) else clean(str(value))

    def exact(text: str) -> str:
        return "" if clean(text) == text else json.dumps(text)

    environment = Environment(
        loader=PackageLoader("ftplan.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=spelled,
    )
    environment.filters |= {
        "size": size,
        "duration": duration,
        "summary": summary,
        "change_line": change_line,
        "exact": exact,
    }
    environment.policies["json.dumps_kwargs"] = {}  # keys stay in the order that --json has
    return environment


def _markup(svg: str) -> Markup | str:
    from markupsafe import Markup

    return Markup(svg) if svg else ""  # noqa: S704 - written by ElementTree, which escapes what it is given


def _value(document: Mapping[str, Any], path: str) -> Any:
    """What the document holds at ``path``, names and places joined by points."""
    found: Any = document
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def _shown(document: Mapping[str, Any], path: str, kind: str) -> str:
    return SHOWN[kind](_value(document, path))


def _figure(document: Mapping[str, Any], path: str, kind: str) -> Markup:
    """A figure of the document, with its path and exact value beside what is shown."""
    from markupsafe import Markup

    value = _value(document, path)
    template = Markup('<span data-path="{}" data-kind="{}" data-value="{}">{}</span>')
    return template.format(path, kind, json.dumps(value), clean(SHOWN[kind](value)))


def _derived(value: Any, kind: str, of: str) -> Markup:
    """A figure that is worked out of those of the document which ``of`` names, with its exact value."""
    from markupsafe import Markup

    template = Markup('<span data-derived="{}" data-kind="{}" data-value="{}">{}</span>')
    return template.format(of, kind, json.dumps(value), clean(SHOWN[kind](value)))
