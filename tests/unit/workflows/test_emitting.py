import json

import pytest
import yaml

from ftplan.errors import InputError, UnknownNameError
from ftplan.results import Estimate
from ftplan.workflows import checking, emitting, planning
from ftplan.workflows.emitting import Emission, checked_names, planned_for


def request(gpus="1xRTX4090", **fields):
    return planning.plan_request(gpus, **{"model": "Qwen2.5-0.5B", "global_batch": 16, "seq_len": 512, **fields})


@pytest.fixture(scope="module")
def chosen():
    return planning.plan(planned_for(request("2xRTX4090"), ("llamafactory",)))


def test_names_in_any_spelling():
    assert checked_names(["LLaMAFactory, native"]) == ("llamafactory", "native")
    assert checked_names(["native", "native"]) == ("native",)
    assert {"native", "llamafactory", "deepspeed", "accelerate"} <= set(emitting.valid_names())


def test_an_unknown_name_comes_with_the_valid_ones():
    with pytest.raises(UnknownNameError) as caught:
        checked_names(["llamafactori"])
    assert "llamafactory" in caught.value.hint


def test_a_plan_is_made_for_what_the_tool_does_by_itself():
    asked = planned_for(request(), ("llamafactory",))
    assert asked.pins["stack"] == "llamafactory"
    assert asked.written_for == "LLaMA-Factory"
    assert asked.not_written == {"sharding": ("hsdp",)}
    assert "weights_dtype" not in asked.pins
    assert planned_for(request(method="full"), ("llamafactory",)).pins["weights_dtype"] == "bf16"
    assert planned_for(request(), ("native",)) == request()


def test_a_pin_that_its_files_cannot_say_is_an_error():
    with pytest.raises(InputError, match="cannot say adapter_dtype bf16") as caught:
        planned_for(request(pins={"adapter_dtype": "bf16"}), ("llamafactory",))
    assert caught.value.field == "adapter_dtype"


def test_what_is_written_is_what_check_reads(chosen, tmp_path):
    paths = emitting.write(chosen, tmp_path, Emission(names=("llamafactory",), dataset="mine", epochs=2.0))
    names = [path.name for path in paths]
    assert names[0] == "plan.json"
    assert {"train.yaml", "launch.sh"} <= set(names)
    assert (tmp_path / "launch.sh").stat().st_mode & 0o111
    said = yaml.safe_load((tmp_path / "train.yaml").read_text("utf-8"))
    assert (said["dataset"], said["num_train_epochs"]) == ("mine", 2.0)
    asked = checking.Asked((str(tmp_path / "launch.sh"),), gpus="2xRTX4090", mends=False)
    check = checking.check(asked).check
    assert check.problems == ()
    assert check.global_batch == 16
    assert isinstance(check.estimate, Estimate)
    assert check.estimate.peak_allocated_bytes == chosen.estimate.peak_allocated_bytes


def test_the_release_that_is_asked_for_is_in_the_files(chosen):
    files = emitting.emitted(chosen, Emission(names=("llamafactory",), version="0.9.2"))
    assert "for LLaMA-Factory 0.9.2." in files["train.yaml"]


def test_ours_alone_writes_no_other_files(chosen):
    assert emitting.emitted(chosen, Emission()) == {}


def test_without_a_plan_nothing_can_be_written():
    nothing = planning.plan(request("1x1GB"))
    with pytest.raises(InputError):
        emitting.emitted(nothing, Emission(names=("llamafactory",)))


def test_a_folder_that_cannot_be_made_is_an_error(chosen, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        emitting.write(chosen, tmp_path / "file" / "below", Emission(names=("llamafactory",)))


def test_accelerate_and_deepspeed_go_together():
    plan = planning.plan(planned_for(request("2xRTX4090", pins={"sharding": "zero2"}), ("deepspeed",)))
    files = emitting.emitted(plan, Emission(names=("deepspeed",)))
    assert json.loads(files["deepspeed.json"])["train_batch_size"] == 16


def test_no_package_no_release():
    assert emitting.installed_release("native") == ""
    assert emitting.installed_release("llamafactory") in ("", emitting.installed_release("llamafactory"))


def test_a_job_needs_something_to_train_on(chosen):
    with pytest.raises(InputError, match="nothing says what the slurm job trains on") as caught:
        emitting.emitted(chosen, Emission(names=("slurm",)))
    assert "--dataset" in caught.value.hint
