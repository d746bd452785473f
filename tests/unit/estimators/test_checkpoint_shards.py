import pytest

from ftplan.estimators.checkpoint_shards import Shards, dies_in, shards
from ftplan.estimators.params import total_params
from ftplan.profiles.models import load_model
from ftplan.units import GB


def test_what_is_published_is_known():
    found = shards(load_model("Qwen2-VL-72B"))
    assert (found.count, found.known) == (38, True)
    assert found.source


def test_others_follow_from_the_usual_size_of_a_file():
    model = load_model("Qwen2.5-7B")
    found = shards(model)
    assert not found.known
    assert (found.count - 1) * 5 * GB < 2 * total_params(model) <= found.count * 5 * GB


def test_a_small_model_is_one_file():
    assert shards(load_model("gpt2")).count == 1


def test_larger_elements_make_more_files():
    model = load_model("Qwen2.5-7B")
    assert shards(model, 4).count > shards(model).count


@pytest.mark.parametrize(
    ("loaded", "room", "at"),
    [
        (100, 100, None),
        (100, 200, None),
        (100, 99, 10),
        (100, 55, 6),
        (100, 50, 6),
        (100, 9, 1),
        (100, 0, 1),
        (100, -5, 1),
    ],
)
def test_the_file_in_which_the_card_is_full(loaded, room, at):
    assert dies_in(loaded, room, Shards(10, True, "")) == at
