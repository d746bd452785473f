# ruff: noqa: N802 (the names are NVML's)
import sys
from dataclasses import dataclass, replace
from types import ModuleType

import pytest

from ftplan.errors import InputError
from ftplan.profiles import detect
from ftplan.profiles.gpus import load_gpu
from ftplan.units import GIB, MIB


@dataclass
class Memory:
    total: int
    free: int


@dataclass
class Card:
    name: str | bytes
    total_mib: int
    free_mib: int
    capability: tuple[int, int] = (8, 9)
    uuid: str = "GPU-0"


class FakeNvml(ModuleType):
    """What detect uses of pynvml, over a list of cards."""

    class NVMLError(Exception):
        pass

    def __init__(self, cards, *, driver=True, memory=True):
        super().__init__("pynvml")
        self.cards, self.driver, self.memory, self.open = cards, driver, memory, 0

    def nvmlInit(self):
        if not self.driver:
            raise self.NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        for card in self.cards:
            if card.uuid.startswith(uuid):
                return card
        raise self.NVMLError("not found")

    def nvmlDeviceGetName(self, card):
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card):
        if not self.memory:
            raise self.NVMLError("not supported")
        return Memory(card.total_mib * MIB, card.free_mib * MIB + 5)

    def nvmlSystemGetDriverVersion(self):
        return b"580.65"

    def nvmlDeviceGetUUID(self, card):
        return card.uuid

    def nvmlDeviceGetCudaComputeCapability(self, card):
        return card.capability


@pytest.fixture
def nvml(monkeypatch):
    def install(*cards, **options):
        fake = FakeNvml(list(cards), **options)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


RTX4090 = Card("NVIDIA GeForce RTX 4090", 24564, 24000)


def test_card_has_catalogue_speed_and_todays_memory(nvml):
    fake = nvml(RTX4090)
    (card,) = detect.detect_gpus()
    assert card.name == "RTX4090"
    assert card.memory_bytes == 24564 * MIB
    assert card.usable_bytes == 24000 * MIB
    assert card.flops == load_gpu("RTX4090").flops
    assert card.memory_provenance == "measured"
    assert fake.open == 0


def test_memory_that_another_process_holds_is_not_offered(nvml):
    nvml(Card("NVIDIA GeForce RTX 4090", 24564, 4000))
    assert detect.detect_gpus()[0].usable_bytes == 4000 * MIB


def test_size_tells_cards_of_one_name_apart(nvml):
    nvml(Card("NVIDIA GeForce RTX 3080", 12288, 12000), Card(b"NVIDIA GeForce RTX 3080", 10240, 10000))
    assert [card.name for card in detect.detect_gpus()] == ["RTX3080-12GB", "RTX3080"]


def test_unknown_card_takes_its_size_class_and_the_drivers_generation(nvml):
    nvml(Card("Quadro P6000", 24576, 24000, capability=(6, 1)))
    (card,) = detect.detect_gpus()
    assert card.name == "Quadro P6000"
    assert not card.bf16
    assert card.flops == load_gpu("24GB").flops
    assert "not in the catalogue" in card.source


def test_unknown_capability_is_taken_for_old(nvml, monkeypatch):
    fake = nvml(Card("Prototype", 24576, 24000))

    def refuse(card):
        raise fake.NVMLError("not supported")

    monkeypatch.setattr(fake, "nvmlDeviceGetCudaComputeCapability", refuse)
    assert not detect.detect_gpus()[0].bf16


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["T4"]),
        ("1,0", ["T4", "RTX4090"]),
        ("GPU-b", ["T4"]),
        ("0,7,1", ["RTX4090"]),
        ("0,GPU-x", ["RTX4090"]),
        ("", []),
        ("-1", []),
    ],
)
def test_visible_devices_are_honoured(nvml, monkeypatch, visible, names):
    nvml(RTX4090, Card("Tesla T4", 15360, 14900, capability=(7, 5), uuid="GPU-b1"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [card.name for card in detect.detect_gpus()] == names


def test_no_driver_gives_one_cpu_process_with_the_hosts_memory(nvml):
    nvml(driver=False)
    node = detect.detect_node()
    assert [gpu.kind for gpu in node.gpus] == ["cpu"]
    assert node.gpus[0].usable_bytes == node.host.memory_bytes


def test_no_nvml_package_is_no_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert detect.detect_gpus() == ()


def test_a_card_without_memory_figures_is_an_error_not_a_guess(nvml):
    fake = nvml(RTX4090, memory=False)
    with pytest.raises(InputError, match="does not tell the memory"):
        detect.detect_gpus()
    assert fake.open == 0


def test_host_has_this_machines_memory_and_cores():
    host = detect.detect_host()
    assert host.cores >= 1
    assert 0 < host.memory_bytes < 2**50
    assert host.memory_bytes % MIB == 0


def _root(tmp_path, cgroup, **limits):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for place, limit in limits.items():
        file = tmp_path / "sys/fs/cgroup" / place.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit)
    return tmp_path


@pytest.mark.parametrize(
    ("cgroup", "limits"),
    [
        ("0::/\n", {"memory_DOT_max": f"{GIB}\n"}),
        ("0::/job/step\n", {"job__memory_DOT_max": f"{GIB}\n", "job__step__memory_DOT_max": "max\n"}),
        ("5:cpu,memory:/job\n", {"memory__job__memory_DOT_limit_in_bytes": f"{GIB}\n"}),
        ("5:cpu:/\n", {"memory__memory_DOT_limit_in_bytes": f"{GIB}\n"}),
    ],
)
def test_cgroup_limits_bound_the_hosts_memory(tmp_path, cgroup, limits):
    assert detect.detect_host(root=_root(tmp_path, cgroup, **limits)).memory_bytes == GIB


def test_no_limit_leaves_the_physical_memory(tmp_path):
    unlimited = detect.detect_host(root=tmp_path).memory_bytes
    root = _root(tmp_path, "0::/\n", memory_DOT_max="max\n")
    assert detect.detect_host(root=root).memory_bytes == unlimited


def test_cards_can_be_shown_alone(nvml, monkeypatch):
    fake = nvml(replace(RTX4090, uuid="GPU-a"), replace(RTX4090, uuid="GPU-b"))
    assert detect.visible_names() == ("GPU-a", "GPU-b")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert detect.visible_names() == ("GPU-b",)
    assert fake.open == 0


def test_the_drivers_version(nvml):
    nvml(RTX4090)
    assert detect.driver_version() == "580.65"
    nvml(driver=False)
    assert detect.driver_version() == ""
    assert detect.visible_names() == ()
