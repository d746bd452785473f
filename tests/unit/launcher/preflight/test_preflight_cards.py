import pytest
from observed import OTHER, card, cards, facts, needs, packages, torch

from ftplan.launcher.preflight.cards import check_card_memory, check_cards, check_driver, check_modes
from ftplan.launcher.preflight.findings import Status
from ftplan.units import GIB

OK, WARNING, ERROR = Status.OK, Status.WARNING, Status.ERROR
ON_CPU = needs(card_bytes=())
NO_DRIVER = cards(driver="", installed=0)


def statuses(check, of, wanted=None):
    return [finding.status for finding in check(of, wanted)]


@pytest.mark.parametrize(
    ("driver", "cuda", "devices", "expected"),
    [
        ("580.65.06", "13.0", True, OK),
        ("550.54.14", "12.8", True, OK),  # any minor release of 12 runs from 525 on
        ("550.54.14", "13.0", False, ERROR),
        ("550.54.14", "13.0", True, WARNING),  # torch sees cards: the compatibility package is there
        ("450.80.02", "10.2", True, OK),  # no row for so old a CUDA
    ],
)
def test_the_driver_is_new_enough_for_the_cuda_of_torch(driver, cuda, devices, expected):
    told = facts(
        cards=cards(card(), driver=driver),
        installed=packages(torch_cuda=cuda),
        torch=torch() if devices else torch(devices=(), error="The NVIDIA driver on your system is too old"),
    )
    assert statuses(check_driver, told, needs()) == [expected]


def test_no_driver_matters_to_a_run_on_cards():
    told = facts(cards=NO_DRIVER)
    assert statuses(check_driver, told, needs()) == [ERROR]
    assert statuses(check_driver, told) == [WARNING]
    assert statuses(check_driver, told, ON_CPU) == []
    assert statuses(check_cards, told, needs()) == []


def test_as_many_cards_are_visible_as_the_run_takes():
    assert statuses(check_cards, facts(), needs()) == [OK]
    assert statuses(check_cards, facts(), ON_CPU) == []
    (found,) = check_cards(facts(cards=cards(card(), installed=2), visible_devices="1"), needs())
    assert found.status is ERROR
    assert found.message == "1 of 2 cards are visible: CUDA_VISIBLE_DEVICES=1, and the run takes 2"
    assert found.fix == "unset CUDA_VISIBLE_DEVICES"
    (found,) = check_cards(facts(cards=cards(card())), needs())
    assert (found.status, found.fix) == (ERROR, "run it where they are, or plan with --gpus local")


def test_torch_sees_what_the_driver_sees():
    told = facts(torch=torch(devices=(), error="CUDA unknown error"))
    (found,) = check_cards(told, needs())
    assert found.status is ERROR
    assert found.message == "the driver shows 2 cards, torch 0: CUDA unknown error"
    assert statuses(check_cards, facts(torch=None), needs()) == [OK]
    # A driver that is too old is told by its own check.
    assert statuses(check_cards, facts(cards=cards(card(), card(), driver="550.54"), torch=told.torch), needs()) == [OK]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"compute_mode": "exclusive"}, []),
        ({"compute_mode": "exclusive", "processes": (OTHER,)}, ["card 0 lets one process in, and one is there"]),
        ({"compute_mode": "prohibited"}, ["card 0 is closed to computation"]),
        ({"splits": True}, ["card 0 is split by MIG and cannot be used whole"]),
    ],
)
def test_modes_that_keep_a_process_out(changes, expected):
    found = list(check_modes(facts(cards=cards(card(**changes))), needs()))
    assert [finding.message for finding in found] == expected
    assert all(finding.status is ERROR and finding.fix for finding in found)


def test_a_card_that_the_run_does_not_take_may_be_closed():
    told = facts(cards=cards(card(), card(compute_mode="prohibited")))
    assert statuses(check_modes, told, needs(card_bytes=(GIB,))) == []
    assert statuses(check_modes, told, needs()) == [ERROR]


def test_what_another_process_holds_is_not_offered():
    told = facts(cards=cards(card(), card(3.5, processes=(OTHER,))))
    free, taken = check_card_memory(told, needs())
    assert free.status is OK
    assert taken.status is ERROR
    assert taken.message == "card 1 has too little free now (python 4242 with 20.0 GiB)"
    assert taken.fix.startswith("end python 4242 with 20.0 GiB, or plan for what is free")
    assert taken.figures == {
        "card": 1, "needed_bytes": 18 * GIB, "free_bytes": round(3.5 * GIB), "total_bytes": 24 * GIB,
    }  # fmt: skip


def test_memory_that_nobody_in_sight_holds_is_told_too():
    (found,) = check_card_memory(facts(cards=cards(card(3))), needs(card_bytes=(18 * GIB,)))
    assert found.status is ERROR
    assert "nvidia-smi shows it on the host" in found.fix


def test_a_card_that_is_too_small_is_no_matter_of_others():
    (found,) = check_card_memory(facts(cards=cards(card())), needs(card_bytes=(30 * GIB,)))
    assert (found.status, found.message) == (ERROR, "card 0 is too small")


def test_exactly_enough_is_enough():
    told = facts(cards=cards(card(18)))
    assert statuses(check_card_memory, told, needs(card_bytes=(18 * GIB,))) == [OK]
    assert statuses(check_card_memory, told, needs(card_bytes=(18 * GIB + 1,))) == [ERROR]


def test_without_a_run_others_on_a_card_are_a_warning():
    told = facts(cards=cards(card(), card(3.5, processes=(OTHER,) * 5)))
    assert statuses(check_card_memory, told) == [OK, WARNING]
    assert "and 2 more" in list(check_card_memory(told, None))[1].message
