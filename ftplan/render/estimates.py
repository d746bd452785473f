"""An estimate as text: verdict, phases and terms as bars, host, time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ftplan.render.console import count, duration, out, plain, size, words
from ftplan.render.tables import Cell, Column, print_parts, print_table
from ftplan.render.training import print_training
from ftplan.results import Basis, Estimate, Phase, Term, Timeline
from ftplan.spec import RunConfig

if TYPE_CHECKING:
    from ftplan.workflows.estimating import Estimated

SMALL = 0.005
"""Terms below this part of the peak are told together."""


def print_estimate(estimated: Estimated, *, brief: bool = False) -> None:
    """The answer of ``ftplan estimate``, or its verdict alone."""
    result = estimated.estimate
    console = out()
    if brief:
        console.print(verdict(result), soft_wrap=True)
        return
    config = estimated.config
    title = f"{estimated.name} · {config.method} · {config.sharding} on {estimated.cluster.text}"
    console.print(words(title, style="bold"))
    console.print(words(f"{summary(config)}, {config.seq_len} tokens, {config.optimizer}, {config.stack}"))
    console.print(verdict(result))
    print_speed(result)
    console.print()
    print_memory(result)
    print_notes(result)


def summary(config: RunConfig) -> str:
    """A configuration in one line."""
    targets = "" if config.lora_targets == "all-linear" else f" on {config.lora_targets}"
    parts = [config.method + (f" rank {config.lora_rank}{targets}" if config.trains_lora else "")]
    if config.trains_prompts:
        bits = f", {config.quantization} weights" if config.quantization != "none" else ""
        parts[0] += f" of {config.adapter_len} tokens in {config.adapter_layers} layers{bits}"
    parts.append(config.sharding if config.sharding != "none" else "one process")
    if config.offload != "none":
        parts.append(f"offload {config.offload}")
    parts.append("checkpointing" if config.gradient_checkpointing else "no checkpointing")
    parts.append(f"micro-batch {config.micro_batch} x {config.accumulation}")
    if config.kernels != "none":
        parts.append("Liger kernels")
    if config.optimizer.endswith("8bit"):
        parts.append(config.optimizer)
    return ", ".join(parts)


def verdict(result: Estimate) -> Text:
    """One line: fits or not, what is needed and what there is."""
    word, told = fit(result)
    return words((word, "bold green" if result.fits else "bold red"), f": {told}")


def fit(result: Estimate) -> tuple[str, str]:
    """Whether it fits in a word or three, and what is needed of what there is."""
    need, have = size(result.needed_bytes), size(result.capacity_bytes)
    if result.fits:
        free = size(result.capacity_bytes - result.needed_bytes)
        return "fits", f"needs {need} of {have} on the worst rank, {free} free"
    if not result.host.fits:
        need, have = size(result.host.needed_bytes), size(result.host.capacity_bytes)
        return "does not fit", f"host RAM needs {need} of {have}"
    return "does not fit", f"needs {need} of {have} on the worst rank"


def print_speed(result: Estimate) -> None:
    """How fast it is, and of a whole training what it takes."""
    print_parts(speed(result, fits=result.fits))
    print_training(result.training)


def speed(result: Estimate, *, fits: bool) -> Text:
    """One line: tokens a second, seconds a step and what bounds it."""
    return words(("speed: " if fits else "speed if it fitted: ", "bold"), time_line(result))


def print_memory(result: Estimate) -> None:
    """Peak by phase, terms at the peak, and the three figures of a device; then the host."""
    timeline = Timeline(result.terms)
    _print_phases(timeline, result)
    _print_terms(timeline)
    peak = (
        f"peak allocated {size(result.peak_allocated_bytes)} · reserved {size(result.peak_reserved_bytes)} · "
        f"process {size(result.process_bytes)} · {result.provenance}"
    )
    print_parts(words(peak))
    if result.process_bytes > result.needed_bytes:
        out().print("(process is with room to spare: where memory is short, cached blocks are given back)")
    print_parts(words(f"{host_line(result)} · {parameters_line(result)}"))


def host_line(result: Estimate) -> str:
    """What the host's RAM has to hold."""
    host = result.host
    known = " assumed" if host.capacity_assumed else ""
    needs = f"{size(host.needed_bytes)} of{known} {size(host.capacity_bytes)}"
    return f"host RAM {needs} a node, highest in {host.needed_phase}"


def parameters_line(result: Estimate) -> str:
    """How many parameters train."""
    return f"{count(result.trainable_params)} of {count(result.total_params)} parameters train"


def _print_phases(timeline: Timeline, result: Estimate) -> None:
    columns = (Column("phase", "name"), Column("allocated", said="{}"), Column("of the card's memory", "bar"))
    rows = [(phase, size(peak), peak / result.capacity_bytes) for phase, peak in timeline.by_phase.items()]
    styles = ["bold" if phase == timeline.peak_phase else "" for phase in timeline.by_phase]
    print_table(columns, rows, styles=styles)


def _print_terms(timeline: Timeline) -> None:
    peak = timeline.peak_bytes
    columns = (
        Column(f"at the peak ({timeline.peak_phase})", "name"),
        Column("bytes", said="{}"),
        Column("", "bar", width=16),
        Column("what it is", "text"),
    )
    rows: list[tuple[Cell, ...]] = []
    small = 0
    for term in terms_at(timeline.terms, timeline.peak_phase):
        if term.bytes < SMALL * peak:
            small += term.bytes
            continue
        rows.append((term.name, size(term.bytes), term.bytes / peak, term.reason))
    if small:
        rows.append(("smaller terms", size(small), "", ""))
    print_table(columns, rows)


def terms_at(terms: Sequence[Term], phase: Phase) -> list[Term]:
    """The terms alive in ``phase``, largest first."""
    return sorted((term for term in terms if phase in term.alive), key=lambda term: -term.bytes)


def print_notes(result: Estimate) -> None:
    """What a user should know beside the figures, and what these rest on."""
    for note in (*result.notes, *basis_notes(result.basis)):
        out().print(words(f"note: {note}"))


def basis_notes(basis: Basis) -> Iterator[str]:
    """What was measured on this user's devices and by earlier runs, a sentence each."""
    for one in basis.calibrations:
        yield f"calibrated on {one.measured_at[:10]}: {', '.join(one.figures)} of {one.device}"
    if basis.step_runs:
        yield (
            f"times are {basis.step_ratio:.2f} of the closed form's: the median of {basis.step_runs} recorded runs on "
            f"{', '.join(basis.devices)}"
        )
    if basis.excess_bytes:
        yield f"{size(basis.excess_bytes)} more are needed: recorded runs of this kind took that over their prediction"


def time_line(result: Estimate) -> str:
    """One line: tokens a second, seconds a step and what bounds it."""
    return (
        f"{result.tokens_per_second:,.0f} tokens/s · step {duration(result.step_seconds)} · "
        f"bound by {result.step.bound_by} ({_trust(result.basis)})"
    )


def _trust(basis: Basis) -> str:
    if not basis.is_calibrated:
        return "assumed until calibrated"
    return f"calibrated on {min(one.measured_at for one in basis.calibrations)[:10]}"


def batch_line(document: Mapping[str, Any]) -> str:
    """One line for a case of ``--batch``."""
    if "error" in document:
        problem = document["error"]
        hint = f" (hint: {problem['hint']})" if problem["hint"] else ""
        told = f"error: {problem['message']}{hint}"
    else:
        fits = "fits" if document["fits"] else "does not fit"
        peak, step = size(document["peak_allocated_bytes"]), duration(document["step_seconds"])
        told = f"{fits}, peak {peak}, step {step}"
    return plain(f"{document['id']}: {told}").replace("\n", " ")
