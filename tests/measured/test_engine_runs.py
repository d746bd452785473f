"""Our own engine's runs of a later day than the code was fitted on: what ``ftplan run`` told beside what it took."""

import pytest

from benchmarks.accuracy import engine_errors
from benchmarks.measured_cases import engine_cases

LATER = [case for case in engine_cases() if case.id.startswith("r")]

UNEXPLAINED_HOST = {"r4-zero3-tiny-nock"}
"""Its checkpoint took 2 GB more than that of another run of the same model; no cause was found."""


@pytest.fixture(scope="module")
def errors():
    return {case.id: engine_errors(case) for case in LATER}


def test_there_are_runs_on_one_and_on_several_cards():
    assert {case.is_single for case in LATER} == {True, False}
    assert len(LATER) == 17


@pytest.mark.parametrize("case", LATER, ids=lambda case: case.label)
def test_each_is_near(case, errors):
    # What ZeRO-3 copies from the host to send it stays for up to a tenth of a second: two ranks of a run differ so.
    lingers = case.config.sharding == "zero3" and case.config.offload != "none"
    assert errors[case.id]["allocated"] == pytest.approx(0, abs=0.05 if lingers else 0.01)
    assert errors[case.id]["process"] == pytest.approx(0, abs=0.05)
    if case.id not in UNEXPLAINED_HOST:
        assert errors[case.id]["host"] == pytest.approx(0, abs=0.13)


def test_in_the_mean_the_process_is_told_within_a_percent(errors):
    assert sum(abs(each["process"]) for each in errors.values()) / len(errors) < 0.01
    host = [abs(each["host"]) for name, each in errors.items() if name not in UNEXPLAINED_HOST]
    assert sum(host) / len(host) < 0.06


def test_what_is_unexplained_is_still_off(errors):
    assert all(abs(errors[name]["host"]) > 0.13 for name in UNEXPLAINED_HOST)
