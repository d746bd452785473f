"""The analytic estimates beside what a trace said of random configurations (``python -m benchmarks.oracle``)."""

from statistics import fmean, median

from benchmarks.oracle import WITHIN, cases, errors

PEAKS = [(case, errors(case)["peak"]) for case in cases()]


def test_the_sample_is_wide():
    assert len(PEAKS) > 100
    configs = [case.config for case, _ in PEAKS]
    assert len({config.model for config in configs}) > 50
    assert {config.method for config in configs} == {"full", "lora", "qlora", "llama-adapter"}
    assert {config.sharding for config in configs} >= {
        "none",
        "ddp",
        "fsdp2",
        "fsdp2-grad-op",
        "zero1",
        "zero2",
        "zero3",
    }


def test_most_agree_with_the_trace_to_half_a_percent():
    assert sum(abs(peak) <= WITHIN for _, peak in PEAKS) >= 0.8 * len(PEAKS)
    assert median(abs(peak) for _, peak in PEAKS) <= 0.001


def test_what_differs_is_seldom_far_off():
    assert fmean(abs(peak) for _, peak in PEAKS) <= 0.01
    assert sum(abs(peak) > 0.03 for _, peak in PEAKS) <= 0.07 * len(PEAKS)
