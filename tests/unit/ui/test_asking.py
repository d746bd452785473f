import shlex

import pytest

from ftplan.cli import build_app
from ftplan.errors import InputError, UnknownNameError
from ftplan.results import to_jsonable
from ftplan.ui import asking
from ftplan.ui.asking import OPEN, arguments, command, inventory_text, request_of
from ftplan.workflows import planning

START = {
    "model": "Qwen/Qwen2.5-7B",
    "card": "24GB",
    "count": 2,
    "machines": 1,
    "global_batch": 32,
    "seq_len": 2048,
    "method": "auto",
    "objective": "throughput",
    "margin": 3,
    "inventory": "",
    "host_memory": "",
    "link": "auto",
    "lora_rank": OPEN,
    "samples": None,
    "epochs": None,
    "price": None,
    **dict.fromkeys(asking.PINS, OPEN),
    "micro_batch": None,
}


def test_what_is_open_is_left_to_the_planner():
    request = request_of(START)
    assert request.pins == {}
    assert request.training is None
    assert request.inventory.text == "2x24GB"
    assert (request.global_batch, request.seq_len, request.margin) == (32, 2048, 0.03)


def test_pins_have_the_types_of_their_fields():
    pinned = {
        "sharding": "zero3",
        "gradient_checkpointing": "off",
        "packing": "on",
        "micro_batch": 4.0,
        "lora_targets": " q_proj,v_proj ",
    }
    assert request_of({**START, **pinned}).pins == {
        "sharding": "zero3",
        "gradient_checkpointing": False,
        "packing": True,
        "micro_batch": 4,
        "lora_targets": "q_proj,v_proj",
    }


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "2x24GB"),
        ({"machines": 2, "count": 8, "card": "H100"}, "2x8xH100"),
        ({"inventory": " 1xA100-80GB+1xRTX3090 "}, "1xA100-80GB+1xRTX3090"),
    ],
)
def test_devices_in_words(values, text):
    assert inventory_text({**START, **values}) == text


def test_a_whole_training_needs_samples():
    assert "epochs" not in arguments({**START, "epochs": 3, "price": 2})
    told = request_of({**START, "samples": 1000.0, "epochs": 3, "price": 2})
    assert told.training is not None
    assert (told.training.samples, told.training.epochs, told.training.price) == (1000, 3.0, 2.0)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"machines": 2, "count": 8, "card": "H100", "host_memory": "512GB", "link": "nvlink"},
        {"sharding": "zero3", "gradient_checkpointing": "off", "evaluates": "on", "micro_batch": 4, "margin": 10},
        {"lora_rank": "auto", "method": "lora", "samples": 500, "epochs": 2},
    ],
)
def test_the_command_asks_for_the_same(values, monkeypatch):
    """The words of the command, parsed by the real command line, make the request that the controls make."""
    given = {**START, **values}
    words = shlex.split(command(given))
    assert words[:2] == ["ftplan", "plan"]
    asked = []

    class StopError(Exception):
        pass

    def seen(request):
        asked.append(request)
        raise StopError

    monkeypatch.setattr(planning, "plan", seen)
    with pytest.raises(StopError):
        build_app("plan")(args=words[1:], standalone_mode=False)
    assert to_jsonable(asked[0]) == to_jsonable(request_of(given))


@pytest.mark.parametrize("model", ["/etc/passwd", "./model", "~/x", "someone/else", "", "../../x.json"])
def test_a_hosted_page_knows_the_catalogue_alone(model):
    with pytest.raises(InputError):
        request_of({**START, "model": model}, hosted=True)


def test_a_hosted_page_does_not_tell_of_its_own_devices():
    with pytest.raises(InputError, match="not yours"):
        request_of({**START, "inventory": "LOCAL"}, hosted=True)


def test_unknown_models_name_the_nearest():
    with pytest.raises(UnknownNameError) as raised:
        request_of({**START, "model": "Qwen/Qwen2.5-7C"}, hosted=True)
    assert "Qwen2.5-7B" in raised.value.hint


def test_the_command_is_no_shell_text_of_its_own():
    words = shlex.split(command({**START, "model": "x; rm -rf $(pwd) `id`", "inventory": "1x'24GB"}))
    assert words[3] == "x; rm -rf $(pwd) `id`"
    assert words[5] == "1x'24GB"


@pytest.mark.parametrize("inventory", ["100000xH100", "513xH100", "+".join(["1xH100", "1xA100-80GB"] * 5)])
def test_strangers_do_not_keep_a_hosted_page_busy(inventory):
    with pytest.raises(InputError, match="up to 512 devices"):
        request_of({**START, "inventory": inventory, "global_batch": 102600}, hosted=True)
    assert request_of({**START, "inventory": inventory, "global_batch": 102600}).inventory.text == inventory


@pytest.mark.parametrize("name", ["global_batch", "seq_len", "count", "machines", "margin"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "many"])
def test_an_empty_box_is_an_error_that_names_it(name, value):
    with pytest.raises(InputError) as raised:
        request_of({**START, name: value})
    assert raised.value.field == name


@pytest.mark.parametrize("values", [{"global_batch": -1}, {"count": 0}, {"packing": "maybe"}, {"micro_batch": -2}])
def test_odd_values_are_errors(values):
    with pytest.raises(InputError):
        request_of({**START, **values})


@pytest.mark.parametrize(
    "values", [{"global_batch": 2**20}, {"seq_len": 10**9}, {"inventory": "32xH100", "objective": "cost"}]
)
def test_what_takes_long_to_plan_is_not_planned_for_strangers(values):
    with pytest.raises(InputError, match="plans for up to"):
        request_of({**START, **values}, hosted=True)


def test_the_command_says_numbers_whole():
    words = shlex.split(command({**START, "samples": 10, "price": 1.2345678}))
    assert words[words.index("--price") + 1] == "1.2345678"
