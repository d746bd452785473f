import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftplan.errors import UnknownNameError
from ftplan.profiles.gpu_cards import card_at, gpu_data
from ftplan.profiles.gpus import gpu_key, list_gpus, load_cpu, load_gpu
from ftplan.profiles.hosts import default_host, list_hosts, load_host
from ftplan.profiles.size_classes import LARGEST_GB, size_class
from ftplan.profiles.stacks import list_stacks, load_stack
from ftplan.units import GIB, MIB

CARDS = [load_gpu(name) for name in list_gpus()]
ROWS = gpu_data()["gpus"]
DTYPES = {"bf16", "fp16", "tf32", "fp32"}


def test_catalogue_is_wide_and_names_are_unique():
    assert len(CARDS) >= 60
    assert len(set(list_gpus())) == len(CARDS)


def test_no_name_is_claimed_twice():
    claims = Counter((gpu_key(name)) for row in ROWS for name in {gpu_key(n) for n in (row["name"], *row["aliases"])})
    assert [name for name, count in claims.items() if count > 1] == []


def test_names_fit_the_inventory_grammar():
    assert [name for name in list_gpus() if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name)] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_every_spelling_gives_the_card(row):
    for name in (row["name"], *row["aliases"]):
        for spelling in (name, name.lower(), name.upper(), f"NVIDIA {name}", name.replace("-", " "), f" {name} "):
            assert load_gpu(spelling).name == row["name"], spelling


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_figures_are_plausible(card):
    row = next(row for row in ROWS if row["name"] == card.name)
    nominal = row["nominal_gb"] * GIB
    assert 0.9 * nominal <= card.memory_bytes <= 1.03 * nominal
    assert 0.9 * card.memory_bytes <= card.usable_bytes <= card.memory_bytes
    assert set(card.flops) == DTYPES
    assert card.flops["bf16"] >= card.flops["fp32"] > 1e12
    assert card.flops["fp16"] >= card.flops["bf16"]
    assert card.flops["fp16"] >= card.flops["tf32"] >= card.flops["fp32"]
    assert 100e9 < card.memory_bytes_per_second <= 8000e9
    assert card.nvlink_bytes_per_second == 0 or card.nvlink_bridge_bytes_per_second == 0
    assert 0 < card.context_bytes < 0.12 * card.memory_bytes
    assert card.host in list_hosts()


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_says_where_its_figures_come_from(card):
    assert "speed:" in card.source
    assert "memory:" in card.source
    assert ("assumed" in card.source.split("memory:")[1]) == (card.memory_provenance == "assumed")
    assert (card.dollars_per_hour is not None) == ("price:" in card.source)


@pytest.mark.parametrize("card", [card for card in CARDS if card.kind == "cuda"], ids=lambda card: card.name)
def test_bf16_and_flash_attention_need_ampere(card):
    ampere = card.compute_capability >= (8, 0)
    assert card.bf16 == card.flash_attention_2 == ampere


def test_geforce_counts_tensor_flops_with_fp32_accumulation():
    for card in CARDS:
        if re.match(r"RTX[345]0[5-9]0", card.name):
            assert card.flops["bf16"] == pytest.approx(2 * card.flops["fp32"], rel=0.01), card.name


def test_the_usable_rule_is_no_more_generous_than_drivers_are():
    rule = gpu_data()["rules"]["usable"]
    for row in ROWS:
        if row["runtime_mib"] and row["kind"] == "cuda" and row["name"] != "QuadroRTX8000":
            kept = rule["reserve_mib"] + rule["reserve_fraction"] * row["driver_mib"]
            assert row["driver_mib"] - row["runtime_mib"] <= kept, row["name"]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("4090", "RTX4090"),
        ("rtx 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("RTX4090-24GB", "RTX4090"),
        ("4060ti-16gb", "RTX4060Ti-16GB"),
        ("A100", "A100-40GB-SXM"),
        ("A100-80GB", "A100-80GB-SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB-SXM"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("H100", "H100-SXM"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100-16GB-SXM"),
        ("RTX A6000", "A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000Ada"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", "RTX3080-Laptop"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_names_people_and_drivers_use(spelling, name):
    assert load_gpu(spelling).name == name


def test_measured_cards_carry_what_was_measured():
    card = load_gpu("H100")
    assert card.context_bytes == 768 * MIB
    assert card.context_provenance == "measured"
    assert load_gpu("RTX3090").context_provenance == "assumed"


@pytest.mark.parametrize("name", ["FOO", "", "RTX4091", "0GB", f"{LARGEST_GB + 1}GB", "RTX6000"])
def test_unknown_names_raise_with_names_that_exist(name):
    with pytest.raises(UnknownNameError) as caught:
        load_gpu(name)
    assert caught.value.hint
    assert set(caught.value.valid) == set(list_gpus())


def test_a_slip_is_answered_with_the_card_meant():
    with pytest.raises(UnknownNameError, match="unknown GPU 'RTX4900'") as caught:
        load_gpu("RTX4900")
    assert "RTX4090" in caught.value.hint


@pytest.mark.parametrize("size", gpu_data()["size_classes"]["members"])
def test_a_size_class_is_never_better_than_its_members(size):
    card = load_gpu(f"{size}GB")
    for name in gpu_data()["size_classes"]["members"][size]:
        member = load_gpu(name)
        assert card.usable_bytes <= member.usable_bytes
        assert card.context_bytes >= member.context_bytes
        assert card.memory_bytes_per_second <= member.memory_bytes_per_second
        assert all(card.flops[dtype] <= member.flops[dtype] for dtype in DTYPES)
        assert card.bf16 <= member.bf16
    assert card.nvlink_bytes_per_second == 0


@given(st.integers(1, LARGEST_GB - 1))
def test_more_gigabytes_never_offer_less(gigabytes):
    smaller, larger = size_class(gigabytes), size_class(gigabytes + 1)
    assert 0 < smaller.usable_bytes <= larger.usable_bytes <= (gigabytes + 1) * GIB
    assert smaller.name == f"{gigabytes}GB"


@pytest.mark.parametrize("spelling", ["24GB", "24 GB", "24gb", "24GiB", "24g"])
def test_sizes_have_one_canonical_name(spelling):
    assert load_gpu(spelling).name == "24GB"


def test_24gb_has_bf16_and_less_memory_than_a_4090():
    card = load_gpu("24GB")
    assert card.bf16
    assert card.usable_bytes < load_gpu("RTX4090").usable_bytes


def test_cpu_process():
    cpu = load_cpu(4 * 10**9)
    assert (cpu.kind, cpu.memory_bytes, cpu.usable_bytes) == ("cpu", 4 * 10**9, 4 * 10**9)
    assert 300 * MIB < cpu.context_bytes < 800 * MIB
    assert set(cpu.flops) == DTYPES


def test_hosts_grow_with_their_cards():
    assert default_host([load_gpu("H100")] * 8).memory_bytes == 2048 * GIB
    assert default_host([load_gpu("RTX4090")]).memory_bytes == 64 * GIB
    mixed = default_host([load_gpu("A100-80GB"), load_gpu("RTX3090")])
    assert mixed.name == "hgx-a100+desktop"
    assert mixed.memory_bytes == (144 + 64) * GIB


def test_stated_host_memory_wins():
    host = default_host([load_gpu("H100")], memory_bytes=7 * GIB)
    assert host.memory_bytes == 7 * GIB
    assert host.source.startswith("RAM as stated")


def test_every_host_says_that_it_is_assumed():
    assert all(load_host(name).source.startswith("assumed") for name in list_hosts())
    with pytest.raises(UnknownNameError):
        load_host("mainframe")


def test_stacks_differ_where_the_loops_do():
    assert list_stacks() == ("trainer", "trl", "llamafactory", "axolotl", "swift", "torchtune", "cookbook")
    assert all(load_stack(name).source for name in list_stacks())
    assert load_stack("TRL").default_loss_path == "chunked"
    assert load_stack("trl").recasts_quantized_adapters
    assert load_stack("llamafactory").upcasts_trainables
    by_accelerate = [name for name in list_stacks() if name not in ("torchtune", "cookbook")]
    assert all(load_stack(name).casts_outputs_to_fp32 for name in by_accelerate)
    assert not any(load_stack(name).casts_outputs_to_fp32 for name in ("torchtune", "cookbook"))
    with pytest.raises(UnknownNameError, match="unknown stack 'litgpt'"):
        load_stack("litgpt")


def test_profiles_are_shared():
    assert load_gpu("RTX4090") is load_gpu("4090") is card_at(list_gpus().index("RTX4090"))
