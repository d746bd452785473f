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
