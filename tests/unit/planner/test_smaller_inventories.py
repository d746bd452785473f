import pytest

from ftplan.planner.inventory import parse_inventory, part_of, resolve_inventory, smaller_inventories
from ftplan.units import GB


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1xRTX4090", []),
        ("2xRTX4090", ["1xRTX4090"]),
        ("8xRTX4090", ["4xRTX4090", "2xRTX4090", "1xRTX4090"]),
        ("6xRTX4090", ["3xRTX4090", "1xRTX4090"]),
        ("2x8xH100", ["8xH100-SXM", "4xH100-SXM", "2xH100-SXM", "1xH100-SXM"]),
        ("5x2x24GB", ["2x2x24GB", "2x24GB", "1x24GB"]),
        ("4xcpu:4GB", ["2xcpu:4GB", "1xcpu:4GB"]),
        ("2xRTX4090:20GB", ["1xRTX4090:20GB"]),
        ("A100-80GB+RTX3090", ["1xA100-80GB-SXM", "1xRTX3090"]),
        ("4xA100-80GB+1xRTX3090", ["4xA100-80GB-SXM", "2xA100-80GB-SXM", "1xA100-80GB-SXM", "1xRTX3090"]),
    ],
)
def test_parts_from_the_largest_down(text, parts):
    assert [part.text for part in smaller_inventories(parse_inventory(text))] == parts


@pytest.mark.parametrize("text", ["8xRTX4090", "4x8xH100", "3xA100-80GB+2xRTX3090:20GB", "8xcpu:4GB"])
def test_every_part_is_smaller_and_its_text_parses_to_the_same_devices(text):
    whole = parse_inventory(text, host_memory_bytes=512 * GB)
    for part in smaller_inventories(whole):
        assert 0 < part.world_size < whole.world_size
        assert part.host_memory_bytes == whole.host_memory_bytes
        assert parse_inventory(part.text, host_memory_bytes=512 * GB) == part
        assert all(gpu in resolve_inventory(whole).gpus for gpu in resolve_inventory(part).gpus)


def test_a_part_has_the_groups_and_nodes_it_was_given():
    whole = parse_inventory("A100-80GB+2xRTX3090")
    part = part_of(whole, whole.groups[1:])
    assert (part.text, part.world_size, part.nodes) == ("2xRTX3090", 2, 1)
    nodes = parse_inventory("4x8xH100")
    assert part_of(nodes, nodes.groups, 2).text == "2x8xH100-SXM"


def test_parts_of_this_machine_are_named_and_no_longer_local():
    local = parse_inventory("2xRTX4090:20GB").model_copy(update={"text": "local"})
    (part,) = smaller_inventories(local)
    assert part.text == "1xRTX4090:20GB"
    assert resolve_inventory(part).world_size == 1
