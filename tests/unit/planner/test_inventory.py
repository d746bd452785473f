import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.errors import FtplanError, InventoryError
from ftplan.planner.inventory import MAX_DEVICES, format_inventory, parse_inventory, resolve_inventory
from ftplan.profiles import detect
from ftplan.profiles.device_schema import Node
from ftplan.profiles.gpus import list_gpus, load_cpu, load_gpu
from ftplan.profiles.hosts import default_host
from ftplan.profiles.size_classes import LARGEST_GB
from ftplan.spec import DeviceGroup
from ftplan.units import GIB, MIB


def shape(text):
    parsed = parse_inventory(text)
    return parsed.nodes, [(group.count, group.device, group.memory_bytes) for group in parsed.groups]


@pytest.mark.parametrize(
    ("text", "nodes", "groups"),
    [
        ("2x24GB", 1, [(2, "24GB", None)]),
        ("8xRTX4090", 1, [(8, "RTX4090", None)]),
        ("RTX4090", 1, [(1, "RTX4090", None)]),
        ("4090", 1, [(1, "RTX4090", None)]),
        ("2x4090", 1, [(2, "RTX4090", None)]),
        ("1xA100-80GB+1xRTX3090", 1, [(1, "A100-80GB-SXM", None), (1, "RTX3090", None)]),
        ("A100-80GB+RTX3090", 1, [(1, "A100-80GB-SXM", None), (1, "RTX3090", None)]),
        ("2x8xH100", 2, [(8, "H100-SXM", None)]),
        ("2xcpu:4GB", 1, [(2, "cpu", 4 * 10**9)]),
        ("2xcpu", 1, [(2, "cpu", None)]),
        ("2x2xcpu:4GB", 2, [(2, "cpu", 4 * 10**9)]),
        ("cpu:4GiB", 1, [(1, "cpu", 4 * GIB)]),
        ("RTX4090:20GB", 1, [(1, "RTX4090", 20 * 10**9)]),
        (" 2 x RTX 4090 + 1 X NVIDIA A100-SXM4-80GB ", 1, [(2, "RTX4090", None), (1, "A100-80GB-SXM", None)]),
        ("2×24GB", 1, [(2, "24GB", None)]),
        ("1xRX7900XTX", 1, [(1, "RX7900XTX", None)]),
        ("RX7900XTX", 1, [(1, "RX7900XTX", None)]),
        ("CPU:4GB", 1, [(1, "cpu", 4 * 10**9)]),
        (f"{MAX_DEVICES}x24GB", 1, [(MAX_DEVICES, "24GB", None)]),
    ],
)
def test_grammar(text, nodes, groups):
    assert shape(text) == (nodes, groups)
    assert parse_inventory(text).text == text


@pytest.mark.parametrize(
    ("text", "pointed", "message"),
    [
        ("", "", "empty"),
        ("   ", "", "empty"),
        ("0x24GB", "0", "at least 1"),
        ("-1x24GB", "-1", "at least 1"),
        ("x24GB", "", "count is missing"),
        ("2x", "", "device is missing"),
        ("2x8x", "", "device is missing"),
        ("2xFOO", "FOO", "unknown GPU 'FOO'"),
        ("2xRTX4090+3xFOO", "FOO", "unknown GPU 'FOO'"),
        ("2xcpu:", "", "size is missing"),
        ("2xcpu:lots", "lots", "size is missing"),
        ("2xcpu:4", "4", "too little memory"),
        ("2xcpu:" + "9" * 400 + "GB", "9" * 400 + "GB", "size is missing"),
        ("2x0GB", "0GB", "1 to 1024 GB"),
        ("2x5000GB", "5000GB", "1 to 1024 GB"),
        ("RTX4090:30GB", "30GB", "fewer than 30GB"),
        ("2x8xH100+1xA100", "2x8xH100", "nodes x devices"),
        ("1xA100+2x8xH100", "2x8xH100", "nodes x devices"),
        ("1x2x3xT4", "1x2x3xT4", "two counts"),
        ("1xRTX4090+1xcpu", "1xcpu", "cpu cannot train together with RTX4090"),
        ("1xMI300X+1xH100", "1xH100", "cannot train together"),
        ("RTX4090+", "", "group of devices is missing"),
        ("+RTX4090", "", "group of devices is missing"),
        ("100001x24GB", "100001", "more than 100,000 devices"),
        ("9" * 5000 + "x24GB", "9" * 5000, "more than 100,000 devices"),
        ("1000x1000xH100", "1000x1000xH100", "more than 100,000 devices"),
        ("60000xT4+60000xL4", "60000xT4+60000xL4", "more than 100,000 devices"),
    ],
)
def test_errors_point_at_the_part_at_fault(text, pointed, message):
    with pytest.raises(InventoryError, match=message) as caught:
        parse_inventory(text)
    error = caught.value
    assert error.text[error.start : error.end] == pointed
    assert error.hint
    assert error.exit_code == 2
    assert error.field == "gpus"


def test_the_pointer_lies_under_the_part_at_fault():
    with pytest.raises(InventoryError) as caught:
        parse_inventory("1xT4+2xRTX4900")
    assert caught.value.message.splitlines() == [
        "unknown GPU 'RTX4900'",
        "  1xT4+2xRTX4900",
        "         ^^^^^^^",
    ]
    assert "did you mean RTX4090" in caught.value.hint


counts = st.integers(1, 64)
sizes = st.integers(1, 8000).map(lambda mib: 64 * MIB + mib * MIB) | st.integers(10**8, 10**12)
cards = st.sampled_from([name for name in list_gpus() if load_gpu(name).kind == "cuda"])
classes = st.integers(1, LARGEST_GB).map(lambda size: f"{size}GB")
gpu_groups = st.builds(lambda count, device: f"{count}x{device}", counts, cards | classes)
part_groups = st.builds(lambda count, size: f"{count}x24GB:{size}B", counts, st.integers(64 * MIB, 20 * 10**9))
cpu_groups = st.builds(lambda count, size: f"{count}xcpu" + (f":{size}B" if size else ""), counts, st.none() | sizes)
node_groups = st.builds(lambda nodes, group: f"{nodes}x{group}", st.integers(1, 100), gpu_groups | cpu_groups)
texts = (
    st.lists(gpu_groups | part_groups, min_size=1, max_size=4).map("+".join)
    | st.lists(cpu_groups, min_size=1, max_size=3).map("+".join)
    | node_groups
)


@given(texts, st.none() | st.integers(2**30, 2**45))
def test_format_parses_to_the_same_inventory(text, host):
    parsed = parse_inventory(text, host_memory_bytes=host)
    canonical = format_inventory(parsed)
    again = parse_inventory(canonical, host_memory_bytes=host)
    assert again.model_copy(update={"text": text}) == parsed
    assert format_inventory(again) == canonical


@given(texts)
def test_a_cluster_has_a_profile_for_each_rank(text):
    parsed = parse_inventory(text, host_memory_bytes=2**50)
    resolved = resolve_inventory(parsed)
    assert resolved.world_size == parsed.world_size
    assert len(resolved.nodes) == parsed.nodes
    ranks = [group.device for group in parsed.groups for _ in range(group.count)] * parsed.nodes
    assert [gpu.name for gpu in resolved.gpus] == ranks


@given(st.text(alphabet="0123456789xX×+:- .GBicpuloaRTH\t", max_size=24) | st.text(max_size=12))
def test_any_text_parses_or_is_explained(text):
    outcome = parse_or_error(text)
    if isinstance(outcome, InventoryError):
        assert 0 <= outcome.start <= outcome.end <= len(text)
        assert outcome.hint
    else:
        assert 1 <= outcome.world_size <= MAX_DEVICES


def parse_or_error(text):
    try:
        return parse_inventory(text)
    except InventoryError as error:
        return error


def test_ranks_follow_the_groups():
    resolved = resolve_inventory(parse_inventory("1xA100-80GB+2xRTX3090"))
    assert [gpu.name for gpu in resolved.gpus] == ["A100-80GB-SXM", "RTX3090", "RTX3090"]
    assert resolved.text == "1xA100-80GB+2xRTX3090"


def test_a_stated_size_bounds_what_the_card_offers():
    gpu = resolve_inventory(parse_inventory("RTX4090:20GB")).gpus[0]
    assert gpu.usable_bytes == 20 * 10**9
    assert gpu.memory_bytes == load_gpu("RTX4090").memory_bytes


def test_host_memory_is_the_default_hosts_or_as_stated():
    assert resolve_inventory(parse_inventory("2x8xH100")).nodes[1].host.memory_bytes == 2048 * GIB
    stated = resolve_inventory(parse_inventory("8xH100", host_memory_bytes=5 * GIB))
    assert stated.nodes[0].host.memory_bytes == 5 * GIB


def test_cpu_processes_share_what_the_host_has_left():
    resolved = resolve_inventory(parse_inventory("2xcpu+1xcpu:4GiB", host_memory_bytes=10 * GIB))
    assert [gpu.usable_bytes for gpu in resolved.gpus] == [3 * GIB, 3 * GIB, 4 * GIB]


def test_cpu_processes_with_nothing_left_are_an_error():
    with pytest.raises(FtplanError, match="no host memory is left"):
        resolve_inventory(parse_inventory("1xcpu+1xcpu:10GiB", host_memory_bytes=10 * GIB))


def test_stated_cpu_sizes_make_the_default_host_large_enough():
    assert resolve_inventory(parse_inventory("4xcpu:64GiB")).nodes[0].host.memory_bytes == 256 * GIB


@pytest.fixture
def machine(monkeypatch):
    def be(*gpus):
        node = Node(gpus=gpus, host=default_host(gpus, memory_bytes=48 * GIB))
        monkeypatch.setattr(detect, "detect_node", lambda: node)
        return node

    return be


def test_local_is_this_machine(machine):
    node = machine(load_gpu("RTX4090"), load_gpu("RTX4090"))
    parsed = parse_inventory(" LOCAL ")
    usable = load_gpu("RTX4090").usable_bytes
    assert parsed.text == "local"
    assert parsed.groups == (DeviceGroup(device="RTX4090", count=2, memory_bytes=usable),)
    assert parsed.host_memory_bytes == 48 * GIB
    assert resolve_inventory(parsed).nodes == (Node(node.gpus, node.host),)


def test_local_with_stated_host_memory(machine):
    machine(load_gpu("RTX4090"))
    parsed = parse_inventory("local", host_memory_bytes=GIB)
    assert resolve_inventory(parsed).nodes[0].host.memory_bytes == GIB


def test_local_without_cards_is_a_cpu_process(machine):
    machine(load_cpu(8 * GIB))
    assert format_inventory(parse_inventory("local")) == "1xcpu:8GiB"
