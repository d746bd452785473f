import pytest

from ftplan.launcher.formats.partial import Shape
from ftplan.planner.inventory import parse_inventory
from ftplan.workflows.placing import placed


@pytest.mark.parametrize(
    ("gpus", "shape", "ranks", "problems"),
    [
        ("4xRTX4090", Shape(), 4, []),
        ("4xRTX4090", Shape(1, 4), 4, []),
        ("4xRTX4090", Shape(1, 2), 2, ["2 of 4 GPUs stay idle"]),
        ("4xRTX4090", Shape(per_node=1), 1, ["3 of 4 GPUs stay idle"]),
        ("4xRTX4090", Shape(total=2), 2, ["2 of 4 GPUs stay idle"]),
        ("2xRTX4090", Shape(1, 8), 2, ["the launch starts processes for 8 GPUs, and there are 2xRTX4090"]),
        ("2x8xH100", Shape(), 16, []),
        ("2x8xH100", Shape(2, 8), 16, []),
        ("2x8xH100", Shape(nodes=2), 16, []),
        ("2x8xH100", Shape(1, 8), 8, ["8 of 16 GPUs stay idle"]),
        ("2x8xH100", Shape(per_node=8), 8, ["8 of 16 GPUs stay idle"]),
        ("2x8xH100", Shape(4, 8), 16, ["the launch starts processes for 4 machines of 8 GPUs, and there are 2x8xH100"]),
        ("8xH100", Shape(2, 8, 16), 8, ["the launch starts processes for 2 machines of 8 GPUs, and there are 8xH100"]),
        ("2x8xH100", Shape(2, 16), 16, ["the launch starts processes for 2 machines of 16 GPUs"]),
        ("1xA100-80GB+1xRTX3090", Shape(1, 1), 1, ["1 of 2 GPUs stay idle"]),
    ],
)
def test_processes_go_on_the_devices_there_are(gpus, shape, ranks, problems):
    there = placed(shape, parse_inventory(gpus))
    assert there.ranks == ranks
    assert len(there.problems) == len(problems)
    for problem, start in zip(there.problems, problems, strict=True):
        assert problem.message.startswith(start)
        assert problem.kind == ("devices" if "there are" in start or "machines" in start else "inefficiency")


def test_of_unequal_cards_the_first_are_taken():
    there = placed(Shape(1, 1), parse_inventory("1xA100-80GB+1xRTX3090"))
    assert [group.count for group in there.inventory.groups] == [1]
    assert "A100" in there.inventory.text


MIXED = "1xA100-80GB+1xRTX3090"


@pytest.mark.parametrize(
    ("gpus", "shape", "text", "errors"),
    [
        (MIXED, Shape(1, 1, visible=("1",)), "1xRTX3090", 0),
        (MIXED, Shape(1, 1, visible=("1", "0")), "1xRTX3090", 0),
        (MIXED, Shape(visible=("1", "0")), MIXED, 0),
        (MIXED, Shape(hidden=("0",)), "1xRTX3090", 0),
        ("8xRTX4090", Shape(1, 4, visible=("0", "1")), "2xRTX4090", 1),
        ("8xRTX4090", Shape(1, 8, hidden=("3",)), "7xRTX4090", 1),
        ("8xRTX4090", Shape(1, 1, visible=("8",)), "1xRTX4090", 1),
        ("8xRTX4090", Shape(1, 2, visible=("0", "9")), "1xRTX4090", 1),
        ("8xRTX4090", Shape(1, 1, visible=("-1",)), "1xRTX4090", 1),
        ("8xRTX4090", Shape(1, 1, visible=()), "1xRTX4090", 1),
        ("8xRTX4090", Shape(visible=("0", "0")), "1xRTX4090", 1),
        ("2xRTX4090", Shape(visible=("GPU-8932f937", "GPU-1")), "2xRTX4090", 0),
        ("1xRTX4090", Shape(1, 1, visible=("9" * 5000,)), "1xRTX4090", 1),
        ("2xcpu", Shape(visible=()), "2xcpu", 0),
    ],
)
def test_the_devices_that_are_seen(gpus, shape, text, errors):
    there = placed(shape, parse_inventory(gpus))
    assert there.inventory.groups == parse_inventory(text).groups
    assert sum(problem.kind == "devices" for problem in there.problems) == errors


def test_which_card_a_name_is_cannot_be_told_where_they_differ():
    there = placed(Shape(1, 1, visible=("GPU-8932f937",)), parse_inventory(MIXED))
    (problem,) = [each for each in there.problems if each.kind == "unresolved"]
    assert problem.may_need_more
