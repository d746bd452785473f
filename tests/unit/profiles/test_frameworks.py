import pytest

from ftplan.profiles.frameworks import Costly, load_vocabulary


def test_a_vocabulary_holds_what_it_includes():
    vocabulary = load_vocabulary("llamafactory")
    assert "cutoff_len" in vocabulary
    assert "per_device_train_batch_size" in vocabulary
    assert "no_such_key" not in vocabulary
    assert vocabulary.version
    assert vocabulary.source


def test_older_names_are_known_by_their_present_ones():
    vocabulary = load_vocabulary("transformers")
    assert "evaluation_strategy" in vocabulary
    assert vocabulary.canonical("evaluation_strategy") == "eval_strategy"
    assert vocabulary.canonical("eval_strategy") == "eval_strategy"


def test_own_entries_stand_over_included_ones():
    both = set(load_vocabulary("transformers").defaults) & set(load_vocabulary("trl").defaults)
    assert "learning_rate" in both


def test_what_costs_memory_says_how():
    entry = load_vocabulary("llamafactory").costly["use_galore"]
    assert isinstance(entry, Costly)
    assert entry.effect in ("more", "less", "either")
    assert entry.why


def test_it_is_read_once():
    assert load_vocabulary("deepspeed") is load_vocabulary("deepspeed")


def test_a_vocabulary_that_does_not_exist_is_our_own_mistake():
    with pytest.raises(Exception, match="nobody"):
        load_vocabulary("nobody")
