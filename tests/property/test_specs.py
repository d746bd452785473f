import json

from hypothesis import given
from strategies import configs, requests

from ftplan.spec import OF_THE_MODEL, PlanRequest, RunConfig


@given(configs())
def test_configs_survive_json(config):
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@given(configs())
def test_a_dumped_config_leaves_nothing_to_derive(config):
    dumped = config.model_dump(mode="json")
    assert set(dumped) == set(RunConfig.model_fields)
    assert {field for field, value in dumped.items() if value is None} <= OF_THE_MODEL
    assert RunConfig.model_validate(dumped) == config


@given(requests())
def test_requests_survive_json(request):
    assert PlanRequest.model_validate(json.loads(request.model_dump_json())) == request
