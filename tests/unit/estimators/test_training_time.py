"""Steps against transformers' own count, time and cost by hand."""

import math

import pytest
from small import SMALL, cluster, small_config

from ftplan.estimators.analytic import estimate
from ftplan.estimators.training_time import optimizer_steps, sequences, training_time, with_training
from ftplan.estimators.workload import Place
from ftplan.spec import TrainingRequest


def asked(samples=1000, **fields):
    return TrainingRequest(samples=samples, **fields)


def told(gpus="2xRTX4090", step_seconds=2.0, request=None, **fields):
    config = small_config(**{"sharding": "ddp", "accumulation": 4, **fields})
    return training_time(request or asked(), Place(config, cluster(gpus)), step_seconds)


def trainer_steps(sequences, micro_batch, accumulation, ranks, epochs):
    """Batches as accelerate shards them, updates as transformers' Trainer counts them, in their own words."""
    batches = math.ceil(sequences / micro_batch)
    of_a_rank = batches // ranks + (batches % ranks > 0)
    updates = max(of_a_rank // accumulation + int(of_a_rank % accumulation > 0), 1)
    return math.ceil(epochs * updates)


@pytest.mark.parametrize("epochs", [0.3, 1.0, 1.1, 2.5, 3.0])
@pytest.mark.parametrize("sequences", [1, 7, 16, 17, 95, 96, 1000])
@pytest.mark.parametrize(("micro_batch", "accumulation", "ranks"), [(1, 1, 1), (2, 4, 2), (3, 5, 7), (8, 1, 3)])
def test_steps_are_the_trainer_s(sequences, micro_batch, accumulation, ranks, epochs):
    expected = trainer_steps(sequences, micro_batch, accumulation, ranks, epochs)
    assert optimizer_steps(sequences, micro_batch * accumulation * ranks, epochs) == expected


def test_every_epoch_ends_with_a_step_of_its_own():
    assert told(request=asked(17)).steps == 2
    assert told(request=asked(17, epochs=3.0)).steps == 6


def test_time_and_cost():
    training = told(request=asked(1600, price=3.0))
    assert (training.steps, training.seconds, training.device_seconds) == (100, 200.0, 400.0)
    assert training.dollars == pytest.approx(400 / 3600 * 3)


def test_a_card_s_own_price_is_taken():
    assert told("1xRTX4090+1xRTX3090").dollars == pytest.approx(told().seconds / 3600 * (0.34 + 0.22))


def test_a_card_without_a_price_gives_no_cost_and_says_so():
    training = told("1xRTX4090+1x24GB")
    assert training.dollars is None
    assert any("no price is known for 24GB" in note for note in training.notes)


def test_a_price_of_nothing_is_a_price():
    assert told("2x24GB", request=asked(price=0.0)).dollars == 0.0


def test_one_process_is_paid_for_one_card():
    assert told(sharding="none").device_seconds == told(sharding="none").seconds


def test_packing_fills_sequences():
    packed = small_config(packing=True, seq_len=128)
    assert sequences(packed, asked(1000, mean_tokens=32.0)) == 250
    assert sequences(packed, asked(1000, mean_tokens=32.1)) == 251
    assert sequences(packed, asked(1000)) == 1000
    assert sequences(small_config(), asked(1000, mean_tokens=32.0)) == 1000


@pytest.mark.parametrize(
    ("fields", "mean_tokens", "shorter"),
    [
        ({}, 16.0, True),
        ({}, 128.0, False),
        ({}, 1000.0, False),
        ({}, None, False),
        ({"packing": True}, 16.0, False),
        ({"padding": True}, 16.0, False),
    ],
)
def test_steps_of_short_samples_are_short_unless_they_are_filled_up(fields, mean_tokens, shorter):
    config, gpus = small_config(**fields), cluster("1xRTX4090")
    whole = estimate(config, SMALL, gpus)
    training = with_training(whole, asked(mean_tokens=mean_tokens), config, SMALL, gpus).training
    assert (training.step_seconds < whole.step_seconds) == shorter
    assert shorter or training.step_seconds == whole.step_seconds


def test_without_a_profile_steps_are_as_long_as_the_estimate_s():
    config, gpus = small_config(), cluster("1xRTX4090")
    whole = estimate(config, SMALL, gpus)
    training = with_training(whole, asked(mean_tokens=16.0), config, None, gpus).training
    assert training.step_seconds == whole.step_seconds


def test_what_is_assumed_is_said():
    notes = " ".join(told("2xRTX4090").notes)
    assert "evaluation, saving and loading are not counted" in notes
    assert "a sample counts as 128 tokens" in notes
    assert "typical" in notes
    assert len(told(request=asked(mean_tokens=64.0, price=1.0)).notes) == 1
