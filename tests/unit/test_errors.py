import inspect

import pytest

from ftplan import errors
from ftplan.errors import (
    BatchError,
    CannotExpressError,
    ConfigFileError,
    DataError,
    DoesNotFitError,
    FtplanError,
    InputError,
    InventoryError,
    ModelConfigError,
    RunFailedError,
    UnknownNameError,
)

EXIT_CODES = {
    InputError: 2,
    UnknownNameError: 2,
    InventoryError: 2,
    ModelConfigError: 2,
    BatchError: 2,
    ConfigFileError: 2,
    CannotExpressError: 2,
    DataError: 2,
    DoesNotFitError: 1,
    RunFailedError: 3,
}


@pytest.mark.parametrize(("error", "code"), EXIT_CODES.items())
def test_exit_codes(error, code):
    assert error.exit_code == code


def test_every_error_of_the_tree_has_its_exit_code_here():
    tree = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FtplanError)}
    assert tree - {FtplanError} == set(EXIT_CODES)


@pytest.mark.parametrize("error", [kind for kind in EXIT_CODES if kind.exit_code == 2])
def test_what_the_user_wrote_wrong_is_an_input_error(error):
    assert issubclass(error, InputError)


def test_the_docstring_draws_the_tree():
    assert all(kind.__name__ in str(errors.__doc__) for kind in EXIT_CODES)


def test_an_error_carries_message_hint_and_field():
    error = InputError("broken", hint="mend it", field="gpus")
    assert (str(error), error.message, error.hint, error.field) == ("broken", "broken", "mend it", "gpus")


def test_an_unknown_name_suggests_the_nearest_in_any_case():
    error = UnknownNameError("GPU", "rtx4091", ["RTX4090", "RTX4080", "A100"], field="gpus")
    assert error.message == "unknown GPU 'rtx4091'"
    assert error.hint.startswith("did you mean RTX4090")
    assert "A100" not in error.hint


def test_an_unknown_name_without_neighbours_lists_what_is_valid():
    error = UnknownNameError("optimizer", "zzzzzz", ["sgd", "adafactor"], field="optimizer")
    assert error.hint == "valid: adafactor, sgd"


def test_a_long_list_of_valid_names_is_cut_and_says_so():
    error = UnknownNameError("thing", "?", [f"name{number:02}" for number in range(40)], field="thing")
    assert error.hint.endswith(", …")
    assert error.hint.count(",") == 12
    assert len(error.valid) == 40


def test_valid_names_come_in_one_order_also_where_only_case_differs():
    names = [letter for low in "abcdefghijklmnop" for letter in (low, low.upper())]
    error = UnknownNameError("thing", "?", names, field="thing")
    assert error.valid == tuple(sorted(names, key=lambda name: (name.lower(), name)))


def test_an_inventory_error_points_at_its_part():
    error = InventoryError("a count is at least 1", text="2xT4+0xL4", start=5, end=6, hint="write 1xL4")
    assert error.message.splitlines() == ["a count is at least 1", "  2xT4+0xL4", "       ^"]
    assert error.field == "gpus"


def test_a_batch_error_names_the_nearest_batches():
    error = BatchError("a global batch of 32 does not split", nearest=[30, 33])
    assert error.hint == "use a global batch of 30 or 33"
    assert error.nearest == (30, 33)
    assert error.field == "global_batch"


def test_a_model_config_error_names_the_missing_fields():
    error = ModelConfigError("the config lacks vocab_size", missing=["vocab_size"])
    assert error.missing == ("vocab_size",)
    assert error.field == "model"
