import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cluster, configs, inventories

from ftplan.estimators.training_time import training_time
from ftplan.estimators.workload import Place
from ftplan.spec import TrainingRequest
from ftplan.units import HOUR_SECONDS

amounts = st.integers(1, 10**7)
trainings = st.builds(
    TrainingRequest,
    samples=amounts,
    epochs=st.floats(0.01, 20),
    mean_tokens=st.none() | st.floats(1, 4096),
    price=st.floats(0.01, 50),
)
steps = st.floats(0.001, 100)


@given(configs(), inventories, trainings, amounts, steps)
def test_more_samples_never_take_fewer_steps_or_cost_less(config, gpus, request, more, step_seconds):
    place = Place(config, cluster(gpus))
    larger = request.model_copy(update={"samples": request.samples + more})
    less, most = (training_time(each, place, step_seconds) for each in (request, larger))
    assert most.steps >= less.steps > 0
    assert most.seconds >= less.seconds
    assert most.dollars >= less.dollars


@given(configs(), inventories, trainings, steps)
def test_the_cost_is_the_devices_hours_times_the_price(config, gpus, request, step_seconds):
    training = training_time(request, Place(config, cluster(gpus)), step_seconds)
    assert training.dollars == pytest.approx(training.device_seconds / HOUR_SECONDS * request.price)
