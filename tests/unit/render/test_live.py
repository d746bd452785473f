"""A run as it shows on a terminal and elsewhere."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from ftplan.launcher.events import FlopsCounted, RankMemory, Recovering, Started, Stepped, Warned
from ftplan.launcher.job import DataSource, Source, TrainJob
from ftplan.render import live, runs
from ftplan.spec import RunConfig
from ftplan.units import GIB

STARTED = Started(60, 2, 16, 178, 1_210_000, 156_000, (1, 2))


def rank(number, allocated, process):
    return RankMemory(number, allocated and round(allocated * GIB), None, round(process * GIB), None)


def job(ranks=2, device="cuda"):
    config = RunConfig(model="demo", seq_len=128, micro_batch=1, sharding="ddp")
    allocated = 20 if device == "cuda" else None
    source = Source(kind="folder", location="m")
    return TrainJob(
        run_id="a",
        run_dir="a",
        config=config,
        inventory="x",
        global_batch=ranks,
        world_size=ranks,
        nproc_per_node=ranks,
        device=device,
        model=source,
        tokenizer=source,
        data=DataSource(paths=("d",)),
        max_steps=60,
        predicted_ranks=tuple(rank(number, allocated, 22) for number in range(ranks)),
    )


STEP = Stepped(12, 60, 0.1, 3.45212, 4.9e-3, 1.234, 0.2, 12345.6, (rank(0, 19.9, 21.9), rank(1, 20.8, 22)))
STEP = replace(STEP, mfu=0.412, eta_seconds=186.0)


@pytest.fixture
def shown(monkeypatch):
    def show(width, *events, of=None, terminal=True):
        text = io.StringIO()
        console = Console(file=text, width=width, height=40, force_terminal=terminal, color_system=None)
        monkeypatch.setattr(runs, "err", lambda: console)
        monkeypatch.setattr(runs, "aside", lambda: console)
        monkeypatch.setattr(runs, "is_live", lambda: terminal)
        display = runs.RunDisplay(of or job())
        for event in events:
            display.show(event)
        if terminal:
            console.print(*display._progress.get_renderables(), sep="\n")
        return [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]

    return show


def test_a_terminal_shows_every_figure_and_each_gpu(shown):
    _, bar, *lines = shown(80, STARTED, STEP)
    assert bar.split()[:2] == ["step", "12/60"]
    assert bar.endswith("3.1 min left")
    assert lines == [
        "loss 3.4521 · lr 4.90e-03 · grad norm 1.23 · 12,346 tokens/s · MFU 41.2%",
        "memory / predicted, ! where it is above",
        "GPU 0  allocated 19.90 / 20.00 GiB -0.5%  process 21.90 / 22.00 GiB -0.5%",
        "GPU 1  allocated 20.80 / 20.00 GiB +4.0% !  process 22.00 / 22.00 GiB +0.0%",
    ]


@pytest.mark.parametrize("width", [24, 40, 60])
def test_a_narrow_terminal_shows_them_too(shown, width):
    _, bar, *lines = shown(width, STARTED, STEP)
    assert max(map(len, (bar, *lines))) <= width
    text = " ".join(lines)
    assert "12/60" in bar
    assert all(part in text for part in ("loss 3.4521", "4.90e-03", "MFU 41.2%", "GPU 0", "GPU 1", "+4.0%"))


def test_elsewhere_a_line_has_it_all(shown):
    lines = shown(40, replace(STEP, mfu=None, grad_norm=None), terminal=False)
    assert lines == [
        "step 12/60 · 3.1 min left · loss 3.4521 · lr 4.90e-03 · 12,346 tokens/s"
        " · memory 22.00 GiB (predicted 22.00 GiB)"
    ]


def test_of_many_gpus_those_show_that_are_farthest_above():
    ranks = tuple(rank(number, 21 if number == 13 else 19, 22) for number in range(16))
    lines = [line.plain for line in live.memory_lines(replace(STEP, memory=ranks), job(ranks=16))]
    assert len(lines) == live.SHOWN_RANKS + 2
    assert any(line.startswith("GPU 13") and "+5.0% !" in line for line in lines)
    assert lines[-1] == "and 8 ranks that are nearer to their prediction or below it"


def test_after_a_recovery_memory_is_beside_the_new_prediction(shown):
    smaller = (rank(0, 19, 21), rank(1, 19, 21))
    lines = shown(
        80, STARTED, Recovering("out_of_memory", "", 4, {"micro_batch": (8, 4)}, predicted_ranks=smaller), STEP
    )
    assert "out of memory: going on from step 4 with micro batch 8 -> 4" in lines
    assert any(line.startswith("GPU 0  allocated 19.90 / 19.00 GiB +4.7% !") for line in lines)


def test_figures_of_two_units_each_have_theirs():
    small = replace(STEP, memory=(RankMemory(0, None, None, 120 * 2**20, None),))
    predicted = job(device="cpu").model_copy(
        update={"predicted_ranks": (RankMemory(0, None, None, 95 * 2**20, None),) * 2}
    )
    assert [line.plain for line in live.memory_lines(small, predicted)][1:] == [
        "process 0  resident 0.12 GiB / 95.0 MiB +26.3% !"
    ]


def test_a_cpu_process_is_marked_where_it_is_far_above():
    memory = (rank(0, None, 23), rank(1, None, 33))
    lines = [line.plain for line in live.memory_lines(replace(STEP, memory=memory), job(device="cpu"))]
    assert lines[1:] == [
        "process 0  resident 23.00 / 22.00 GiB +4.5%",
        "process 1  resident 33.00 / 22.00 GiB +50.0% !",
    ]


def test_above_is_a_warning_and_below_a_note(shown):
    above = Warned("memory", 1, "allocated", 3, 21 * GIB, 20 * GIB, "the run may end out of memory")
    below = replace(above, measured_bytes=18 * GIB, message="the estimate was too high")
    assert shown(40, above, below, terminal=False) == [
        "warning: rank 1 allocated 21.00 GiB at step 3, 5.0% above the prediction of 20.00 GiB: "
        "the run may end out of memory",
        "note: rank 1 allocated 18.00 GiB at step 3, 10.0% below the prediction of 20.00 GiB: "
        "the estimate was too high",
    ]


def test_counted_flops_are_shown_beside_the_models(shown):
    counted = FlopsCounted(3, 4096, 2_000_000_000_000, {"aten.mm": 2_000_000_000_000}, 1.9e12)
    assert shown(80, counted, terminal=False) == [
        "step 3: 2 TFLOPs counted, 1.9 of the model by its profile (4,096 tokens)"
    ]
