"""An estimate as text: verdict, phases and terms as bars, host, time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ftplan.render.console import bar, count, duration, out, plain, size, words
from ftplan.render.training import print_training
from ftplan.results import Basis, Estimate, Phase, Term, Timeline
from ftplan.spec import RunConfig

if TYPE_CHECKING:
    from ftplan.workflows.estimating import Estimated

BAR_WIDTH = 32
SMALL = 0.005
"""Terms below this part of the peak are told together."""


def print_estimate(estimated: Estimated) -> None:
    """The whole answer of ``ftplan estimate``."""
    result = estimated.estimate
    console = out()
    config = estimated.config
    title = f"{estimated.name} · {config.method} · {config.sharding} on {estimated.cluster.text}"
    console.print(words(title, style="bold"))
    console.print(words(f"{summary(config)}, {config.seq_len} tokens, {config.optimizer}, {config.stack}"))
    console.print(verdict(result))
    console.print()
    print_memory(result)
    console.print(time_line(result))
    print_training(result.training)
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


def print_memory(result: Estimate) -> None:
    """Peak by phase, terms at the peak, and the three figures of a device; then the host."""
    console = out()
    timeline = Timeline(result.terms)
    console.print(_phases(timeline, result))
    console.print(_terms(timeline))
    console.print(
        f"peak allocated {size(result.peak_allocated_bytes)} · reserved {size(result.peak_reserved_bytes)} · "
        f"process {size(result.process_bytes)} · {result.provenance}"
    )
    if result.process_bytes > result.needed_bytes:
        console.print("(process is with room to spare: where memory is short, cached blocks are given back)")
    host = result.host
    known = " assumed" if host.capacity_assumed else ""
    console.print(
        f"host RAM {size(host.needed_bytes)} of{known} {size(host.capacity_bytes)} a node, highest in "
        f"{host.needed_phase}"
    )


def _phases(timeline: Timeline, result: Estimate) -> Table:
    table = _table("phase", "allocated", "of the card's memory")
    for phase, peak in timeline.by_phase.items():
        style = "bold" if phase == timeline.peak_phase else ""
        table.add_row(phase, size(peak), bar(peak / result.capacity_bytes, BAR_WIDTH), style=style)
    return table


def _terms(timeline: Timeline) -> Table:
    peak = timeline.peak_bytes
    table = _table(f"at the peak ({timeline.peak_phase})", "bytes", "", "what it is")
    small = 0
    for term in terms_at(timeline.terms, timeline.peak_phase):
        if term.bytes < SMALL * peak:
            small += term.bytes
            continue
        table.add_row(term.name, size(term.bytes), bar(term.bytes / peak, BAR_WIDTH // 2), words(term.reason))
    if small:
        table.add_row("smaller terms", size(small), "", "")
    return table


def terms_at(terms: Sequence[Term], phase: Phase) -> list[Term]:
    """The terms alive in ``phase``, largest first."""
    return sorted((term for term in terms if phase in term.alive), key=lambda term: -term.bytes)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index == 1 else "left", overflow="fold")
    return table


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
    """One line: parameters, seconds a step, tokens a second and what bounds it."""
    return (
        f"{count(result.trainable_params)} of {count(result.total_params)} parameters train · "
        f"step {duration(result.step_seconds)} · {result.tokens_per_second:,.0f} tokens/s · "
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
