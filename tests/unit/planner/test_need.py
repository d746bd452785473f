"""Which cards suffice: the fewest, and what is told of those of which no number does."""

import pytest
from plans import cluster, planned, request

from ftplan.errors import InputError, InventoryError
from ftplan.planner.inventory import resolve_inventory
from ftplan.planner.need import CARDS, METHODS, Sufficient, inventories, needs
from ftplan.profiles.gpus import load_gpu
from ftplan.profiles.models import load_model
from ftplan.workflows import inverse


def texts(card, most):
    return [inventory.text for inventory in inventories(card, most)]


def needed(cards, most=8, model="gpt2", **fields):
    asked = request("24GB", model, **{"seq_len": 512, **fields})
    return list(needs(asked, load_model(model), cards, most, resolve_inventory))


@pytest.mark.parametrize(
    ("card", "most", "expected"),
    [
        ("24GB", 8, ["1x24GB", "2x24GB", "4x24GB", "8x24GB"]),
        ("24GB", 32, ["1x24GB", "2x24GB", "4x24GB", "8x24GB"]),
        ("24GB", 3, ["1x24GB", "2x24GB"]),
        ("RTX4090", 1, ["1xRTX4090"]),
        ("80GB", 15, ["1x80GB", "2x80GB", "4x80GB", "8x80GB"]),
        ("H100", 16, ["1xH100", "2xH100", "4xH100", "8xH100", "2x8xH100"]),
        ("40GB", 100, ["1x40GB", "2x40GB", "4x40GB", "8x40GB", "2x8x40GB", "4x8x40GB"]),
        ("24GB", 0, []),
    ],
)
def test_inventories_rise_and_only_servers_have_nodes(card, most, expected):
    assert texts(card, most) == expected


@pytest.mark.parametrize("card", CARDS)
def test_every_class_is_one_that_cards_have(card):
    sizes = [inventory.world_size for inventory in inventories(card, 64)]
    assert sizes == sorted(set(sizes))
    assert (max(sizes) > 8) == (load_gpu(card).memory_bytes > 38 * 2**30)


@pytest.mark.parametrize(
    ("model", "method", "card", "fields"),
    [
        ("Qwen2.5-7B", "full", "24GB", {}),
        ("Qwen2.5-7B", "lora", "12GB", {"pins": {"offload": "none", "kernels": "liger"}}),
        ("Qwen2.5-0.5B", "full", "4GB", {"pins": {"offload": "none"}}),
    ],
)
def test_one_step_fewer_does_not_fit(model, method, card, fields):
    (row,) = needed([card], model=model, method=method, **fields)
    assert row.devices > 1
    assert row.inventory == f"{row.devices}x{card}"
    for count in (1, 2, 4, 8):
        plan = planned(f"{count}x{card}", model, method=method, seq_len=512, **fields)
        assert (plan.config is not None) == (count >= row.devices)
    assert row.candidate.config.method == method
    assert row.candidate.estimate.fits
    assert len(row.candidate.estimate.ranks) == row.devices
    assert row.nearest is None


def test_where_no_number_suffices_the_nearest_miss_on_the_most_is_told():
    (row,) = needed(["4GB"], most=2, model="Qwen2.5-7B", method="full", pins={"offload": "none"})
    assert (row.inventory, row.devices, row.candidate) == (None, 0, None)
    assert row.nearest.rejection.lacking_bytes > 0
    most = planned("2x4GB", "Qwen2.5-7B", method="full", seq_len=512, pins={"offload": "none"})
    assert row.nearest.rejection == most.rejections[0].rejection


def test_every_method_is_told_for_every_card():
    rows = needed(["8GB", "T4"], most=1)
    assert [(row.method, row.card) for row in rows] == [(method, card) for method in METHODS for card in ("8GB", "T4")]
    assert [row.method for row in needed(["8GB"], most=1, method="qlora")] == ["qlora"]


def test_cards_with_names_have_prices_and_size_classes_none():
    named, size = needed(["RTX4090", "24GB"], method="lora")
    assert named.dollars_per_hour == load_gpu("RTX4090").dollars_per_hour > 0
    rate = named.candidate.estimate.tokens_per_second
    assert named.dollars_per_million_tokens == pytest.approx(named.dollars_per_hour / 3600 / rate * 1e6)
    assert (size.dollars_per_hour, size.dollars_per_million_tokens) == (None, None)


def test_the_price_is_that_of_all_cards_together():
    (row,) = needed(["RTX4090"], model="Qwen2.5-7B", method="full")
    assert row.devices > 1
    assert row.dollars_per_hour == pytest.approx(row.devices * load_gpu("RTX4090").dollars_per_hour)


def test_what_does_not_suffice_has_no_price():
    assert Sufficient("full", "T4", None, 0, None, None, None).dollars_per_million_tokens is None


def test_a_batch_that_only_some_numbers_split_is_tried_on_those():
    (row,) = needed(["24GB"], method="lora", global_batch=7)
    assert row.inventory == "1x24GB"
    (row,) = needed(["T4"], most=2, model="Qwen2.5-7B", method="full", global_batch=7)
    assert row.nearest.config.sharding in ("none", "zero2", "zero3")


def test_a_batch_that_no_number_splits_is_an_error():
    with pytest.raises(InputError, match="7 splits over no number of cards up to 0") as caught:
        needed(["24GB"], most=0, global_batch=7)
    assert (caught.value.exit_code, caught.value.field) == (2, "global_batch")


def test_a_pinned_split_that_only_some_numbers_make_is_tried_on_those():
    (row,) = needed(["24GB"], method="lora", seq_len=64, pins={"micro_batch": 8, "accumulation": 1})
    assert row.inventory == "4x24GB"
    config = row.candidate.config
    assert (config.micro_batch, config.accumulation) == (8, 1)


def test_a_pinned_micro_batch_that_fits_no_card_and_splits_over_one_only():
    (row,) = needed(["4GB"], model="Qwen2.5-7B", method="lora", pins={"micro_batch": 32})
    assert row.inventory is None
    assert row.nearest.config.micro_batch == 32


def test_a_pinned_micro_batch_that_divides_nowhere_is_an_error_with_what_would():
    with pytest.raises(InputError, match="micro_batch 5 does not make up the 32 samples") as caught:
        needed(["24GB"], pins={"micro_batch": 5})
    assert caught.value.hint == "use one of 1, 2, 4, 8, 16, 32"


class TestNeededCards:
    def found(self, cards, most=1, model="gpt2", **fields):
        return list(inverse.needed_cards(request("24GB", model, seq_len=512, **fields), cards, most))

    def test_without_names_the_size_classes_are_tried(self):
        assert [row.card for row in self.found([], method="lora")] == list(CARDS)

    @pytest.mark.parametrize("card", ["2x24GB", "1x24GB+1x24GB", "2x8xH100"])
    def test_several_are_not_one_card(self, card):
        with pytest.raises(InputError, match="is not one card") as caught:
            self.found([card])
        assert caught.value.field == "cards"

    @pytest.mark.parametrize("card", ["RTX4900", "local", ""])
    def test_what_is_no_card_is_refused(self, card, monkeypatch):
        with pytest.raises(InputError) as caught:
            self.found(["24GB", card])
        assert isinstance(caught.value, InventoryError) or caught.value.field == "cards"

    def test_a_pin_that_is_no_value_is_an_input_error(self):
        with pytest.raises(InputError, match="sharding"):
            self.found(["24GB"], pins={"sharding": "zero4"})

    def test_a_row_as_json_has_its_cost_by_tokens(self):
        (row,) = self.found(["RTX4090"], method="lora")
        document = inverse.sufficient_document(row)
        assert document["dollars_per_million_tokens"] == row.dollars_per_million_tokens
        assert (document["inventory"], document["devices"], document["card"]) == ("1xRTX4090", 1, "RTX4090")
        assert document["candidate"]["config"]["method"] == "lora"


def test_clusters_are_those_that_the_caller_knows():
    asked = []

    def known(inventory):
        asked.append(inventory.text)
        return cluster(inventory.text)

    model = load_model("gpt2")
    list(needs(request("24GB", "gpt2", method="lora", seq_len=512), model, ["8GB"], 8, known))
    assert asked == ["1x8GB"]
