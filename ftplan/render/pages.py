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
from ftplan.render.charts.drawing import clean
from ftplan.render.charts.lines import figure
from ftplan.render.charts.memory import by_phase, by_rank, by_term
from ftplan.render.charts.steps import by_part
from ftplan.render.charts.tradeoff import by_speed, far
from ftplan.render.checks import VERDICTS, change_line, need
from ftplan.render.console import count, duration, percent, size
from ftplan.render.estimates import basis_notes, fit, summary
from ftplan.results import Estimate, HostEstimate, Phase, Plan, Term, Timeline
from ftplan.spec import RunConfig
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


def piece(picture: Picture) -> str:
    """The part of the page that tells the answer, to stand in another page with the same styles and script."""
    return rendered(
        f"{picture.command}.html.j2",
        picture.document,
        view=view(picture),
        landscape=picture.landscape,
        files=picture.files,
        is_draft=picture.is_draft,
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
        "kinds": KIND_NAMES,
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
    if told is None or config is None:
        limit = _nearest_limit(picture)
        tradeoff = _markup(by_speed(picture.landscape, (), None, limit)) if picture.landscape and limit else ""
        return {"tradeoff": tradeoff, "tradeoff_note": _tradeoff_note(picture), **_verdict(picture)}
    base = "" if picture.command == "estimate" else "estimate."
    return {"base": base, "estimate": told, **_charts(picture, told, config), **_verdict(picture)}


def _charts(picture: Picture, told: Estimate, config: RunConfig) -> dict[str, Any]:
    worst = worst_of(told.ranks)
    tops = dict(worst.needed_by_phase)
    if isinstance(picture.answer, Check):
        tops |= {phase: each.bytes for each in picture.answer.phases for phase in tops if str(phase) == each.phase}
    front = picture.answer.pareto if isinstance(picture.answer, Plan) else ()
    fixes = picture.answer.fixes if isinstance(picture.answer, Check) else ()
    host_limit = "assumed limit" if told.host.capacity_assumed else "limit"
    drawn = {
        "timeline": by_phase(worst.terms, told.capacity_bytes, tops=tops),
        "terms": by_term(worst.terms, Timeline(worst.terms).peak_phase),
        "ranks": by_rank(told.ranks) if len(told.ranks) > 1 else "",
        "host": by_phase(
            _once(told.host), told.host.capacity_bytes, title="Host RAM by phase", limit=host_limit, name="host"
        ),
        "step": by_part(told.step),
        "tradeoff": by_speed(
            picture.landscape, front, config, told.capacity_bytes, marked=[fix.config for fix in fixes]
        )
        if picture.landscape
        else "",
    }
    return {
        **{name: _markup(svg) for name, svg in drawn.items()},
        "peak_phase": str(Timeline(worst.terms).peak_phase),
        "notes": (*told.notes, *basis_notes(told.basis)),
        "tradeoff_note": _tradeoff_note(picture),
        "host_note": "Pages of files that several processes map are counted once." if told.host.shared_bytes else "",
    }


def _once(host: HostEstimate) -> list[Term]:
    """The host's terms with pages that several ranks map counted once, in the largest of those that load."""
    if not host.shared_bytes:
        return list(host.terms)
    mapped = max((term for term in host.terms if Phase.LOAD in term.alive), key=lambda term: term.bytes)
    rest = [term for term in host.terms if term is not mapped]
    alive = tuple(phase for phase in mapped.alive if phase is not Phase.LOAD)
    own = [replace(mapped, bytes=mapped.bytes - host.shared_bytes, alive=(Phase.LOAD,))]
    return [*rest, *own, *([replace(mapped, alive=alive)] if alive else [])]


def _tradeoff_note(picture: Picture) -> str:
    """What the chart leaves out, and what its marks are."""
    limit = picture.estimate.capacity_bytes if picture.estimate is not None else _nearest_limit(picture)
    beyond = far(picture.landscape, limit) if limit else 0
    told = "Hollow marks do not fit. Point at a mark to see which configuration it is."
    return told + (f" {beyond} that need far more than the limit are not drawn." if beyond else "")


def _nearest_limit(picture: Picture) -> int:
    """What a card offers where nothing fits; 0 where no rejection tells."""
    rejections = picture.answer.rejections if isinstance(picture.answer, Plan) else ()
    return next((group.rejection.available_bytes for group in rejections if group.rejection.available_bytes), 0)


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
        return value if isinstance(value, Markup) or not isinstance(value, str) else clean(value)

    environment = Environment(
        loader=PackageLoader("ftplan.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=spelled,
    )
    environment.filters |= {"size": size, "duration": duration, "summary": summary, "change_line": change_line}
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
